"""What a test asks of processes: all below one, and whether they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def below(pid: int) -> list[psutil.Process]:
    """The process and everything below it, as of now."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def gone(process: psutil.Process) -> bool:
    """Whether it has ended; a zombie has."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], object], timeout_s: float = 30, every_s: float = 0.05) -> bool:
    """Whether it comes true within a generous time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def eventually_gone(processes: list[psutil.Process], timeout_s: float = 30) -> bool:
    """Whether all of them end within a generous time."""
    return eventually(lambda: all(gone(process) for process in processes), timeout_s)
