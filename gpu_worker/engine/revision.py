"""Which checkpoint this is, to the bit: told in every job's result, so that a song can be made again."""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

log = logging.getLogger(__name__)

_CACHE = ".serinette-revision.json"


def revision_of(directory: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files, hidden ones aside.

    Kept beside them with their sizes and times, so that the gigabytes are read once. Raises OSError.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not _hidden(path, directory))
    seen = {str(path.relative_to(directory)): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    known = _read(directory / _CACHE)
    if known.get("files") == seen:
        return str(known["revision"])
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, files))
    whole = hashlib.sha256()
    for name, digest in zip(seen, digests, strict=True):
        whole.update(f"{name}\0{digest}\n".encode())
    revision = whole.hexdigest()
    try:
        (directory / _CACHE).write_text(json.dumps({"revision": revision, "files": seen}))
    except OSError as error:
        log.info("the checkpoint's revision cannot be kept beside it (%s): it is computed at every start", error)
    return revision


def _hidden(path: Path, directory: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, object]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
