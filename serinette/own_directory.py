"""A directory of one process's own, which another erases once that process is gone, however it ended.

It is locked for as long as its process lives: a directory without a lock was left by a process that was killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def own_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A fresh directory in `parent`, whose name begins with `prefix`; erased on the way out. What killed processes left
    there under that prefix is erased first. Raises OSError: `parent` cannot be written to.
    """
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):  # another process erased it just now, or it is another user's
            if (lock := lock_directory(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
    hidden = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
    lock = lock_directory(hidden)
    own = hidden.rename(parent / hidden.name.removeprefix("."))  # found by others only once it is locked
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def lock_directory(directory: Path) -> int | None:
    """Hold a directory, as long as this process lives: the descriptor to close; None if another process holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
