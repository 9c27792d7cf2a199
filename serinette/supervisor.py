"""Supervision of child processes: started, watched, restarted when they die, and ended in order.

Used by `serinette up` and by worker pods. `next_action` decides from a child's history; `Child` is one process,
`Supervisor` several.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby
from pathlib import Path

from serinette.checkpoints import Fetched
from serinette.errors import Unavailable
from serinette.leash import leashed

log = logging.getLogger(__name__)

POLL_S = 0.1
LAST_LINES = 20
# Longest path of a socket between children: 108 bytes on Linux and 104 on macOS, with the terminating zero.
LONGEST_SOCKET_PATH_BYTES = 103
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0


class Action(StrEnum):
    """What to do with one child now."""

    NOTHING = "nothing"
    START = "start"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class History:
    """History of one child. Times are of the monotonic clock.

    `deaths` counts deaths in a row since it was last healthy: an engine that was healthy and was killed because a job
    hung restarts at once, an engine that cannot load its model with growing pauses.
    """

    deaths: int = 0
    healthy: bool = False
    started_at_s: float | None = None
    died_at_s: float | None = None

    def started(self, at_s: float) -> History:
        """The child was started."""
        return replace(self, started_at_s=at_s, died_at_s=None, healthy=False)

    def became_healthy(self) -> History:
        """The child is healthy."""
        return replace(self, healthy=True, deaths=0)

    def died(self, at_s: float) -> History:
        """The child ended unexpectedly."""
        deaths = 0 if self.healthy else self.deaths + 1
        return replace(self, deaths=deaths, died_at_s=at_s, started_at_s=None, healthy=False)

    @property
    def pause_s(self) -> float:
        """Seconds between a death and the next start: 0 after it was healthy, then doubling up to a bound."""
        if self.deaths == 0:
            return 0.0
        doublings = min(self.deaths - 1, 10)
        return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**doublings))


def next_action(history: History, at_s: float, start_timeout_s: float) -> Action:
    """What to do with a child that must run, and be healthy within `start_timeout_s` of its start."""
    if history.started_at_s is None:
        due_at_s = 0.0 if history.died_at_s is None else history.died_at_s + history.pause_s
        return Action.START if at_s >= due_at_s else Action.NOTHING
    late = not history.healthy and at_s > history.started_at_s + start_timeout_s
    return Action.KILL if late else Action.NOTHING


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Configuration of one child. `environment` is added to the supervisor's own.

    `pending` returns what it still waits for, None once it is ready, for which it has `ready_timeout_s`.
    It is healthy once it has run for `healthy_after_s`, or by `mark_healthy`; `Supervisor.tick` kills it if it is not
    healthy by `start_timeout_s`. The others go on without a child that is not `essential`; it is started again.
    `fetched`: how much has come of what it downloads.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    pending: Callable[[], str | None] = lambda: None
    fetched: Callable[[], Fetched | None] = lambda: None
    ready_timeout_s: float = 60.0
    healthy_after_s: float = 60.0
    start_timeout_s: float = float("inf")
    stop_timeout_s: float = 5.0
    essential: bool = True


class ChildLog:
    """A child's output, in a file that all its runs append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_bytes = path.stat().st_size if path.exists() else 0

    def last_lines(self) -> tuple[str, ...]:
        """The last lines of this run."""
        with self.path.open("rb") as file:
            file.seek(max(self._start_bytes, self.path.stat().st_size - 65_536))
            return tuple(file.read().decode(errors="replace").splitlines()[-LAST_LINES:])


class Child:
    """One child through all its restarts. It writes to `output`, or to the supervisor's own output."""

    def __init__(self, spec: ChildSpec, output: ChildLog | None = None) -> None:
        self.spec = spec
        self.output = output
        self.history = History()
        self.restarts = True  # started again when it dies
        self.exit_status: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs, or has ended since the last `poll`."""
        return self._process.pid if self._process else None

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.poll() is None

    def command(self) -> Sequence[str]:
        """Command of the next start."""
        return self.spec.command

    def start(self) -> None:
        """Start it in its own process group, so that Ctrl-C reaches only the supervisor. It dies with that."""
        with self.output.path.open("ab") if self.output else nullcontext() as output:
            self._process = subprocess.Popen(
                leashed(self.command()),
                env={**os.environ, **self.spec.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self.history = self.history.started(time.monotonic())
        log.info("%s started, process %d", self.spec.name, self._process.pid)

    def poll(self) -> bool:
        """Whether it has died since the last call; if so, the rest of its process group is killed, too."""
        if self._process is None or self._process.poll() is None:
            return False
        self.exit_status = self._process.returncode
        self.kill()
        self.history = self.history.died(time.monotonic())
        return True

    def next_action(self, at_s: float) -> Action:
        """As the function `next_action`; a child that has run for `healthy_after_s` becomes healthy."""
        history = self.history
        if history.started_at_s is not None and at_s > history.started_at_s + self.spec.healthy_after_s:
            self.mark_healthy()
        return next_action(self.history, at_s, self.spec.start_timeout_s) if self.restarts else Action.NOTHING

    def mark_healthy(self) -> None:
        """Mark it as healthy: its earlier deaths no longer count."""
        self.history = self.history.became_healthy()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it runs."""
        if self._process:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it with its process group, and wait for it."""
        if self._process:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def how_it_ended(self) -> str:
        """How it last ended, in words."""
        status = self.exit_status
        if status is None:
            return "has not ended"
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Phase(StrEnum):
    """What a notice reports of a child."""

    WAITING = "waiting"
    READY = "ready"
    DIED = "died"
    RESTARTED = "restarted"
    LATE = "late"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Notice:
    """A report to the user about the child `name`."""

    name: str
    phase: Phase
    detail: str = ""
    last_lines: tuple[str, ...] = ()
    fetched: Fetched | None = None  # while it downloads


class Supervisor:
    """Supervises children, which are ended in the reverse order of their addition."""

    def __init__(self, report: Callable[[Notice], None]) -> None:
        self._report = report
        self._children: list[Child] = []
        self._waiting: list[Child] = []

    def add(self, child: Child) -> None:
        """Supervise a child, which the next `wait_ready` or `tick` starts."""
        self._children.append(child)
        self._waiting.append(child)

    def wait_ready(self) -> None:
        """Start the children added since the last call, and wait until they are ready, or failed where the others can
        do without; `tick` starts those again.

        Raises:
            Unavailable: an essential child ended, or was not ready in time; the message holds its last lines.
        """
        for child in self._waiting:
            child.start()
        while self._waiting:
            for child in self._children:
                if not child.poll():
                    continue
                how = f"{child.how_it_ended()} before it was ready"
                if child.spec.essential:
                    raise _not_started(child, how)
                self._notify(child, Phase.DIED, f"{how}; starts again in {child.history.pause_s:g} s")
            self._waiting = [child for child in self._waiting if child.pid and not self._is_ready(child)]
            time.sleep(POLL_S)

    def tick(self) -> None:
        """Report children that died, and restart them after their pause. To be called a few times a second."""
        at_s = time.monotonic()
        for child in self._children:
            if child.poll():
                again = f"; starts again in {child.history.pause_s:g} s" if child.restarts else ""
                self._notify(child, Phase.DIED, f"{child.how_it_ended()}{again}")
            match child.next_action(at_s):
                case Action.START:
                    first = child.exit_status is None
                    child.start()
                    if not first:
                        self._notify(child, Phase.RESTARTED)
                case Action.KILL:
                    self._notify(child, Phase.LATE, f"was not ready within {child.spec.start_timeout_s:g} s")
                    child.signal(signal.SIGKILL)

    def stop(self, in_a_hurry: Callable[[], bool] = lambda: False) -> None:
        """End all children, last added first, each within its `stop_timeout_s`, or at once if `in_a_hurry`."""
        for _, alike in groupby(reversed(self._children), key=lambda child: child.spec.command):
            self._stop_together(list(alike), in_a_hurry)
        self._children.clear()

    def _stop_together(self, children: Sequence[Child], in_a_hurry: Callable[[], bool]) -> None:
        """Those of one command: of several workers the last to be asked would claim what the first gave back."""
        began_s = time.monotonic()
        for child in children:
            if child.running and not in_a_hurry():
                self._notify(child, Phase.STOPPING)
                child.signal(signal.SIGTERM)
        for child in children:
            deadline_s = began_s + child.spec.stop_timeout_s
            while child.running and time.monotonic() < deadline_s and not in_a_hurry():
                time.sleep(POLL_S / 4)
            if child.running and time.monotonic() >= deadline_s:
                log.warning("%s did not end within %g s and is killed", child.spec.name, child.spec.stop_timeout_s)
            child.kill()

    def _is_ready(self, child: Child) -> bool:
        pending = child.spec.pending()
        elapsed_s = time.monotonic() - (child.history.started_at_s or 0.0)
        if pending is None:
            self._notify(child, Phase.READY, f"{elapsed_s:.1f} s")
            return True
        if elapsed_s > child.spec.ready_timeout_s:
            raise _not_started(child, f"was not ready within {child.spec.ready_timeout_s:g} s: {pending}")
        self._notify(child, Phase.WAITING, pending)
        return False

    def _notify(self, child: Child, phase: Phase, detail: str = "") -> None:
        last_lines = child.output.last_lines() if child.output and phase is Phase.DIED else ()
        fetched = child.spec.fetched() if phase is Phase.WAITING else None
        self._report(Notice(child.spec.name, phase, detail, last_lines, fetched))


def _not_started(child: Child, how: str) -> Unavailable:
    lines = "\n".join(f"  {line}" for line in child.output.last_lines()) if child.output else ""
    where = f" to {child.output.path}" if child.output else ""
    return Unavailable(f"{child.spec.name} {how}. The last it wrote{where}:\n{lines or '  (nothing)'}")
