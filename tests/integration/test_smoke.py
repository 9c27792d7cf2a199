"""The seed's three commands as commands: what they say and what they exit with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests import smoke
from tests.servers import free_ports

COMMANDS = ["test_async_api", "test_gradio_compatible_api", "test_direct_audio_response"]


class _Empty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def empty_server() -> Iterator[str]:
    """A server that answers every GET with nothing."""
    with HTTPServer(("127.0.0.1", 0), _Empty) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def asked(url: str) -> None:
    assert smoke.get(f"{url}/x").status_code == 200


def disappointed(url: str) -> None:
    assert smoke.get(f"{url}/x").content == b"a song", "no song"


def test_the_exit_code_says_whether_all_passed(
    empty_server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", f"{empty_server}/"])
    assert smoke.run("command", {"__doc__": "", "test_asked": asked, "other": disappointed}) == 0
    assert "1 of 1 passed" in capsys.readouterr().out
    assert smoke.run("command", {"__doc__": "", "test_asked": asked, "test_song": disappointed}) == 1
    said = capsys.readouterr().out
    assert "1 of 2 passed; failed: test_song" in said
    assert "AssertionError: no song" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_runs_from_anywhere_and_says_when_nothing_answers(command: str, tmp_path: Path) -> None:
    script = Path(smoke.__file__).with_name(f"{command}.py")
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    ran = subprocess.run([sys.executable, script, url], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout == f"{command}: nothing answers at {url}; start a server with `serinette up`\n"
