"""A tree of processes that stands and falls together: started, awaited, restarted when one dies, ended in order."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from serinette.errors import Unavailable
from serinette.leash import leashed

POLL_S = 0.1
LAST_LINES = 20

# A part that ran this long had started well: its next death is the first again.
_STEADY_S = 60.0
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


class Phase(StrEnum):
    """What a notice tells of a part."""

    WAITING = "waiting"
    READY = "ready"
    DIED = "died"
    RESTARTED = "restarted"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person may want to know of one part."""

    part: str
    phase: Phase
    detail: str = ""
    last_lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the tree. `pending` answers what it still waits for, None when it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    pending: Callable[[], str | None]
    start_timeout_s: float | None = 60.0
    stop_timeout_s: float = 5.0


def restart_delay_s(deaths: int) -> float:
    """Pause before a part is started again, after so many deaths in a row: doubling, and bounded."""
    return float(min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (deaths - 1)))


class Log:
    """What a part writes, in a file that is appended to from run to run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_bytes = path.stat().st_size if path.exists() else 0
        self._start_bytes = self._read_bytes

    @contextmanager
    def writer(self) -> Iterator[BinaryIO]:
        """The file to hand to a new process."""
        with self.path.open("ab") as file:
            yield file

    def fresh(self) -> list[str]:
        """Whole lines written since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        return whole.decode(errors="replace").splitlines()

    def last(self) -> tuple[str, ...]:
        """The last lines of this run."""
        with self.path.open("rb") as file:
            file.seek(max(self._start_bytes, self.path.stat().st_size - 65_536))
            return tuple(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])


@dataclass(slots=True)
class Child:
    """A part and the process that is it now."""

    part: Part
    log: Log
    process: subprocess.Popen[bytes] = field(init=False)
    started_at_s: float = field(init=False)
    ready: bool = False
    deaths: int = 0
    restart_at_s: float | None = None

    def start(self) -> None:
        """Start it in a process group of its own: Ctrl-C in a terminal is for whoever holds the tree."""
        with self.log.writer() as output:
            self.process = subprocess.Popen(
                leashed(self.part.command),
                env={**os.environ, **self.part.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self.started_at_s = time.monotonic()
        self.restart_at_s = None

    def kill(self) -> None:
        """End it and whatever it left in its process group."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def died(self) -> str:
        """Tell how it ended."""
        status = self.process.returncode
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Tree:
    """Parts in the order in which they were started; they end in the opposite order."""

    def __init__(
        self,
        log_dir: Path,
        tell: Callable[[Notice], None],
        echo: Callable[[str, str], None] | None = None,
    ) -> None:
        """`tell` takes notices; `echo`, when given, takes every line that a part writes, with the part's name."""
        self._log_dir = log_dir
        self._tell = tell
        self._echo = echo
        self._children: list[Child] = []

    def start(self, part: Part) -> None:
        """Start a part; `wait_ready` waits for it."""
        child = Child(part, Log(self._log_dir / f"{part.name}.log"))
        child.start()
        self._children.append(child)

    def wait_ready(self) -> None:
        """Wait until every part has been ready.

        Raises:
            Unavailable: a part ended, or was not ready in time; the message holds its last lines.
        """
        while waiting := [child for child in self._children if not child.ready]:
            for child in self._children:
                if child.process.poll() is not None:
                    raise _not_started(child, f"{child.died()} before it was ready")
            for child in waiting:
                pending = child.part.pending()
                elapsed_s = time.monotonic() - child.started_at_s
                if pending is None:
                    child.ready = True
                    self._tell(Notice(child.part.name, Phase.READY, f"{elapsed_s:.1f} s"))
                elif child.part.start_timeout_s is not None and elapsed_s > child.part.start_timeout_s:
                    raise _not_started(child, f"was not ready within {child.part.start_timeout_s:g} s: {pending}")
                else:
                    self._tell(Notice(child.part.name, Phase.WAITING, pending))
            self.echo()
            time.sleep(POLL_S)

    def tend(self) -> None:
        """Start again what has died, after a pause that grows from death to death. To be called often."""
        now_s = time.monotonic()
        for child in self._children:
            if child.restart_at_s is not None:
                if now_s >= child.restart_at_s:
                    child.start()
                    self._tell(Notice(child.part.name, Phase.RESTARTED))
            elif child.process.poll() is not None:
                child.kill()  # the rest of its process group
                child.deaths = 1 if now_s - child.started_at_s > _STEADY_S else child.deaths + 1
                delay_s = restart_delay_s(child.deaths)
                child.restart_at_s = now_s + delay_s
                detail = f"{child.died()}; starting again in {delay_s:g} s"
                self._tell(Notice(child.part.name, Phase.DIED, detail, child.log.last()))
        self.echo()

    def echo(self) -> None:
        """Pass on what the parts wrote."""
        if self._echo:
            for child in self._children:
                for line in child.log.fresh():
                    self._echo(child.part.name, line)

    def stop(self, in_a_hurry: Callable[[], bool]) -> None:
        """End all parts, last started first, each in its own time unless `in_a_hurry`. Leaves no process."""
        for child in reversed(self._children):
            if child.process.poll() is None and not in_a_hurry():
                self._tell(Notice(child.part.name, Phase.STOPPING))
                child.process.terminate()
                deadline = time.monotonic() + child.part.stop_timeout_s
                while child.process.poll() is None and time.monotonic() < deadline and not in_a_hurry():
                    self.echo()
                    time.sleep(POLL_S / 4)
            child.kill()
        self.echo()
        self._children.clear()


def _not_started(child: Child, how: str) -> Unavailable:
    lines = "\n".join(f"  {line}" for line in child.log.last()) or "  (nothing)"
    return Unavailable(f"{child.part.name} {how}. The last it wrote to {child.log.path}:\n{lines}")
