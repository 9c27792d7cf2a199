"""What the hub gives is fetched on from where it stopped, and what it refuses is explained: hubs of our own on the
loopback, and the real client of them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from gpu_worker.engine.checkpoints import downloading
from gpu_worker.engine.checkpoints import hub as hub_client
from gpu_worker.engine.checkpoints.downloading import spans
from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.engine.loading import family_of
from gpu_worker.settings import WorkerSettings
from serinette.checkpoints import fetched_of
from serinette.errors import ConfigurationError

# What the hub says in X-Error-Code, by the repository's name.
CODES = {"missing": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "broken": (500, "")}


class Hub(BaseHTTPRequestHandler):
    """Knows two repositories, one in ACE-Step's own layout."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if "nowhere" in self.path:
            self._say(404, "RevisionNotFound")
        elif refused := next((code for name, code in CODES.items() if f"/{name}" in self.path), None):
            self._say(*refused)
        elif "/unheard-of/" in self.path:
            self._say(200, "", json.dumps({"_class_name": "UnheardOfPipeline", "vae": ["diffusers", "X"]}).encode())
        else:
            self._say(404, "EntryNotFound")

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


@contextmanager
def served(handler: type[BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    """The hub of the process's client is ours, and its cache empty."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("owner/original", "model owner/original: .*serinette convert"),
        ("owner/original@nowhere", "model owner/original@nowhere: .*no such revision"),
        ("owner/missing", "model owner/missing: .*no such repository"),
        ("owner/gated", "model owner/gated: .*accept them on its page"),
        ("owner/broken", "model owner/broken: .*try again later"),
        ("owner/unheard-of", "names a UnheardOfPipeline; what can be loaded is AceStepPipeline"),
    ],
)
def test_each_refusal_says_what_it_is_and_what_to_do(
    model: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries a broken hub again
    with served(Hub, monkeypatch, tmp_path / "hub"), pytest.raises(ConfigurationError, match=words):
        locate(WorkerSettings(model=model, work_dir=tmp_path), family_of)


def test_a_full_disk_is_no_fault_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gpu_worker.engine.checkpoints.hub.hf_hub_download", download)
    with pytest.raises(ConfigurationError, match="model owner/large: the disk is full; free space"):
        locate(WorkerSettings(model="owner/large", work_dir=tmp_path))


MODEL = "owner/music"
COMMIT = "c" * 40
LARGE = bytes(range(251)) * 4_000  # beyond a span as the tests have them, of no period that a span has
FILES = {
    "model_index.json": json.dumps(
        {
            "_class_name": "AceStepPipeline",
            "transformer": ["diffusers", "X"],
            "vae": ["diffusers", "Y"],
            "extra": [None, None],
        }
    ).encode(),
    "transformer/model.safetensors": LARGE,
    "transformer/model.fp16.safetensors": b"the same in another type",
    "transformer/config.json": b"{}",
    "vae/model.safetensors": b"small",
    "vae/pickled.bin": b"never opened",
    "extra/model.safetensors": b"no part of it",
    "README.md": b"of no use",
}


class WholeHub(BaseHTTPRequestHandler):
    """Gives one repository, in the shapes that the hub's client asks for; large files as their SHA-256 alone names."""

    spans: ClassVar[list[str]]  # of the large file, as asked for
    spans_left: ClassVar[int]  # of it, before the hub goes away
    cuts: ClassVar[Iterator[bool]]  # whether the next breaks off in its middle
    knows_spans: ClassVar[bool] = True
    refused: ClassVar[tuple[int, str] | None] = None  # what the next span is refused with: status and X-Error-Code
    shifted: ClassVar[bool] = False  # gives other bytes than were asked for, and says which
    surplus: ClassVar[bytes] = b""  # what comes behind a span
    elsewhere: ClassVar[str] = ""  # the server to which spans are redirected
    tokens: ClassVar[list[str]]  # that came with the spans

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            self._say(200, json.dumps([self._entry(name, content) for name, content in FILES.items()]).encode())
        elif path.startswith(f"/api/models/{MODEL}"):
            files = [{"rfilename": name} for name in FILES]
            self._say(200, json.dumps({"id": MODEL, "sha": COMMIT, "siblings": files}).encode())
        else:
            self._file(path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}} if name.endswith("safetensors") else {}
        return {"type": "file", "path": name, "size": len(content), "oid": sha256[:40], **lfs}

    def _file(self, name: str) -> None:
        content, asked = FILES[name], self.headers.get("Range", "")
        if content is LARGE and self.command == "GET":
            type(self).spans.append(asked)
            type(self).spans_left -= 1
            self.tokens.append(self.headers.get("Authorization", ""))
            if self.spans_left < 0:
                self._say(404, b"{}")  # no error that the client waits for
                return
            if refused := self.refused:
                type(self).refused = None if refused[0] == 429 else refused
                self._say(refused[0], b"{}", **{"X-Error-Code": refused[1]})
                return
            if self.elsewhere and asked:
                self._say(302, b"", Location=self.elsewhere + self.path)
                return
        asked = asked if self.knows_spans else ""
        status, given = 206 if asked else 200, dict[str, str]()
        if asked:
            start, end = (int(place) + self.shifted for place in asked.removeprefix("bytes=").split("-"))
            content = content[start : end + 1]
            given = {"Content-Range": f"bytes {start}-{end}/{len(FILES[name])}"}
            content += self.surplus if FILES[name] is LARGE else b""
        if FILES[name] is LARGE and self.command == "GET" and next(self.cuts, False):
            self.send_response(status)
            for header, value in {"Content-Length": str(len(content)), **given}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content[:1_000])
            return
        sha256 = hashlib.sha256(FILES[name]).hexdigest()
        self._say(status, content, sha256 if name.endswith("safetensors") else sha256[:40], **given)

    def _say(self, status: int, body: bytes, etag: str = "tag", **more: str) -> None:
        self.send_response(status)
        known = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Length": str(len(body))}
        for header, value in {**known, **more}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def whole_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[WholeHub]]:
    class Ours(WholeHub):
        spans: ClassVar = []
        spans_left: ClassVar = 1_000
        cuts: ClassVar = iter(())
        tokens: ClassVar = []

    monkeypatch.setattr(hub_client, "SPAN_BYTES", 100_000)
    monkeypatch.setattr(downloading, "spans", partial(spans, span_bytes=100_000))
    with served(Ours, monkeypatch, tmp_path / "hub"):
        yield Ours


def come(work_dir: Path) -> tuple[int, int]:
    done_bytes, size_bytes = fetched_of(work_dir / "checkpoints", [MODEL])
    return done_bytes // 100_000, size_bytes


SIZE = sum(len(FILES[name]) for name in FILES if name.startswith(("model_index", "transformer/", "vae/model")))
SIZE -= len(FILES["transformer/model.fp16.safetensors"])


def test_the_parts_of_a_pipeline_come_and_nothing_else(whole_hub: type[WholeHub], tmp_path: Path) -> None:
    seen: list[list[str]] = []
    settings = WorkerSettings(model=MODEL, work_dir=tmp_path)
    found = locate(settings, lambda directory: seen.append([file.name for file in directory.rglob("*")]))
    assert seen == [["model_index.json"]], "checked before gigabytes come"
    assert (found.name, found.revision) == ("music", COMMIT)
    names = {str(file.relative_to(found.directory)) for file in found.directory.rglob("*") if file.is_file()}
    assert names == {
        "model_index.json",
        "transformer/model.safetensors",
        "transformer/config.json",
        "vae/model.safetensors",
    }
    assert (found.directory / "transformer/model.safetensors").read_bytes() == LARGE
    assert len(whole_hub.spans) == 11, "once, in spans"
    assert come(tmp_path) == (SIZE // 100_000, SIZE)
    locate(settings)
    assert len(whole_hub.spans) == 11, "it is in the cache"


@pytest.mark.parametrize("spoiled", [False, True])
def test_an_interrupted_fetch_goes_on_where_it_stopped(
    whole_hub: type[WholeHub], tmp_path: Path, spoiled: bool
) -> None:
    settings = WorkerSettings(model=MODEL, work_dir=tmp_path)
    whole_hub.spans_left = 4
    with pytest.raises(ConfigurationError, match=rf"model {MODEL}: .*404"):
        locate(settings)
    assert come(tmp_path) == (4, SIZE)
    first = len(whole_hub.spans)
    if spoiled:  # as by a disk that lost what it said it had
        (incoming,) = (file for file in (tmp_path / "hub").rglob(".incoming/*") if not file.name.startswith("."))
        incoming.write_bytes(bytes(len(LARGE)))
    whole_hub.spans_left = 1_000
    if spoiled:
        with pytest.raises(ConfigurationError, match="do not fit; it is fetched again"):
            locate(settings)
    assert (locate(settings).directory / "transformer/model.safetensors").read_bytes() == LARGE
    assert len(whole_hub.spans) - first == (11 - 4) + (11 if spoiled else 0)


def test_what_has_come_is_not_fetched_again_when_its_check_is_cut_off(
    whole_hub: type[WholeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WorkerSettings(model=MODEL, work_dir=tmp_path)
    whole_hub.spans_left = 4
    with pytest.raises(ConfigurationError):
        locate(settings)
    whole_hub.spans_left = 1_000

    def killed(path: Path) -> str:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(hub_client, "digest", killed)
        locate(settings)
    asked = len(whole_hub.spans)
    assert (locate(settings).directory / "transformer/model.safetensors").read_bytes() == LARGE
    assert len(whole_hub.spans) == asked
    assert not list((tmp_path / "hub").rglob(".spans"))


def test_what_has_come_of_a_file_that_another_revision_removed_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "spans", partial(spans, span_bytes=10))

    def fetch(name: str, lacking: int | None = None) -> None:
        def read(name: str, path: Path, span: tuple[int, int]) -> None:
            if span[0] == lacking:
                raise OSError("cut off")
            with path.open("r+b") as file:
                file.seek(span[0])
                file.write(name.encode() * (span[1] - span[0]))

        downloading.fetch_spans(tmp_path, {name: 30}, read)

    for lacking in (20, 0):
        with pytest.raises(OSError, match="cut off"):
            fetch("a", lacking)
        if lacking:
            fetch("b")
    fetch("a")
    assert (tmp_path / "a").read_bytes() == b"a" * 30


def test_a_connection_that_breaks_off_is_opened_again(
    whole_hub: type[WholeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[float] = []
    monkeypatch.setattr("gpu_worker.engine.checkpoints.hub.time.sleep", paused.append)
    whole_hub.cuts = iter((False, True))
    found = locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert (found.directory / "transformer/model.safetensors").read_bytes() == LARGE
    assert (len(whole_hub.spans), paused) == (12, [1])


def test_a_disk_that_is_too_small_is_named_before_anything_comes(
    whole_hub: type[WholeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ConfigurationError, match=rf"model {MODEL}: the disk is full; .* GB are to come"):
        locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert whole_hub.spans == []


def test_a_mirror_without_spans_gives_files_whole(whole_hub: type[WholeHub], tmp_path: Path) -> None:
    whole_hub.knows_spans = False
    found = locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert (found.directory / "transformer/model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ((403, "GatedRepo"), "accept them on its page and set HF_TOKEN"),
        ((401, ""), "HF_TOKEN"),
        ((403, ""), "HF_TOKEN"),
        ((404, "RepoNotFound"), "no such repository"),
    ],
)
def test_a_span_that_is_refused_says_why(
    whole_hub: type[WholeHub], tmp_path: Path, refused: tuple[int, str], words: str
) -> None:
    """As a planner's are, of which no smaller file is asked for before."""
    whole_hub.refused = refused
    with pytest.raises(hub_client.HubRefusal, match=words):
        hub_client.fetch_planner(MODEL, None, tmp_path / "checkpoints", MODEL)
    assert len(set(whole_hub.spans)) == len(whole_hub.spans), "no span is asked for again"


def test_a_busy_hub_is_asked_again(whole_hub: type[WholeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_worker.engine.checkpoints.hub.time.sleep", lambda _: None)
    whole_hub.refused = (429, "")
    found = locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert (found.directory / "transformer/model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize("fault", [{"shifted": True}, {"surplus": b"more than was asked for"}])
def test_other_bytes_than_were_asked_for_are_no_part_of_a_model(
    whole_hub: type[WholeHub], tmp_path: Path, fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(whole_hub, name, value)
    with pytest.raises(ConfigurationError, match=f"model {MODEL}: .* gave "):
        locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert not [file for file in (tmp_path / "hub").rglob("blobs/*") if file.stat().st_size >= len(LARGE)]
    for name in fault:
        delattr(whole_hub, name)
    assert (locate(WorkerSettings(model=MODEL, work_dir=tmp_path)).directory / "transformer/model.safetensors").exists()


def test_the_token_is_the_hubs_alone(
    whole_hub: type[WholeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(WholeHub):
        spans: ClassVar = []
        spans_left: ClassVar = 1_000
        cuts: ClassVar = iter(())
        tokens: ClassVar = []

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub_url = constants.ENDPOINT
    with served(Elsewhere, monkeypatch, tmp_path / "hub"):
        whole_hub.elsewhere = constants.ENDPOINT
        monkeypatch.setattr(constants, "ENDPOINT", hub_url)
        template = hub_url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        found = locate(WorkerSettings(model=MODEL, work_dir=tmp_path))
    assert (found.directory / "transformer/model.safetensors").read_bytes() == LARGE
    assert (set(whole_hub.tokens), set(Elsewhere.tokens)) == ({"Bearer hf_secret"}, {""})
