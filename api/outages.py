"""Outages of the queue, and of this machine: errors for callers."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import OutOfMemoryError, RedisError

from serinette.errors import QueueFull, QueueUnavailable, Unavailable
from serinette.jobs.script import NO_DISK


@contextmanager
def queue_errors(advice: str = "try again") -> Iterator[None]:
    """Raise errors of Redis's client as QueueUnavailable, with advice for the caller."""
    try:
        yield
    except RedisError as error:
        raise queue_error(error, advice) from error


def queue_error(error: RedisError, advice: str = "try again") -> QueueUnavailable:
    """What an error of Redis's client means for callers."""
    if isinstance(error, OutOfMemoryError):
        return QueueFull(
            "the queue's memory is full: no job is taken until jobs end and are forgotten, or its operator raises "
            f"maxmemory; {advice}"
        )
    if NO_DISK in str(error):  # within words of redis-py's if it was one of several commands
        return QueueFull(
            f"the queue's server cannot write to its disk, probably a full one: free space there; {advice}"
        )
    return QueueUnavailable(f"the queue does not answer; {advice}")


def no_disk() -> QueueUnavailable:
    """What was to be on disk before the answer cannot be."""
    return QueueUnavailable(
        "this gateway must write what it accepts to disk (durability: fsync), but the queue's server has no "
        "append-only file: nothing was accepted; its operator must set appendonly yes there, or durability: process "
        "here"
    )


_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_FULL_TABLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}


def machine_error(error: BaseException | None) -> Unavailable | None:
    """What an error of this machine's means for callers: no room on its disk, or for more open files. None: a fault."""
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL_DISK:
        return Unavailable(f"the disk of this gateway's temporary files ({tempfile.gettempdir()}) is full; try again")
    if error.errno in _FULL_TABLE:
        return Unavailable("this gateway has as many files and connections open as its machine allows; try again")
    return None
