"""No input ends in a traceback: every command, with whatever people and scripts give it."""

from __future__ import annotations

import io
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from serinette.cli import app
from serinette.job import now
from tests.servers import free_ports
from tests.unit.test_cli import Said, Shell, a_job

TLS = ssl.create_default_context()
JOB = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
BATCH = "batch-" + "0" * 32
# Commands that start processes or look at a cluster are tried with wrong usage only.
LOCAL = {"up", "worker", "demo", "convert", "doctor", "completion"}
# Each command with what it needs to get as far as a server, or as Redis.
CALLS: dict[str, list[str]] = {
    "submit": ["jazz"],
    "run": ["image", "--", "true"],
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


class Answers(BaseHTTPRequestHandler):
    """Answers everything with what the test wants."""

    body = b""
    status = 200
    cut = 0  # so many bytes are promised and do not come

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body) + self.cut))
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
    for status, body, cut in (
        (200, b"<html>a router</html>", 0),
        (200, b"{}", 0),
        (418, b'{"detail": [1], "code": 7}', 0),
    ):
        kind.status, kind.body, kind.cut = status, body, cut
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


def listing(prompt: str) -> bytes:
    spec = a_job().spec.model_copy(update={"prompt": prompt})
    job = a_job(spec=spec, created_at=now()).model_dump_json()
    return f'{{"jobs": [{job}], "next_cursor": null}}'.encode()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_terminal_without_the_letters_shows_their_codes(answers: tuple[type[Answers], str], encoding: str) -> None:
    kind, url = answers
    kind.body = listing("静かなピアノ \U0001f3b9")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "SERINETTE_URL": url}
    said = subprocess.run(
        [sys.executable, "-m", "serinette.cli", "jobs"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert (said.returncode, b"Traceback" in said.stderr) == (0, False), said.stderr
    assert encoding == "ascii" or rb"\u9759" in said.stdout


def test_a_reader_that_has_seen_enough_ends_it_quietly(answers: tuple[type[Answers], str]) -> None:
    kind, url = answers
    kind.body = listing("x" * 8_000)
    read, write = os.pipe()
    os.close(read)
    said = subprocess.run(
        [sys.executable, "-m", "serinette.cli", "jobs", "--json", "--server", url],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert said.returncode in {1, 141}
    assert said.stderr == b""


def test_a_disk_that_is_full_while_a_table_is_written(
    answers: tuple[type[Answers], str], serinette: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, url = answers
    kind.body = listing("jazz")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(typer, "echo", full)
    said: Said = serinette("jobs", "--server", url)
    assert (said.status, "No space left on device" in said.errors) == (1, True)
    assert isinstance(sys.stdout, io.TextIOBase)
