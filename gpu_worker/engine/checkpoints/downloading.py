"""Checkpoints from an object store, downloaded below the worker's own directory once and whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from urllib.parse import urlsplit

from gpu_worker.settings import WorkerSettings
from serinette.checkpoints import CheckpointFiles, note_files
from serinette.errors import ConfigurationError, RequestError
from serinette.store import Store, StoredObject

log = logging.getLogger(__name__)

# Written by `sha256sum` beside the checkpoint; checked when it is there.
_CHECKSUMS = "SHA256SUMS"
_DOWNLOADS_AT_ONCE = 8
SPAN_BYTES = 64 * 1024**2


def fetch(settings: WorkerSettings, place: str, directory: Path, alive: Callable[[], object] = lambda: None) -> Path:
    """The checkpoint or adapter under the URL `place`, as a directory below `directory`.

    Another version under the same URL (other sizes or ETags) gets another directory. `alive` is called as pieces come.
    An interrupted one goes on where it stopped.

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
        files = files_under(prefix, found)
        if not files:
            raise ConfigurationError(f"{place}: the store holds nothing under this prefix")
        version = hashlib.sha256(repr([(place, f.key, f.size_bytes, f.etag) for f in found]).encode())
        target = directory / f"{prefix.rpartition('/')[2]}-{version.hexdigest()[:16]}"
        sizes = {name: stored.size_bytes for name, stored in files.items()}
        note_files(
            directory, CheckpointFiles(model=place, directory=target, incoming=partial_of(target), sizes_bytes=sizes)
        )
        return publish(target, partial(_download, store, files, alive), resumes=True)
    except RequestError as error:
        raise ConfigurationError(f"{place}: {error.message}") from error


def files_under(prefix: str, found: Sequence[StoredObject]) -> dict[str, StoredObject]:
    """What lies under a prefix, by its name below it; without hidden files, and without the empty objects that consoles
    make in place of folders.
    """
    names = {stored.key.removeprefix(f"{prefix}/"): stored for stored in found if stored.key.strip("/") != prefix}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    return {
        name: stored
        for name, stored in names.items()
        if not hidden(PurePosixPath(name)) and name.strip("/") not in folders
    }


def _open(settings: WorkerSettings, root: str) -> Store:
    endpoint = settings.model_endpoint
    if endpoint is None and urlsplit(settings.store_url).scheme == urlsplit(root).scheme:
        endpoint = settings.store_endpoint
    update = {"store_url": root, "store_endpoint": endpoint, "store_public_endpoint": None}
    directory = settings.model_credentials_dir
    files = [path for path in directory.iterdir() if path.is_file()] if directory else []
    credentials = {path.name: path.read_text().strip() for path in files}
    return Store.open(settings.model_copy(update=update), credentials)


def _download(store: Store, files: dict[str, StoredObject], alive: Callable[[], object], target: Path) -> None:
    def read(name: str, path: Path, span: tuple[int, int]) -> None:
        store.download(files[name].key, path, span=span)

    fetch_spans(target, {name: stored.size_bytes for name, stored in files.items()}, read, alive)
    try:
        for name, stored in files.items():
            _check_whole(store, stored, target / name)
        _check_sums(target)
        forget_spans(target)
    except ConfigurationError:
        shutil.rmtree(target)  # the next try begins anew
        raise


# Which spans are on the disk, a line for each; a file's length says nothing, as spans come in any order.
_JOURNAL = ".spans"


def fetch_spans(
    directory: Path,
    sizes: Mapping[str, int],
    read: Callable[[str, Path, tuple[int, int]], object],
    alive: Callable[[], object] = lambda: None,
) -> bool:
    """Make `directory` hold files of these sizes in bytes, several spans at a time, and no others. Those that came
    before an interruption are not fetched again, until `forget_spans`. Returns whether there were any.

    `read`: writes a span of the file of a name to its place in a file that exists. Raises whatever it raises, and
    OSError when the disk refuses or has no room for all.
    """
    journal = directory / _JOURNAL
    lines = set(journal.read_text().splitlines()) if journal.exists() else set()
    came = {span for span in spans(sizes) if repr(span) in lines and (directory / span[0]).exists()}
    pending = [span for span in spans(sizes) if span not in came]
    # Of a file that another version of the checkpoint removed it must say nothing once that file is made anew.
    rewritten = directory / f"{_JOURNAL}.new"
    rewritten.write_text("".join(f"{span!r}\n" for span in came))
    rewritten.replace(journal)
    _make_room(directory, sizes, sum(end - start for _, start, end in pending))
    log.info("downloading %d files, %.2f GB", len(sizes), sum(end - start for _, start, end in pending) / 1e9)
    with journal.open("a") as noted, ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:

        def one(span: tuple[str, int, int]) -> None:
            name, start, end = span
            read(name, directory / name, (start, end))
            with (directory / name).open("rb") as file:
                os.fdatasync(file.fileno())
            os.write(noted.fileno(), f"{span!r}\n".encode())  # whole, or not at all

        for _ in pool.map(one, pending):
            alive()
    return bool(came)


def forget_spans(directory: Path) -> None:
    """Whatever came is used, or of no use: the next fetch into this directory begins anew."""
    (directory / _JOURNAL).unlink()


def _make_room(directory: Path, sizes: Mapping[str, int], pending_bytes: int) -> None:
    for path in [path for path in directory.rglob("*") if path.is_file()]:
        if path.name != _JOURNAL and str(path.relative_to(directory)) not in sizes:
            path.unlink()
    if pending_bytes > (free_bytes := shutil.disk_usage(directory).free):
        words = f"{pending_bytes / 1e9:.2f} GB are to come, and {free_bytes / 1e9:.2f} GB are free in {directory}"
        raise OSError(errno.ENOSPC, words)
    for name in sizes:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def spans(sizes: Mapping[str, int], span_bytes: int = SPAN_BYTES) -> list[tuple[str, int, int]]:
    """What to ask for at a time, a file's bytes from the first number to before the second: a large file comes in many
    spans at once, as one connection fills no fast network.
    """
    return [
        (name, start, min(start + span_bytes, size))
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
        if digest(directory / name.strip().removeprefix("*").removeprefix("./")) != expected:
            raise ConfigurationError(f"{name.strip()}: its SHA-256 differs from {_CHECKSUMS}; upload it again")


def digest(path: Path) -> str:
    """A file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hidden(path: PurePath) -> bool:
    """Whether a part of a relative path begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def publish(directory: Path, build: Callable[[Path], None], *, resumes: bool = False) -> Path:
    """Answer `directory`, made by `build` in a neighbour and renamed if it is not there yet: it is there whole, or not.

    One process builds, others wait for it; what a process that died left half done is thrown away, or given to a
    `build` that `resumes`. Raises whatever `build` raises, and OSError when the disk refuses.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(directory)
    with directory.with_name(f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory
        if not resumes:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(exist_ok=True)
        build(partial)
        partial.rename(directory)
    return directory


def partial_of(directory: Path) -> Path:
    """Where `publish` makes a directory."""
    return directory.with_name(f".{directory.name}.partial")
