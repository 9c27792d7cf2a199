"""A checkpoint under an object-store prefix, on a real SeaweedFS: brought once, whole, and noticed when it changes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from gpu_worker.engine.checkpoints import downloading
from gpu_worker.engine.checkpoints.downloading import fetch, files_under, spans
from gpu_worker.engine.checkpoints.locating import revision_of
from gpu_worker.engine.interface import SongRequest
from gpu_worker.engine.loading import load
from gpu_worker.settings import WorkerSettings
from serinette.checkpoints import fetched_of
from serinette.errors import ConfigurationError, StoreUnavailable
from serinette.job import Stage
from serinette.spec import GenerationSpec
from serinette.store import Store, StoredObject
from tests import servers
from tests.tiny_checkpoint import engine_of
from tests.unit.test_engine_adapters import adapter


@pytest.fixture
def settings(s3: servers.S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_turbo: Path) -> WorkerSettings:
    """A small checkpoint, uploaded under a prefix of its own."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    prefix = f"models/{uuid4().hex}/tiny-turbo"
    given = WorkerSettings(
        model=f"s3://{servers.BUCKET}/{prefix}", model_endpoint=s3.endpoint, work_dir=tmp_path, threads=1
    )
    for path in tiny_turbo.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            bucket(given).put(f"{prefix}/{path.relative_to(tiny_turbo)}", path)
    return given


def bucket(settings: WorkerSettings) -> Store:
    return Store.open(
        settings.model_copy(update={"store_url": f"s3://{servers.BUCKET}", "store_endpoint": settings.model_endpoint})
    )


def key(settings: WorkerSettings, name: str) -> str:
    return f"{settings.model.removeprefix(f's3://{servers.BUCKET}/')}/{name}"


def test_it_is_loaded_from_there(settings: WorkerSettings, tiny_turbo: Path) -> None:
    engine = load(settings)
    assert engine.model.name == "tiny-turbo"
    assert engine.model.revision == revision_of(tiny_turbo)


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


def test_what_a_dead_process_left_half_done_is_deleted(settings: WorkerSettings, tmp_path: Path) -> None:
    whole = fetch(settings, settings.model, tmp_path / "first")
    partial = tmp_path / "second" / f".{whole.name}.partial"
    partial.mkdir(parents=True)
    (partial / "stray").touch()
    again = fetch(settings, settings.model, tmp_path / "second")
    assert again.name == whole.name
    assert not (again / "stray").exists()
    assert revision_of(again) == revision_of(whole)


@pytest.mark.parametrize("right", [True, False])
def test_checksums_beside_it_are_checked(
    settings: WorkerSettings, tiny_turbo: Path, tmp_path: Path, right: bool
) -> None:
    digest = hashlib.sha256((tiny_turbo / "vae/config.json").read_bytes()).hexdigest() if right else "0" * 64
    bucket(settings).put(key(settings, "SHA256SUMS"), f"{digest}  ./vae/config.json\n".encode())
    if right:
        assert fetch(settings, settings.model, tmp_path / "checkpoints").is_dir()
        return
    with pytest.raises(ConfigurationError, match=r"vae/config\.json: its SHA-256 differs from SHA256SUMS"):
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
    assert spans(sizes, span_bytes=4) == parts


def test_objects_that_stand_for_folders_are_no_files() -> None:
    """As a store's console makes them: empty, and named as the folder. A file of that name would be in its way."""
    keys = ["models/turbo/", "models/turbo/vae", "models/turbo/vae/config.json", "models/turbo/empty"]
    keys += ["models/turbo", "models/turbo/.cache/x"]
    now = datetime.now(UTC)
    found = [StoredObject(key, 0 if "config" not in key else 9, None, now) for key in keys]
    assert list(files_under("models/turbo", found)) == ["vae/config.json", "empty"]


def test_spans_make_the_file_again(
    settings: WorkerSettings, tiny_turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "spans", partial(spans, span_bytes=100_000))
    pieces: list[str] = []
    fetched = fetch(settings, settings.model, tmp_path, lambda: pieces.append("one more"))
    assert revision_of(fetched) == revision_of(tiny_turbo)
    assert len(pieces) > 10


def test_an_interrupted_download_goes_on_where_it_stopped(
    settings: WorkerSettings, tiny_turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloading, "spans", partial(spans, span_bytes=100_000))
    pieces: list[str] = []

    def interrupt() -> None:
        pieces.append("one more")
        if len(pieces) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(settings, settings.model, tmp_path, interrupt)
    done_bytes, size_bytes = fetched_of(tmp_path, [settings.model])
    assert 0 < done_bytes < size_bytes
    came = len((next(tmp_path.glob(".*.partial")) / ".spans").read_text().splitlines())
    assert came >= 8
    again: list[str] = []
    fetched = fetch(settings, settings.model, tmp_path, lambda: again.append("one more"))
    assert revision_of(fetched) == revision_of(tiny_turbo)
    sizes = {
        str(file): file.stat().st_size for file in fetched.rglob("*") if file.is_file() and ".s" not in file.name[:2]
    }
    assert came + len(again) == len(spans(sizes, span_bytes=100_000))
    assert fetched_of(tmp_path, [settings.model]).whole


def test_a_lora_that_is_downloaded_for_long_is_no_silence(
    settings: WorkerSettings, s3: servers.S3, tiny_turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports come as it downloads: a slot takes an engine that says nothing for one that hangs."""
    place = adapter(tiny_turbo, tmp_path / "lora", seed=1)
    prefix = f"loras/{uuid4().hex}"
    for file in place.iterdir():
        bucket(settings).put(f"{prefix}/{file.name}", file)
    monkeypatch.setattr(downloading, "spans", partial(spans, span_bytes=1_000))
    engine = engine_of(
        tiny_turbo,
        work_dir=tmp_path,
        store_url=f"s3://{servers.BUCKET}",
        store_endpoint=s3.endpoint,
        loras={"far": f"s3://{servers.BUCKET}/{prefix}"},
    )
    reported: list[Stage] = []

    def observe(stage: Stage, step: int | None, steps: int | None) -> frozenset[int]:
        reported.append(stage)
        return frozenset()

    engine.generate_all([SongRequest(GenerationSpec(lora="far", duration_s=1.0, steps=1), 1)], observe)
    assert reported[: reported.index(Stage.DENOISING)].count(Stage.CONDITIONING) > 5


def test_nothing_there(settings: WorkerSettings, tmp_path: Path) -> None:
    empty = settings.model_copy(update={"model": f"s3://{servers.BUCKET}/models/nobody"})
    with pytest.raises(ConfigurationError, match="holds nothing under this prefix"):
        fetch(empty, empty.model, tmp_path)


def test_a_store_that_is_away(settings: WorkerSettings, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    away = settings.model_copy(update={"model_endpoint": f"http://127.0.0.1:{port}"})
    with pytest.raises(StoreUnavailable):
        fetch(away, away.model, tmp_path)


def test_a_model_s_store_has_credentials_of_its_own(
    settings: WorkerSettings, s3: servers.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in the environment are the songs' store's, as a chart's own SeaweedFS has them."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-another-store")
    with pytest.raises(StoreUnavailable):
        fetch(settings, settings.model, tmp_path)
    directory = tmp_path / "credentials"
    directory.mkdir()
    for name, value in s3.environment.items():
        (directory / name).write_text(f"{value}\n")
    given = settings.model_copy(update={"model_credentials_dir": directory})
    assert fetch(given, given.model, tmp_path).is_dir()
