"""Directories that are there whole or not at all, however many processes make them and whenever they die."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path


def publish(directory: Path, build: Callable[[Path], None]) -> Path:
    """Answer `directory`, made by `build` in a neighbour and renamed if it is not there yet.

    One process builds, others wait for it; what one that died left half done is thrown away. Raises whatever `build`
    raises, and OSError when the disk refuses.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial")
    with directory.with_name(f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build(partial)
        partial.rename(directory)
    return directory
