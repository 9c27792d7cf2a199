"""A directory of one supervisor's own: two workers on one machine must not meet at one socket."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serinette.errors import ConfigurationError

_PREFIX = "run-"
# A Unix socket's path may have 108 bytes on Linux and 104 on macOS, the ending zero among them.
_LONGEST_SOCKET_PATH = 103
_SOCKET = "engine.sock"


@contextmanager
def private_run_dir(work_dir: Path) -> Iterator[Path]:
    """A fresh directory, erased on the way out. What killed supervisors left in the same place is erased first.

    It lies in `work_dir`, or in the system's temporary directory if that path is too long for a socket.

    Raises:
        ConfigurationError: neither can be written to.
    """
    longest = len(os.fsencode(work_dir.absolute() / f"{_PREFIX}12345678" / _SOCKET))
    parent = work_dir.absolute() if longest <= _LONGEST_SOCKET_PATH else Path(tempfile.gettempdir()) / "serinette"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _erase_abandoned(parent)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise ConfigurationError(
            f"work_dir: cannot write to {parent} ({error.strerror}); set SERINETTE_WORK_DIR to a writable directory"
        ) from error
    lock = lock_directory(directory)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def lock_directory(directory: Path) -> int | None:
    """Hold a directory, as long as this process lives; None if another one holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _erase_abandoned(parent: Path) -> None:
    for directory in parent.glob(f"{_PREFIX}*"):
        try:
            lock = lock_directory(directory)
        except OSError:  # another supervisor erased it just now, or it is another user's
            continue
        if lock is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(lock)
