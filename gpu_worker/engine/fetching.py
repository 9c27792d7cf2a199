"""Checkpoints from an object store, brought below the worker's own directory once and whole."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from gpu_worker.engine.publishing import publish
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError, RequestError
from serinette.store import Store, StoredObject

log = logging.getLogger(__name__)

# Written by `sha256sum` beside the checkpoint; checked when it is there.
_CHECKSUMS = "SHA256SUMS"
_DOWNLOADS_AT_ONCE = 8
_SPAN_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end` (exclusive) of one file."""

    name: str
    start: int
    end: int


def fetch(settings: WorkerSettings, place: str, directory: Path) -> Path:
    """The checkpoint or adapter under the URL `place`, as a directory below `directory`.

    Another version under the same URL (other sizes or ETags) gets another directory.

    Raises:
        ConfigurationError: nothing lies there, or what came is not what the store or SHA256SUMS announced.
        StoreUnavailable: the store does not answer.
    """
    url = urlsplit(place)
    prefix = url.path.strip("/")
    if not prefix:
        raise ConfigurationError(f"{place}: name the prefix too, e.g. {place}/turbo")
    store = _open(settings, f"{url.scheme}://{url.netloc}")
    try:
        found = sorted(store.list(prefix), key=lambda stored: stored.key)
        files = {stored.key.removeprefix(f"{prefix}/"): stored for stored in found}
        files = {name: stored for name, stored in files.items() if not _hidden(name)}
        if not files:
            raise ConfigurationError(f"{place}: the store holds nothing under this prefix")
        version = hashlib.sha256(repr([(place, f.key, f.size_bytes, f.etag) for f in found]).encode())
        target = directory / f"{prefix.rpartition('/')[2]}-{version.hexdigest()[:16]}"
        return publish(target, partial(_download, store, files))
    except RequestError as error:
        raise ConfigurationError(f"{place}: {error.message}") from error


def _open(settings: WorkerSettings, root: str) -> Store:
    endpoint = settings.model_endpoint
    if endpoint is None and urlsplit(settings.store_url).scheme == urlsplit(root).scheme:
        endpoint = settings.store_endpoint
    update = {"store_url": root, "store_endpoint": endpoint, "store_public_endpoint": None}
    return Store.open(settings.model_copy(update=update))


def _download(store: Store, files: dict[str, StoredObject], target: Path) -> None:
    size_gb = sum(stored.size_bytes for stored in files.values()) / 1e9
    log.info("downloading %d files, %.2f GB", len(files), size_gb)

    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).touch()

    def one(span: Span) -> None:
        store.download(files[span.name].key, target / span.name, span=(span.start, span.end))

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        list(pool.map(one, spans({name: stored.size_bytes for name, stored in files.items()})))
    for name, stored in files.items():
        _check_whole(store, stored, target / name)
    _check_sums(target)


def spans(sizes: Mapping[str, int], span_bytes: int = _SPAN_BYTES) -> list[Span]:
    """What to ask for at a time: a large file comes in many spans at once, as one connection fills no fast network."""
    return [
        Span(name, start, min(start + span_bytes, size))
        for name, size in sizes.items()
        for start in range(0, size, span_bytes)
    ]


def _check_whole(store: Store, stored: StoredObject, path: Path) -> None:
    """Of a file that is replaced meanwhile, half the spans would be the old one's."""
    came_bytes = path.stat().st_size
    if came_bytes != stored.size_bytes or store.head(stored.key).etag != stored.etag:
        raise ConfigurationError(
            f"{stored.key}: {came_bytes} bytes came of {stored.size_bytes}, or it was replaced during the download; "
            "start again"
        )


def _check_sums(directory: Path) -> None:
    sums = directory / _CHECKSUMS
    if not sums.exists():
        return
    for line in sums.read_text().splitlines():
        expected, _, name = line.partition(" ")
        path = directory / name.strip().removeprefix("*").removeprefix("./")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise ConfigurationError(f"{name.strip()}: its SHA-256 is not the one in {_CHECKSUMS}; upload it again")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
