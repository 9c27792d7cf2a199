"""A checkpoint under an object-store prefix, on a real SeaweedFS: brought once, whole, and noticed when it changes."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from gpu_worker.engine import fetching
from gpu_worker.engine.checkpoint import build
from gpu_worker.engine.fetching import fetch, spans
from gpu_worker.engine.loading import load
from gpu_worker.engine.revision import revision_of
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError, StoreUnavailable
from serinette.store import Store
from tests import servers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    build(directory, turbo=True)
    return directory


@pytest.fixture
def settings(s3: servers.S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Path) -> WorkerSettings:
    """A small checkpoint, uploaded under a prefix of its own."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = f"models/{uuid4().hex}/tiny-turbo"
    given = WorkerSettings(
        model=f"s3://{servers.BUCKET}/{prefix}", model_endpoint=s3.endpoint, work_dir=tmp_path, threads=1
    )
    for path in tiny.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            bucket(given).put(f"{prefix}/{path.relative_to(tiny)}", path)
    return given


def bucket(settings: WorkerSettings) -> Store:
    return Store.open(
        settings.model_copy(update={"store_url": f"s3://{servers.BUCKET}", "store_endpoint": settings.model_endpoint})
    )


def key(settings: WorkerSettings, name: str) -> str:
    return f"{settings.model.removeprefix(f's3://{servers.BUCKET}/')}/{name}"


def test_it_is_loaded_from_there(settings: WorkerSettings, tiny: Path) -> None:
    engine = load(settings)
    assert engine.model.name == "tiny-turbo"
    assert engine.model.revision == revision_of(tiny)


def test_it_is_brought_once_and_again_when_it_changes(settings: WorkerSettings, tmp_path: Path) -> None:
    first = fetch(settings, settings.model, tmp_path / "checkpoints")
    before = (first / "model_index.json").stat().st_ino
    assert fetch(settings, settings.model, tmp_path / "checkpoints") == first
    assert (first / "model_index.json").stat().st_ino == before

    bucket(settings).put(key(settings, "README.md"), b"another version")
    second = fetch(settings, settings.model, tmp_path / "checkpoints")
    assert second != first
    assert (second / "README.md").read_text() == "another version"
    assert not (first / "README.md").exists()


def test_what_a_dead_process_left_half_done_is_thrown_away(settings: WorkerSettings, tmp_path: Path) -> None:
    whole = fetch(settings, settings.model, tmp_path / "first")
    partial = tmp_path / "second" / f".{whole.name}.partial"
    partial.mkdir(parents=True)
    (partial / "stray").touch()
    again = fetch(settings, settings.model, tmp_path / "second")
    assert again.name == whole.name
    assert not (again / "stray").exists()
    assert revision_of(again) == revision_of(whole)


@pytest.mark.parametrize("right", [True, False])
def test_checksums_beside_it_are_checked(settings: WorkerSettings, tiny: Path, tmp_path: Path, right: bool) -> None:
    digest = hashlib.sha256((tiny / "vae/config.json").read_bytes()).hexdigest() if right else "0" * 64
    bucket(settings).put(key(settings, "SHA256SUMS"), f"{digest}  ./vae/config.json\n".encode())
    if right:
        assert fetch(settings, settings.model, tmp_path / "checkpoints").is_dir()
        return
    with pytest.raises(ConfigurationError, match=r"vae/config\.json: its SHA-256 is not the one in SHA256SUMS"):
        fetch(settings, settings.model, tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({}, []),
        ({"empty": 0}, []),
        ({"a": 4, "b": 9}, [("a", 0, 4), ("b", 0, 4), ("b", 4, 8), ("b", 8, 9)]),
    ],
)
def test_large_files_come_in_spans(sizes: dict[str, int], parts: list[tuple[str, int, int]]) -> None:
    assert [(span.name, span.start, span.end) for span in spans(sizes, span_bytes=4)] == parts


def test_spans_make_the_file_again(
    settings: WorkerSettings, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "spans", partial(spans, span_bytes=100_000))
    assert revision_of(fetch(settings, settings.model, tmp_path)) == revision_of(tiny)


def test_nothing_there(settings: WorkerSettings, tmp_path: Path) -> None:
    empty = settings.model_copy(update={"model": f"s3://{servers.BUCKET}/models/nobody"})
    with pytest.raises(ConfigurationError, match="holds nothing under this prefix"):
        fetch(empty, empty.model, tmp_path)


def test_a_store_that_is_away(settings: WorkerSettings, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    away = settings.model_copy(update={"model_endpoint": f"http://127.0.0.1:{port}"})
    with pytest.raises(StoreUnavailable):
        fetch(away, away.model, tmp_path)
