"""Where a checkpoint or an adapter is on the local disk: found, unpacked or downloaded, and its revision."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpu_worker.bundled import ARCHIVE, PLANNER_ARCHIVE
from gpu_worker.engine.checkpoints.downloading import digest, fetch, hidden, publish
from gpu_worker.engine.checkpoints.hub import HubRefusal, fetch_pipeline, fetch_planner
from gpu_worker.engine.interface import Checkpoint
from gpu_worker.planner.loading import planner_in
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError

log = logging.getLogger(__name__)

_REVISION_CACHE = ".serinette-revision.json"
_OTHER_PLACES = "a hub id (owner/name) nor a URL (s3://, gs://, az://, file://)"
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")


def locate(settings: WorkerSettings, check: Callable[[Path], object] = lambda _: None) -> Checkpoint:
    """The checkpoint that `settings.model` names, on this machine's disk: found, unpacked or downloaded.

    `check`: raises where a directory's `model_index.json` is of no use, before gigabytes of the hub's come.

    Raises:
        ConfigurationError: there is none, or it cannot be had.
        StoreUnavailable: the object store that holds it does not answer.
    """
    checkpoints = settings.work_dir / "checkpoints"
    try:
        if settings.model == "bundled":
            return bundled_checkpoint(checkpoints)
        if directory := _directory(settings, settings.model, checkpoints):
            return Checkpoint(directory, _path(settings.model).name, revision_of(directory))
        if hub := _HUB_ID.fullmatch(settings.model):
            snapshot = fetch_pipeline(hub["id"], hub["revision"], checkpoints, settings.model, check)
            return Checkpoint(snapshot, hub["id"].partition("/")[2], snapshot.name)
    except HubRefusal as error:
        raise ConfigurationError(f"model {settings.model}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {settings.model}: cannot be fetched: {_first_line(error)}") from error
    raise ConfigurationError(f"model {settings.model}: no such directory, and neither `bundled`, {_OTHER_PLACES}")


def planner_directory(settings: WorkerSettings, checkpoint: Checkpoint) -> Path | None:
    """Where the planner of `settings` is on this machine's disk, or that of the checkpoint; None for no planner.

    Raises:
        ConfigurationError: there is none where there should be one.
        StoreUnavailable: the object store that holds it does not answer.
    """
    place = settings.planner_model or ("bundled" if settings.model == "bundled" else None)
    if place is None:
        return planner_in(checkpoint.directory)
    if place == "none":
        return None
    below = settings.work_dir / "checkpoints"
    try:
        if place == "bundled":
            return _unpacked(PLANNER_ARCHIVE, below, "bundled-planner")
        if directory := _directory(settings, place, below):
            return directory
        if hub := _HUB_ID.fullmatch(place):
            return fetch_planner(hub["id"], hub["revision"], below, place)
    except HubRefusal as error:
        raise ConfigurationError(f"planner_model {place}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"planner_model {place}: cannot be fetched: {_first_line(error)}") from error
    raise ConfigurationError(
        f"planner_model {place}: no such directory, and neither `bundled`, `none`, {_OTHER_PLACES}"
    )


def adapter_directory(settings: WorkerSettings, place: str, alive: Callable[[], object] = lambda: None) -> Path:
    """The directory of the adapter at `place`, on this machine's disk; `alive` as for `fetch`.

    Raises:
        ConfigurationError: there is none.
        StoreUnavailable: the object store that holds it does not answer.
    """
    if directory := _directory(settings, place, settings.work_dir / "loras", alive):
        return directory
    raise ConfigurationError(f"{place}: no such directory")


def _directory(
    settings: WorkerSettings, place: str, below: Path, alive: Callable[[], object] = lambda: None
) -> Path | None:
    """Where `place`, a path or URL, is on this machine's disk: what a store holds is downloaded below a directory."""
    if urlsplit(place).scheme in {"s3", "gs", "az"}:
        return fetch(settings, place, below, alive)
    directory = _path(place)
    return directory if directory.is_dir() else None


def _path(place: str) -> Path:
    url = urlsplit(place)
    return Path(unquote(url.path)) if url.scheme == "file" else Path(place).expanduser()


def bundled_checkpoint(directory: Path) -> Checkpoint:
    """The bundled checkpoint, unpacked below `directory` on first use.

    Raises:
        OSError: the directory cannot be written.
    """
    return Checkpoint(_unpacked(ARCHIVE, directory, "bundled"), "bundled", digest(ARCHIVE))


def _unpacked(path: Path, directory: Path, name: str) -> Path:
    with zipfile.ZipFile(path) as archive:
        return publish(directory / f"{name}-{digest(path)[:16]}", archive.extractall)


def revision_of(directory: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files, hidden ones aside. A job's result has it, so that a
    song can be generated again.

    Kept beside them with their sizes and times, so that the gigabytes are read once. Raises OSError.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not hidden(path.relative_to(directory)))
    seen = {str(path.relative_to(directory)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    with suppress(OSError, ValueError, LookupError, TypeError):
        known = json.loads((directory / _REVISION_CACHE).read_text())
        if known["files"] == seen:
            return str(known["revision"])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, files))
    whole = hashlib.sha256()
    for name, sha256 in zip(seen, digests, strict=True):
        whole.update(f"{name}\0{sha256}\n".encode())
    revision = whole.hexdigest()
    try:
        (directory / _REVISION_CACHE).write_text(json.dumps({"revision": revision, "files": seen}))
    except OSError as error:
        log.info("the checkpoint's revision cannot be kept beside it (%s): it is computed at every start", error)
    return revision


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
