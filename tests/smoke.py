"""What the seed's three test commands share: a server's URL, a run with an exit code, and proof that bytes are a song.

Black-box: they know the server by HTTP alone, and run against any (`python tests/test_async_api.py http://host:8019`).
"""

from __future__ import annotations

import argparse
import io
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import requests

from serinette.media import probe

DEFAULT_URL = "http://localhost:8019"
# A GPU may have to be fetched for the first song: as long as an unchanged client's 30 redirects last.
PATIENCE_S = 25 * 60
ANSWER_TIMEOUT_S = 90

CONTENT_TYPES = {
    "wav": "audio/wav",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
}
# Codec delay and padding, at most.
DURATION_TOLERANCE_S = 0.3


def run(name: str, module: Mapping[str, Any]) -> int:
    """Run a module's `test_` functions against the URL on the command line; 0 if all passed, else 1."""
    parser = argparse.ArgumentParser(description=module["__doc__"])
    parser.add_argument("url", nargs="?", default=DEFAULT_URL, help=f"the server ({DEFAULT_URL})")
    url: str = parser.parse_args().url.rstrip("/")
    checks = {title: check for title, check in module.items() if title.startswith("test_")}
    try:
        get(f"{url}/health")
    except requests.ConnectionError:
        print(f"{name}: nothing answers at {url}; start a server with `serinette up`")
        return 1
    print(f"{name}: {len(checks)} checks of {url}")
    failed = [title for title, check in checks.items() if not _passed(title, check, url)]
    print(f"{len(checks) - len(failed)} of {len(checks)} passed" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def _passed(title: str, check: Callable[[str], None], url: str) -> bool:
    started = time.monotonic()
    try:
        check(url)
    except Exception:
        print(f"  FAIL  {title}\n{traceback.format_exc()}")
        return False
    print(f"  ok    {title}  ({time.monotonic() - started:.1f} s)")
    return True


def get(url: str, **options: Any) -> requests.Response:
    """GET with a timeout."""
    return requests.get(url, timeout=ANSWER_TIMEOUT_S, **options)


def post(url: str, body: dict[str, Any] | None = None, **options: Any) -> requests.Response:
    """POST JSON with a timeout."""
    return requests.post(url, json=body, timeout=ANSWER_TIMEOUT_S, **options)


def submitted(url: str, body: dict[str, Any]) -> str:
    """The request id of a song to be generated."""
    answer = post(f"{url}/generate_music_async", body)
    assert answer.status_code == 200, answer.text
    answered = answer.json()
    assert set(answered) == {"request_id", "status", "message"}, answered
    assert (answered["status"], answered["message"]) == ("queued", "Request has been queued for processing"), answered
    return str(answered["request_id"])


def ended(url: str, request_id: str) -> dict[str, Any]:
    """The status of a request once it has ended, whichever way; every status on the way is looked at."""
    deadline = time.monotonic() + PATIENCE_S
    seen: list[str] = []
    while time.monotonic() < deadline:
        status = get(f"{url}/status/{request_id}").json()
        assert status["request_id"] == request_id, status
        assert {"created_at", "started_at", "completed_at"} <= set(status), status
        if status["status"] not in seen:
            seen.append(status["status"])
        if status["status"] in {"completed", "failed"}:
            words = ["pending", "processing", status["status"]]
            assert seen == [word for word in words if word in seen], f"statuses went {seen}"
            return dict(status)
        time.sleep(0.2)
    raise AssertionError(f"request {request_id} is {seen[-1]} after {PATIENCE_S} s")


def assert_song(answer: requests.Response, audio_format: str, duration_s: float | None) -> None:
    """The answer is a file of that format and length, sent as one."""
    assert answer.status_code == 200, f"{answer.status_code}: {answer.text[:500]}"
    assert answer.headers["Content-Type"] == CONTENT_TYPES[audio_format], answer.headers
    disposition = answer.headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="generated_music_'), disposition
    assert disposition.endswith(f'.{audio_format}"'), disposition
    assert int(answer.headers["Content-Length"]) == len(answer.content), answer.headers
    assert_audio(answer.content, audio_format, duration_s)


def assert_audio(data: bytes, audio_format: str, duration_s: float | None) -> None:
    """The bytes decode to a stereo song of that format and length."""
    info = probe(io.BytesIO(data), max_duration_s=600 + 2)
    assert audio_format in info.container.split(","), info
    assert info.channels == 2, info
    if duration_s is not None:
        assert abs(info.duration_s - duration_s) <= DURATION_TOLERANCE_S, f"{info.duration_s} s, not {duration_s}"


def fields_of(answer: requests.Response) -> set[str]:
    """The fields that a 422 complains of, FastAPI's way."""
    assert answer.status_code == 422, f"{answer.status_code}: {answer.text}"
    detail = answer.json()["detail"]
    assert all({"loc", "msg", "type"} <= set(each) for each in detail), detail
    return {each["loc"][-1] for each in detail}
