"""The seed's calls over HTTP, on a real Valkey and a directory, with no worker: all that a gateway alone can show."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from starlette.routing import Route

from api.app import create_app
from api.dialects.dialect import MAX_BASE64_BODY_BYTES
from api.dialects.seed import routes
from api.settings import GatewaySettings
from serinette.job import JobError, JobStatus, now
from serinette.jobs import Jobs, Outcome, calls
from serinette.names import Keys
from serinette.presence import WorkerStage, announce
from serinette.store import Store
from tests import servers
from tests.gateways import HandSlot
from tests.jobs import Board
from tests.unit.dialect_jobs import silence, worker


@pytest.fixture(scope="module")
def settings(valkey_url: str, store_url: str) -> GatewaySettings:
    return GatewaySettings(redis_url=valkey_url, store_url=store_url, max_wait_s=0.2, max_body_bytes=65_536)


@pytest.fixture(scope="module")
def client(settings: GatewaySettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), "http://localhost", follow_redirects=False) as client:
        yield client


@pytest.fixture
def jobs(settings: GatewaySettings) -> Iterator[Jobs]:
    with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
        yield Jobs(redis, settings.redis_prefix)


def submitted(client: TestClient, **body: Any) -> str:
    answer = client.post("/generate_music_async", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def test_a_request_waits_then_is_canceled(client: TestClient) -> None:
    answer = client.post("/generate_music_async", json={"prompt": "jazz"})
    assert answer.json() == {
        "request_id": answer.json()["request_id"],
        "status": "queued",
        "message": "Request has been queued for processing",
    }
    request_id = answer.json()["request_id"]
    status = client.get(f"/status/{request_id}").json()
    assert abs(status.pop("created_at") - now().timestamp()) < 60
    assert status == {"request_id": request_id, "status": "pending", "started_at": None, "completed_at": None}
    early = client.get(f"/result/{request_id}")
    assert (early.status_code, early.json()) == (400, {"detail": "Request is pending, not completed"})

    canceled = client.delete(f"/request/{request_id}")
    assert (canceled.status_code, canceled.json()) == (200, {"message": "Request cancelled"})
    status = client.get(f"/status/{request_id}").json()
    assert (status["status"], status["error"]) == ("failed", "Cancelled by user")
    again = client.delete(f"/request/{request_id}")
    assert (again.status_code, again.json()) == (400, {"detail": "Cannot cancel request in failed status"})


def test_the_queue_counts_what_waits_and_what_was_canceled(client: TestClient) -> None:
    before = client.get("/queue/status").json()
    first, _ = submitted(client), submitted(client)
    client.delete(f"/request/{first}")
    after = client.get("/queue/status").json()
    assert after["queue_size"] == after["status_counts"]["pending"] == before["queue_size"] + 1
    assert after["status_counts"]["failed"] == before["status_counts"]["failed"] + 1
    assert after["total_requests"] == before["total_requests"] + 2


@pytest.mark.parametrize("request_id", ["5b0e1a4c-0f5c-4b55-8a54-6f4bb0a2a111", "x", "a.b", "x" * 500, "%00"])
def test_an_unknown_id(client: TestClient, request_id: str) -> None:
    for method, path in (("GET", "status"), ("GET", "result"), ("DELETE", "request")):
        answer = client.request(method, f"/{path}/{request_id}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Request not found"})


@pytest.mark.parametrize("path", ["/generate_music_async", "/generate_music", "/generate_music_direct"])
def test_a_bad_field_is_named_the_way_fastapi_does(client: TestClient, path: str) -> None:
    answer = client.post(path, json={"infer_step": 0})
    assert answer.status_code == 422
    assert answer.json() == {
        "detail": [
            {
                "loc": ["body", "infer_step"],
                "msg": "Input should be greater than or equal to 1",
                "type": "greater_than_equal",
            }
        ]
    }


@pytest.mark.parametrize("audio_id", ["/tmp/song.wav", "no-such-upload", "5b0e1a4c-0f5c-4b55-8a54-6f4bb0a2a111/0"])
def test_reference_audio_that_is_not_here_is_refused_by_the_seeds_name(client: TestClient, audio_id: str) -> None:
    body = {"audio2audio_enable": True, "ref_audio_input": audio_id}
    answer = client.post("/generate_music_async", json=body)
    assert answer.status_code == 422
    [complaint] = answer.json()["detail"]
    assert complaint["loc"] == ["body", "ref_audio_input"]
    assert "POST /v1/uploads" in complaint["msg"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"audio_duration": NaN}', b'{"prompt": "\\ud800"}', b"\xff"]
)
def test_a_broken_body_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/generate_music_async", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]


def test_a_body_that_is_too_long_is_refused(client: TestClient) -> None:
    answer = client.post("/generate_music_async", json={"prompt": "x" * 70_000})
    assert answer.status_code == 413
    assert "65536" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "query"),
    [
        ("/generate_music_direct", {}, "wait=0.2&sync=true"),
        ("/generate_music_direct", {"return_file_data": False}, "wait=0.2&sync=true"),
        ("/generate_music", {"return_file_data": True}, "wait=0.2&sync=true"),
        ("/generate_music", {}, "wait=0.2&format=json&sync=true"),
    ],
)
def test_a_call_that_waited_long_enough_is_sent_on_to_itself(
    client: TestClient, path: str, body: dict[str, Any], query: str
) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 303
    location = answer.headers["Location"]
    request_id = location.removeprefix("/result/").partition("?")[0]
    assert location == f"/result/{request_id}?{query}"
    again = client.get(location)
    assert (again.status_code, again.headers["Location"]) == (303, location)


def test_a_wait_is_bounded_by_the_server_and_none_is_no_wait(client: TestClient) -> None:
    request_id = submitted(client)
    assert client.get(f"/result/{request_id}?wait=9999").headers["Location"] == f"/result/{request_id}?wait=0.2"
    assert client.get(f"/result/{request_id}?wait=0").status_code == 400
    assert client.get(f"/result/{request_id}?sync=true").json() == {"detail": "Request is pending, not completed"}


@pytest.mark.parametrize(("query", "field"), [("wait=-1", "wait"), ("wait=inf", "wait"), ("format=wav", "format")])
def test_a_bad_query_is_named(client: TestClient, query: str, field: str) -> None:
    answer = client.get(f"/result/x?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", field]


def test_a_failure_is_reported_as_each_call_would(client: TestClient, jobs: Jobs) -> None:
    request_id = submitted(client)
    error = JobError(code="timeout", message="it ran longer than 10 s")
    assert jobs(calls.finish(request_id, "", Outcome(JobStatus.FAILED, error), recorded=False)).decided
    assert client.get(f"/status/{request_id}").json()["error"] == error.message
    answered = {
        query: client.get(f"/result/{request_id}?{query}")
        for query in ("", "format=json", "wait=50", "wait=50&sync=true", "wait=50&format=json&sync=true")
    }
    refused = (400, {"detail": "Request is failed, not completed", "error": error.message})
    assert {query: (answer.status_code, answer.json()) for query, answer in answered.items()} == {
        "": refused,
        "format=json": refused,
        "wait=50": refused,
        "wait=50&sync=true": (500, {"detail": error.message}),
        "wait=50&format=json&sync=true": (
            200,
            {"request_id": request_id, "success": False, "error_message": error.message},
        ),
    }


def test_health_and_initialize_without_and_with_a_worker_that_loads(
    client: TestClient, settings: GatewaySettings, jobs: Jobs
) -> None:
    empty = {"status": "healthy", "pipeline_loaded": False, "workers": []}
    assert client.get("/health").json().items() >= empty.items()
    announce(jobs.redis, settings.keys, worker("w1", None, stage=WorkerStage.LOADING, started_at=now()))
    health = client.get("/health").json()
    assert (health["pipeline_loaded"], health["workers"][0]["stage"]) == (False, "loading")

    asked: dict[str, str | int] = {"checkpoint_path": "/models/ace", "device_id": 1}
    for answer in (client.post("/initialize", params=asked), client.post("/initialize", json=asked)):
        answered = answer.json()
        assert (answer.status_code, answered["success"]) == (200, False)
        assert answered["ignored"] == ["checkpoint_path", "device_id"]
        assert "w1 is loading" in answered["error_message"]
    assert client.post("/initialize").json()["ignored"] == []


def test_audio_that_comes_along_is_kept_and_covered(client: TestClient) -> None:
    form = {"prompt": "remix", "ref_audio_strength": "0.7", "use_erg_tag": "True", "ref_audio_input": "/etc/passwd"}
    files = {"audio_file": ("my song.wav", silence(), "audio/wav")}
    answer = client.post("/generate_music_with_audio", data=form, files=files)
    assert answer.status_code == 200, answer.text
    answered = answer.json()
    assert answered == {
        "success": True,
        "request_id": answered["request_id"],
        "message": "Audio file uploaded and queued for processing. Original filename: my song.wav",
    }
    job = client.get(f"/v1/jobs/{answered['request_id']}").json()
    assert (job["spec"]["task"], job["spec"]["cover_strength"]) == ("cover", 0.7)
    upload = client.get(f"/v1/uploads/{job['spec']['source_audio']}").json()
    assert upload["duration_s"] == 1.0


@pytest.mark.parametrize(
    ("form", "files", "field"),
    [
        ({}, {"audio_file": ("song.mp3", b"only words " * 100, "audio/mpeg")}, "audio_file"),
        ({}, {"audio_file": ("empty.mp3", b"", "audio/mpeg")}, "audio_file"),
        ({"infer_step": "many"}, {"audio_file": ("song.mp3", b"x", "audio/mpeg")}, "infer_step"),
        ({"prompt": "x"}, {}, "audio_file"),
        ({"audio_file": "text"}, {}, "audio_file"),
    ],
)
def test_a_form_that_is_no_good(client: TestClient, form: dict[str, str], files: Any, field: str) -> None:
    answer = client.post("/generate_music_with_audio", data=form, files=files)
    assert answer.status_code == 422, answer.text
    assert [each["loc"] for each in answer.json()["detail"]] == [["body", field]]


def test_what_the_answer_needs_later_travels_with_the_job(client: TestClient, jobs: Jobs) -> None:
    dialect = Board(jobs.redis, Keys()).entry(submitted(client, omega_scale=10.0, format="flac")).dialect
    assert json.loads(dialect["ignored"]) == ["omega_scale"]
    assert json.loads(dialect["sent"]) == {"omega_scale": 10.0, "format": "flac"}


def test_without_redis_everything_says_so(tmp_path: Any) -> None:
    [port] = servers.free_ports(1)
    settings = GatewaySettings(
        redis_url=f"redis://127.0.0.1:{port}/0", store_url=f"file://{tmp_path}", redis_timeout_s=0.1
    )
    with TestClient(create_app(settings), "http://localhost") as client:
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "unhealthy")
        answer = client.post("/generate_music_async", json={})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
        assert "try again" in answer.json()["detail"]


SONG = b"ID3 a song of seven"


@pytest.fixture(scope="module")
def waiting_or_not(settings: GatewaySettings) -> Iterator[dict[bool, TestClient]]:
    """Gateways by whether POST /generate_music waits; each job has its song as soon as it is submitted."""
    stop = Event()

    def generate() -> None:
        with Redis.from_url(settings.redis_url.get_secret_value()) as redis:
            board, slot = Board(redis, settings.keys), HandSlot(redis, Store.open(settings), settings.keys)
            while not stop.wait(0.02):
                for job_id in board.waiting():
                    if slot.claim(job_id):
                        slot.succeed(job_id, [SONG])

    def app(*, waits: bool) -> TestClient:
        again = settings.model_copy(update={"generate_music_waits": waits, "max_wait_s": 1})
        return TestClient(create_app(again), "http://localhost")

    thread = Thread(target=generate)
    thread.start()
    with app(waits=True) as waiting, app(waits=False) as at_once:
        yield {True: waiting, False: at_once}
    stop.set()
    thread.join()


WAV = silence()
_B64 = base64.b64encode(WAV).decode()
_FILE: dict[str, Any] = {"files": {"audio_file": ("a.wav", WAV, "audio/wav")}}


@pytest.mark.parametrize(
    ("path", "sent", "waits", "gets"),
    [
        # Clients of the origin that read `request_id` of whatever is answered, then poll.
        ("/generate_music", {"json": {"prompt": "x"}}, True, "json with the song"),
        ("/generate_music", {"json": {"prompt": "x", "genre": "pop", "lyrics": None}}, True, "json with the song"),
        # Those with a timeout of ten seconds need it at once: the operator's setting.
        ("/generate_music", {"json": {"prompt": "x"}}, False, "id alone"),
        ("/generate_music", {"json": {"prompt": "x", "return_file_data": True}}, False, "id alone"),
        # The one test of the origin that wants bytes.
        ("/generate_music", {"json": {"prompt": "x", "return_file_data": True}}, True, "bytes"),
        ("/generate_music_direct", {"json": {"prompt": "x"}}, True, "bytes"),
        ("/generate_music_direct", {"json": {"prompt": "x"}}, False, "bytes"),
        # Ten scripts at its root, and the pages that it served: forms.
        (
            "/generate_music_form",
            {"data": {"genre": "pop rock", "audio_duration": "30", "lyrics": "la"}},
            True,
            "bytes",
        ),
        ("/generate_music_form", {"data": {"genre": "pop", "infer_step": "5", "oss_steps": ""}}, False, "bytes"),
        ("/generate_music_with_audio", {"data": {"format": "wav"}, **_FILE}, True, "id and message"),
        ("/generate_music_with_audio_base64", {"data": {"audio_base64": _B64, "prompt": "x"}}, True, "id and message"),
        ("/generate_music_with_audio_json", {"json": {"audio_base64": _B64, "lyrics": ""}}, True, "id and message"),
        (
            "/generate_music_with_audio_json",
            {"json": {"audio_base64": f"data:audio/wav;base64,{_B64}"}},
            True,
            "id and message",
        ),
        ("/generate_music_with_audio_mp3", _FILE, True, "id and message"),
        ("/generate_music_with_audio_json_mp3", {"json": {"audio_base64": _B64}}, True, "id and message"),
        ("/generate_music_with_audio_direct_mp3", {"data": {"infer_step": "5"}, **_FILE}, True, "bytes"),
    ],
)
def test_which_client_gets_what(
    waiting_or_not: dict[bool, TestClient], path: str, sent: dict[str, Any], waits: bool, gets: str
) -> None:
    client = waiting_or_not[waits]
    answer = client.post(path, **sent)
    assert answer.status_code == 200, answer.text
    if gets == "bytes":
        assert (answer.content, answer.headers["Content-Type"]) == (SONG, "audio/mpeg")
        return
    answered = answer.json()
    assert answered["success"] is True
    assert {"json with the song": "audio_path", "id and message": "message"}.get(gets, "success") in answered
    assert gets != "id alone" or answered.keys() == {"success", "request_id"}
    deadline = time.monotonic() + 10
    while client.get(f"/status/{answered['request_id']}").json()["status"] != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert client.get(f"/result/{answered['request_id']}").content == SONG
    spec = client.get(f"/v1/jobs/{answered['request_id']}").json()["spec"]
    assert spec["task"] == ("cover" if "with_audio" in path else "text2music")
    assert spec["format"] == ("mp3" if path.endswith("mp3") else "wav")


@pytest.mark.parametrize("path", ["/generate_music_form", "/generate_music_with_audio"])
def test_json_where_a_form_goes_is_refused(client: TestClient, path: str) -> None:
    for headers in ({"Content-Type": "application/json"}, {}):
        answer = client.post(path, content=b'{"genre": "metal"}', headers=headers)
        assert (answer.status_code, answer.json()["detail"][:15]) == (415, "send the fields")


def test_the_prompt_of_a_form_is_its_genre(waiting_or_not: dict[bool, TestClient]) -> None:
    waiting_or_not[True].post("/generate_music_form", data={"genre": "ballad of the form", "prompt": "y"})
    newest = waiting_or_not[True].get("/v1/jobs").json()["jobs"][0]
    assert newest["spec"]["prompt"] == "ballad of the form"


def test_json_with_the_song_in_it_is_whole(waiting_or_not: dict[bool, TestClient]) -> None:
    client = waiting_or_not[True]
    request_id = client.post("/generate_music_with_audio_mp3", **_FILE).json()["request_id"]
    answered = client.get(f"/result/{request_id}?format=json&wait=5").json()
    assert base64.b64decode(answered["audio"]) == SONG
    assert (answered["request_id"], answered["params_json"]["format"]) == (request_id, "mp3")


# 4.6 MB, of which a form escapes many characters.
_LONG_B64 = base64.b64encode(silence(18)[:44] + bytes(range(256)) * 13_500).decode()


@pytest.mark.parametrize(
    "sent", [{"data": {"audio_base64": _LONG_B64}}, {"files": {"audio_base64": (None, _LONG_B64)}}]
)
def test_base64_in_a_form_may_be_long(client: TestClient, sent: dict[str, Any]) -> None:
    answer = client.post("/generate_music_with_audio_base64", **sent)
    assert answer.status_code == 200, answer.text
    spec = client.get(f"/v1/jobs/{answer.json()['request_id']}").json()["spec"]
    upload = client.get(f"/v1/uploads/{spec['source_audio']}").json()
    assert (upload["duration_s"], upload["size_bytes"]) == (18.0, 44 + 256 * 13_500)


@pytest.mark.parametrize(
    ("audio", "status", "words"),
    [("no base64!", 422, "no base64"), (base64.b64encode(b"words" * 99).decode(), 422, "")],
)
def test_base64_that_is_no_audio_is_refused_by_its_name(
    client: TestClient, audio: str, status: int, words: str
) -> None:
    refused = client.post("/generate_music_with_audio_json", json={"audio_base64": audio})
    assert refused.status_code == status, refused.text
    [complaint] = refused.json()["detail"]
    assert complaint["loc"] == ["body", "audio_base64"]
    assert words in complaint["msg"]
    too_long = client.post("/generate_music_with_audio_json", content=b"x" * (MAX_BASE64_BODY_BYTES + 100_000))
    assert too_long.status_code == 413


def test_every_call_of_the_origin_with_audio_is_there() -> None:
    suffixes = {"", "_base64", "_json", "_mp3", "_json_mp3", "_direct_mp3"}
    paths = {route.path for route in routes.router.routes if isinstance(route, Route)}
    assert {f"/generate_music_with_audio{suffix}" for suffix in suffixes} | {"/generate_music_form"} <= paths


@pytest.mark.parametrize(
    "path", ["/generate_music_async", "/generate_music", *(path for path, *_ in routes._GENERATING)]
)
def test_a_call_that_is_sent_again_with_its_key_is_one_song(client: TestClient, path: str) -> None:
    def sent(prompt: str) -> Any:
        headers, fields = {"Idempotency-Key": f"again {path}"}, {"prompt": prompt, "genre": prompt}
        if "json" in path or ("audio" not in path and "form" not in path):
            body: dict[str, Any] = {"json": fields | ({"audio_base64": _B64} if "audio" in path else {})}
        elif "base64" in path:
            body = {"data": fields | {"audio_base64": _B64}}
        else:
            body = {"data": fields} | (_FILE if "audio" in path else {})
        return client.post(path, headers=headers, **body)

    def newest() -> str:
        return str(client.get("/v1/jobs").json()["jobs"][0]["id"])

    ids = []
    for _ in range(2):
        answer = sent("once")
        assert answer.status_code in {200, 303}, answer.text
        ids.append(newest())
    assert ids[0] == ids[1]
    other = sent("twice")
    assert (other.status_code, "Idempotency-Key" in other.text) == (409, True), other.text
