"""The worst request of each kind, eight at once: the gateway stays small, and answers others."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateways import RunningGateway, gateway
from tests.processes import eventually

MIB = 2**20
TOGETHER = 8
# Of the 768 MiB that the chart gives a gateway; it begins at about 100.
MOST_BYTES = 400 * MIB
JSON = {"Content-Type": "application/json"}
BOUNDARY = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + b"x" * 1_000_000 + b"\r\n"


def trailers() -> Iterator[bytes]:
    """A body that ends, and trailers that do not."""
    yield b"2\r\n{}\r\n0\r\n"
    for number in range(2_000):
        yield b"".join(b"A%06d: b\r\n" % (1_000 * number + each) for each in range(1_000))


def form(fields: int) -> Iterator[bytes]:
    """A form of as many fields, a megabyte each."""
    yield from [PART] * fields
    yield b"--x--\r\n"


def post(running: RunningGateway, path: str, content: object, headers: dict[str, str]) -> None:
    with suppress(httpx.HTTPError):  # it may close while more is sent
        httpx.post(f"{running.url}{path}", content=content, headers=headers, timeout=60)  # type: ignore[arg-type]


def flood(running: RunningGateway) -> None:
    """Trailers without an end, which no HTTP client sends."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection, suppress(OSError):
        connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in trailers():
            connection.sendall(piece)


SOUND = b'{"prompt": "x", "audio_base64": "' + base64.b64encode(bytes(5 * MIB)) + b'"}'
WORST: dict[str, Callable[[RunningGateway], None]] = {
    "trailers": flood,
    "long lists": lambda it: post(it, "/v1/jobs", b'{"tracks":[' + b"2," * 520_000 + b"2]}", JSON),
    "deep JSON": lambda it: post(it, "/v1/jobs", b'{"a":' * 200_000, JSON),
    "many fields": lambda it: post(it, "/release_task", form(100), BOUNDARY),
    "a seed's form": lambda it: post(it, "/generate_music_with_audio", form(100), BOUNDARY),
    "a form as text": lambda it: post(
        it, "/generate_music_with_audio", b"a=" + b"x" * 50 * MIB, {"Content-Type": "application/x-www-form-urlencoded"}
    ),
    "audio in base64": lambda it: post(it, "/generate_music_with_audio_json", SOUND, JSON),
    "half a gigabyte": lambda it: post(it, "/v1/jobs", iter([bytes(MIB)] * 512), JSON),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, valkey_url: str, store_url: str) -> Iterator[RunningGateway]:
    directory: Path = tmp_path_factory.mktemp("memory")
    with gateway(directory, valkey_url, store_url) as started:
        yield started


@pytest.mark.parametrize("kind", WORST)
def test_eight_of_the_worst_at_once(running: RunningGateway, kind: str) -> None:
    process, highest = psutil.Process(running.process.pid), 0
    with ThreadPoolExecutor(TOGETHER) as senders:
        sent = [senders.submit(WORST[kind], running) for _ in range(TOGETHER)]
        while not all(one.done() for one in sent):
            assert httpx.get(f"{running.url}/healthz", timeout=30).status_code == 200
            highest = max(highest, process.memory_info().rss)
        for one in sent:
            one.result()
    assert highest < MOST_BYTES, f"{highest / MIB:.0f} MiB"


@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/jobs", "/v1/batches", "/generate_music_with_audio_json"])
def test_slow_bodies_hold_nothing_but_their_connections(running: RunningGateway, path: str) -> None:
    before = psutil.Process(running.process.pid).memory_info().rss
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=30))
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"[" * 100_000)
        assert httpx.get(f"{running.url}/healthz", timeout=30).status_code == 200
        assert psutil.Process(running.process.pid).memory_info().rss - before < 100 * MIB
    scratch = running.log.parent / "tmp"
    assert eventually(lambda: not [*scratch.glob("serinette-api-*/serinette-body-*")]), "what broke off is gone"


@pytest.mark.parametrize(
    ("path", "content", "headers"),
    [
        ("/v1/uploads", b"x", {}),
        ("/v1/batches", b'{"specs": [{"prompt": "x"}]}', JSON),
        ("/v1/jobs", b'{"prompt": "' + b"x" * 70_000 + b'"}', JSON),
        ("/release_task", PART.replace(b'"f"', b'"src_audio"; filename="a.wav"') + b"--x--\r\n", BOUNDARY),
    ],
)
def test_no_file_is_left_to_open(running: RunningGateway, path: str, content: bytes, headers: dict[str, str]) -> None:
    process = psutil.Process(running.process.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    with (
        httpx.Client(base_url=running.url, timeout=30) as http,
        httpx.Client(base_url=running.url, timeout=30) as other,
    ):
        assert {each.get("/v1/queue").status_code for each in (http, other)} == {200}  # their connections stay
        process.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))  # those below are open
        try:
            full = http.post(path, content=content, headers=headers)
            assert other.get("/v1/queue").status_code == 200
        finally:
            process.rlimit(psutil.RLIMIT_NOFILE, before)
        assert (full.status_code, full.headers.get("Retry-After")) == (503, "2"), full.text
        assert "as many files and connections open as its machine allows" in full.text
        assert http.post(path, content=content, headers=headers).status_code != 503
