"""What the hub refuses is explained: a hub of our own on the loopback, and the real client of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError

# What the hub says in X-Error-Code, by the repository's name.
CODES = {"missing": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "broken": (500, "")}
_ASK = """
import sys
from pathlib import Path
from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
for model in sys.argv[2:]:
    try:
        locate(WorkerSettings(model=model, work_dir=Path(sys.argv[1])))
    except ConfigurationError as error:
        print(error.message.replace("\\n", " "))
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one repository, in ACE-Step's own layout."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if "/unheard-of/" in self.path and "/resolve/" in self.path:
            self._say(200, "", json.dumps({"_class_name": "UnheardOfPipeline", "vae": ["diffusers", "X"]}).encode())
        elif "/resolve/" in self.path:
            self._say(404, "EntryNotFound")
        elif "nowhere" in self.path:
            self._say(404, "RevisionNotFound")
        elif refused := next((code for name, code in CODES.items() if f"/{name}" in self.path), None):
            self._say(*refused)
        else:
            files = ["acestep-v15-turbo/config.json", "vae/config.json"]
            if "unheard-of" in self.path:
                files = ["model_index.json", "vae/config.json"]
            reported = {"id": "owner/original", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in files]}
            self._say(200, "", json.dumps(reported).encode())

    def _say(self, status: int, code: str, body: bytes = b"{}") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", '"tag"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_each_refusal_says_what_it_is_and_what_to_do(hub: str, tmp_path: Path) -> None:
    asked = {
        "owner/original": "serinette convert",
        "owner/original@nowhere": "no such revision",
        "owner/missing": "no such repository",
        "owner/gated": "accept them on its page",
        "owner/broken": "try again later",
        "owner/unheard-of": "names a pipeline that diffusers does not have",
    }
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _ASK, str(tmp_path), *asked],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    reported = done.stdout.splitlines()
    assert len(reported) == len(asked), done.stderr
    for (model, words), line in zip(asked.items(), reported, strict=True):
        assert line.startswith(f"model {model.partition('@')[0]}: ")
        assert words in line, line


def test_a_full_disk_is_no_fault_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gpu_worker.engine.checkpoints.locating.DiffusionPipeline.download", download)
    with pytest.raises(ConfigurationError, match="model owner/large: the disk is full; free space"):
        locate(WorkerSettings(model="owner/large", work_dir=tmp_path))
