"""No input ends in a traceback: every command, with whatever people and scripts give it."""

from __future__ import annotations

import io
import json
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
import pytest
import typer

from serinette.cli import app, terminal
from tests.gateways import gateway
from tests.servers import free_ports
from tests.unit.test_cli import Said, Shell

TLS = ssl.create_default_context()
JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
BATCH = "batch-" + "0" * 32
# Commands that start processes or look at a cluster are tried with wrong usage only.
LOCAL = {"up", "worker", "demo", "convert", "doctor", "mcp", "completion"}
# Each command with what it needs to get as far as a server, or as Redis.
CALLS: dict[str, list[str]] = {
    "submit": ["jazz"],
    "run": ["registry.example/a/b:1", "--", "true"],
    "watch": [JOB],
    "jobs": [],
    "show": [JOB],
    "cancel": [JOB, JOB],
    "queue": [],
    "workers": [],
    "models": [],
    "usage": [],
    "replay": ["song.mp3"],
    "batch run": ["prompts.jsonl", "-o", "songs"],
    "batch ls": [],
    **{f"batch {verb}": [BATCH] for verb in ("show", "pause", "resume", "cancel", "retry")},
    "keys create": ["acme"],
    "keys list": [],
    "keys revoke": ["0" * 12],
    "keys rotate": ["0" * 12],
    "keys limit": ["acme"],
    "keys limits": [],
    "tenants erase": ["acme", "--yes"],
}


@pytest.fixture
def serinette(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    # It takes most of the time of a client that then sends nothing.
    monkeypatch.setattr("httpx._transports.default.create_ssl_context", lambda **_: TLS)
    for name in [name for name in os.environ if name.startswith("SERINETTE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "jazz"}\n')
    (tmp_path / "song.mp3").write_bytes(b"no song")
    return Shell(monkeypatch, capsys)


def names() -> Iterator[str]:
    """All commands, those of groups with the group's name."""
    for command in app.app.registered_commands:
        assert command.callback
        yield command.name or command.callback.__name__
    for group in app.app.registered_groups:
        assert isinstance(group.typer_instance, typer.Typer)
        for command in group.typer_instance.registered_commands:
            assert command.callback
            yield f"{group.name} {command.name or command.callback.__name__}"


def test_every_command_is_tried_here() -> None:
    assert set(names()) == CALLS.keys() | LOCAL


@pytest.mark.parametrize("name", sorted(CALLS.keys() | LOCAL))
def test_a_variable_that_no_command_reads_is_named(
    serinette: Shell, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERINETTE_APIKEY", "x")
    said = serinette(*name.split(), "--no-such-option")
    assert "SERINETTE_APIKEY is no setting, and has no effect; did you mean SERINETTE_API_KEY?" in said.errors


class Answers(BaseHTTPRequestHandler):
    """Answers everything with what the test wants."""

    body = b""
    status = 200

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Not to stderr."""


@pytest.fixture
def answers() -> Iterator[tuple[type[Answers], str]]:
    kind = type("Wanted", (Answers,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield kind, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def of_a_server(name: str) -> bool:
    return not name.startswith(("keys", "tenants")) and name != "replay"


@pytest.mark.parametrize("name", CALLS)
def test_no_server_no_redis_and_wrong_addresses(serinette: Shell, name: str) -> None:
    port = free_ports(1)[0]
    if not of_a_server(name):
        options = [["--redis-url", f"redis://127.0.0.1:{port}"]]
        options += [["--redis-url", url] for url in ("redis://h/0?ssl_cert_reqs=none", "nonsense", "unix:///a%20b#c")]
    else:
        urls = [f"127.0.0.1:{port}", "ftp://x", "http://[::1", "a b"]
        options = [["--server", url] for url in urls]
    if name == "replay":
        options = [[]]
    for option in options:
        said = serinette(*name.split(), *CALLS[name][:1] if name == "run" else CALLS[name], *option)
        assert said.status in {1, 2, 3}, (option, said)
        assert said.errors, option


@pytest.mark.parametrize("name", [name for name in CALLS if of_a_server(name)])
def test_servers_that_are_none_of_ours(
    serinette: Shell, answers: tuple[type[Answers], str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, url = answers
    monkeypatch.setenv("SERINETTE_URL", url)
    for status, body in (
        (200, b"<html>a router</html>"),
        (200, b"{}"),
        (418, b'{"detail": [1], "code": 7}'),
    ):
        kind.status, kind.body = status, body
        said = serinette(*name.split(), *CALLS[name])
        assert said.status in {1, 2, 3}, (body, said)
        assert said.errors, body


@pytest.mark.parametrize("name", sorted({*CALLS, *LOCAL}))
def test_wrong_usage(serinette: Shell, name: str) -> None:
    for wrong in (["--nothing"], ["a", "b", "c", "--", "\udcff", ""], ["--help"]):
        if name in {"run", "cancel"} and wrong[0] == "a":
            continue  # that is an image and its command, or several jobs
        said = serinette(*name.split(), *wrong)
        assert said.status == (0 if wrong == ["--help"] else 2) or name == "replay", (wrong, said)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "x", "-o", "."], "is a directory"),
        (["submit", "x", "-o", "gone/song.mp3"], "does not exist"),
        (["submit", "x", "-o", "/proc/song.mp3"], "cannot be written to"),
        (["submit", "x", "-o", "song.exe"], "ends in no format"),
        (["submit", "x", "-o", "a" * 250 + ".mp3"], "longer than"),
        (["submit", "x", "--lyrics", "words.txt"], "write @words.txt"),
        (["submit", "x", "--lyrics", "@gone.txt"], "cannot read"),
        (["submit", "x", "--lyrics", "@song.mp3"], "cannot read"),
        (["submit", "x", "--source", "./gone.wav"], "there is no file"),
        (["batch", "run", "song.mp3", "-o", "song.mp3"], "is a file"),
        (["batch", "run", "gone.jsonl", "-o", "songs"], "does not exist"),
        (["replay", "prompts.jsonl"], "cannot be decoded"),
        (["replay", "song.mp3", "-o", "."], "is a directory"),
        (["demo", "-o", "gone/song.mp3"], "does not exist"),
        (["run", "image", "-i", "gone"], "there is no file"),
    ],
)
def test_files_are_checked_before_anything_is_ordered(
    serinette: Shell, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "words.txt").write_text("la la la")
    (tmp_path / "song.mp3").write_bytes(b"\xff\xfe no song")
    said = serinette(*arguments)
    assert said.status in {1, 2}, said
    assert words in " ".join(said.errors.replace("│", " ").split()), said.errors


@pytest.mark.parametrize("ending", ["opus", "aac", "OGG", "m4a", "oga"])
def test_other_names_of_formats_are_known(serinette: Shell, ending: str) -> None:
    said = serinette("submit", "x", "-o", f"song.{ending}", "--server", f"127.0.0.1:{free_ports(1)[0]}")
    assert (said.status, "no Serinette answers" in said.errors) == (3, True), said


PROMPT = "静かな caf\xe9 \U0001f3b9"


class Place(NamedTuple):
    """A gateway, and the id of a canceled job in it and of a batch."""

    url: str
    redis_url: str
    job_id: str
    batch_id: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, valkey_url: str, store_url: str) -> Iterator[Place]:
    with gateway(tmp_path_factory.mktemp("cli"), valkey_url, store_url) as running:
        job_id = httpx.post(f"{running.url}/v1/jobs", json={"prompt": PROMPT}).json()["id"]
        httpx.post(f"{running.url}/v1/jobs/{job_id}/cancel").raise_for_status()
        batch = httpx.post(f"{running.url}/v1/batches", json={"specs": [{"prompt": PROMPT}]})
        yield Place(running.url, valkey_url, job_id, batch.json()["id"])


@pytest.fixture
def call(serinette: Shell, place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Said]]:
    """Runs a command with whatever it needs, and a standard output of the test's own."""
    monkeypatch.setenv("SERINETTE_URL", place.url)
    own = {JOB: place.job_id, BATCH: place.batch_id, "jazz": PROMPT}
    nowhere = {"submit": ["--no-wait"], "tenants erase": ["--wait", "0"]}

    def called(name: str, stream: IO[str] | None, *options: str) -> Said:
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr(terminal.output, "quiet", False)  # as rich leaves it behind a closed pipe
        given = [own.get(each, each) for each in CALLS[name]] + nowhere.get(name, [])
        redis = [] if of_a_server(name) or name == "replay" else ["--redis-url", place.redis_url]
        return serinette(*name.split(), *options, *redis, *given)

    yield called
    with terminal.output.capture():  # what rich could not write, it keeps for its next writing
        pass


# Its end does not come here: no worker generates it.
DRIVEN = [name for name in CALLS if name != "batch run"]


@pytest.mark.parametrize("name", DRIVEN)
def test_a_terminal_without_the_letters_shows_their_codes_and_json_stays_json(
    call: Callable[..., Said], name: str
) -> None:
    for encoding, options in (("cp1252", ()), ("ascii", ("--json",))):
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding)
        said = call(name, stream, *options)
        stream.flush()
        assert said.status in {0, 1}, said
        if said.status == 0 and options:
            shown = json.dumps(json.loads(written.getvalue().decode(encoding)), ensure_ascii=False)
            assert PROMPT in shown or name not in {"submit", "jobs", "show", "cancel"}


@pytest.mark.parametrize("name", DRIVEN)
def test_a_full_disk_and_a_reader_that_has_seen_enough(call: Callable[..., Said], name: str) -> None:
    read, write = os.pipe()
    os.close(read)
    for place, options in (("/dev/full", ()), ("/dev/full", ("--json",)), (write, ()), (None, ())):
        with nullcontext() if place is None else FileIO(place, "w", closefd=place != write) as raw:
            stream = None if raw is None else io.TextIOWrapper(raw, write_through=True)
            said = call(name, stream, *options)
            if stream is not None:
                stream.detach()  # unflushed
        assert said.status in {0, 1, 141}, (place, said)
        if place == "/dev/full" and name == "jobs":
            assert (said.status, "No space left on device" in said.errors) == (1, True)
        if place == write and name == "jobs":
            assert (said.status in {1, 141}, said.errors) == (True, "")
    os.close(write)


def test_a_closed_standard_input_is_no_prompt(serinette: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    said = serinette("submit", "-")
    assert (said.status, "standard input is closed" in said.errors) == (2, True), said


@pytest.mark.parametrize("text", ["nand", "infd", "1e300d", "-5d", "1_0d", "999999999d", "d", "٥d"])
def test_a_time_is_a_plain_number_and_a_unit(serinette: Shell, text: str, valkey_url: str) -> None:
    for command in (["keys", "create", "acme", "--expires"], ["keys", "rotate", "0" * 12, "--overlap"]):
        said = serinette(*command, text, "--redis-url", valkey_url)
        assert (said.status, "is not a time such as" in said.errors) == (2, True), said


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "g", "-1", "1e9", "nan"])
def test_a_size_is_a_plain_number(serinette: Shell, size: str) -> None:
    said = serinette("run", "-m", size, "registry.example/a/b:1")
    assert said.status == 2, said


def test_a_device_or_a_pipe_is_no_place_that_a_song_may_take(serinette: Shell, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp3")
    for path in ("/dev/null", str(tmp_path / "pipe.mp3")):
        said = serinette("submit", "x", "-o", path, "--server", f"127.0.0.1:{free_ports(1)[0]}")
        assert said.status == 3, "it may be written to"
