"""The supervisor of processes, on small ones: awaited, restarted, ended in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from serinette.errors import Unavailable
from serinette.supervisor import LAST_LINES, Child, ChildLog, ChildSpec, Notice, Phase, Supervisor
from tests.processes import below, eventually, eventually_gone

SLEEPER = """
import pathlib, sys, time
print("started", flush=True)
pathlib.Path(sys.argv[1]).write_text("up")
time.sleep(60)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SLEEPER
LEAVES_A_CHILD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])" + SLEEPER
)


def at_leisure() -> bool:
    return False


class Supervised:
    """A supervisor under test and what it reported."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notices: list[Notice] = []
        self.supervisor = Supervisor(self.notices.append)

    def add(self, name: str, code: str, **options: Any) -> Child:
        mark = self.directory / name
        command = (sys.executable, "-c", code, str(mark))
        spec = ChildSpec(name, command, pending=lambda: None if mark.exists() else "waking", **options)
        child = Child(spec, ChildLog(self.directory / f"{name}.log"))
        self.supervisor.add(child)
        return child

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What the children wrote, each line with its child's name."""
        logs = sorted(self.directory.glob("*.log"))
        return [(log.stem, line) for log in logs for line in log.read_text().splitlines()]

    def reported(self, phase: Phase) -> list[str]:
        return [notice.name for notice in self.notices if notice.phase is phase]

    def processes(self) -> list[psutil.Process]:
        """Processes of this supervisor alone: a session of tests has servers of its own running."""
        return [process for top in psutil.Process().children() if self.holds(top) for process in below(top.pid)]

    def holds(self, process: psutil.Process) -> bool:
        try:
            return str(self.directory) in " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # ended, perhaps not yet waited for by the test that started it
            return False

    def ticking(self, condition: Callable[[], object]) -> bool:
        def ticked() -> object:
            self.supervisor.tick()
            return condition()

        return eventually(ticked)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.supervisor.stop(in_a_hurry=lambda: True)


def test_children_are_awaited_and_end_in_opposite_order(supervised: Supervised) -> None:
    supervised.add("first", SLEEPER)
    supervised.add("second", SLEEPER)
    supervised.supervisor.wait_ready()
    assert sorted(supervised.reported(Phase.READY)) == ["first", "second"]
    assert "waking" in {notice.detail for notice in supervised.notices if notice.phase is Phase.WAITING}
    running = supervised.processes()
    assert len(running) == 2
    supervised.supervisor.stop(at_leisure)
    assert eventually_gone(running)
    assert supervised.reported(Phase.STOPPING) == ["second", "first"]
    assert supervised.lines == [("first", "started"), ("second", "started")]


def test_children_of_one_command_are_ended_together(supervised: Supervised) -> None:
    waits = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), exit()))" + SLEEPER
    mark = supervised.directory / "alike"
    for name in ("one", "two"):
        command = (sys.executable, "-c", waits, str(mark))
        spec = ChildSpec(name, command, pending=lambda: None if mark.exists() else "waking")
        supervised.supervisor.add(Child(spec, ChildLog(supervised.directory / f"{name}.log")))
    supervised.supervisor.wait_ready()
    assert supervised.ticking(lambda: len(supervised.lines) == 2)
    heard: list[int] = []

    def look() -> bool:
        heard.append(len(supervised.reported(Phase.STOPPING)))
        return False

    supervised.supervisor.stop(look)
    assert heard[:3] == [0, 1, 2], "nothing is waited for between the first and the last"


def test_a_child_that_fails_to_start_shows_its_last_lines(supervised: Supervised) -> None:
    supervised.add("poet", "import sys; [print('line', n) for n in range(99)]; sys.exit(3)")
    with pytest.raises(Unavailable, match="poet ended with status 3 before it was ready") as caught:
        supervised.supervisor.wait_ready()
    assert caught.value.message.splitlines()[-1].strip() == "line 98"
    assert caught.value.message.count("line ") == LAST_LINES


def test_a_child_that_never_gets_ready_is_given_up(supervised: Supervised) -> None:
    supervised.add("dreamer", "import time; time.sleep(60)", ready_timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"dreamer was not ready within 0.5 s: waking"):
        supervised.supervisor.wait_ready()


def test_what_dies_is_started_again(supervised: Supervised) -> None:
    supervised.add("phoenix", SLEEPER)
    supervised.supervisor.wait_ready()
    (first,) = supervised.processes()
    first.kill()
    assert supervised.ticking(lambda: supervised.reported(Phase.RESTARTED))
    died = next(notice for notice in supervised.notices if notice.phase is Phase.DIED)
    assert died.detail == "was killed by SIGKILL; starts again in 0.5 s"
    assert died.last_lines == ("started",)
    assert [process.pid for process in supervised.processes()] != [first.pid]


def test_a_child_that_keeps_dying_waits_longer_each_time(supervised: Supervised) -> None:
    supervised.add("moth", SLEEPER)
    supervised.supervisor.wait_ready()

    def restarted(times: int) -> bool:
        return len(supervised.reported(Phase.RESTARTED)) == times

    for deaths in (1, 2):
        os.killpg(supervised.processes()[0].pid, signal.SIGKILL)
        assert supervised.ticking(partial(restarted, deaths))
    delays = [notice.detail.rpartition(" in ")[2] for notice in supervised.notices if notice.phase is Phase.DIED]
    assert delays == ["0.5 s", "1 s"]


@pytest.mark.parametrize("code", [SLEEPER, STUBBORN, LEAVES_A_CHILD])
def test_nothing_is_left(supervised: Supervised, code: str) -> None:
    supervised.add("part", code, stop_timeout_s=0.5)
    supervised.supervisor.wait_ready()
    running = supervised.processes()
    supervised.supervisor.stop(at_leisure)
    assert eventually_gone(running)


def test_a_child_that_does_not_become_healthy_in_time_is_killed_and_started_again(
    supervised: Supervised,
) -> None:
    late = {"healthy_after_s": float("inf"), "start_timeout_s": 0.5}
    well = supervised.add("well", SLEEPER, **late)
    supervised.add("mute", SLEEPER, **late)
    supervised.supervisor.wait_ready()
    well.mark_healthy()
    assert supervised.ticking(lambda: supervised.reported(Phase.RESTARTED))
    assert supervised.reported(Phase.LATE) == supervised.reported(Phase.DIED) == ["mute"]


def test_a_child_that_need_not_come_back_stays_away(supervised: Supervised) -> None:
    child = supervised.add("leaver", SLEEPER)
    supervised.supervisor.wait_ready()
    child.restarts = False
    child.signal(signal.SIGTERM)
    assert supervised.ticking(lambda: child.pid is None)
    died = next(notice for notice in supervised.notices if notice.phase is Phase.DIED)
    assert died.detail == "was killed by SIGTERM"
    supervised.supervisor.tick()
    assert child.pid is None


def test_in_a_hurry_it_kills(supervised: Supervised) -> None:
    supervised.add("stubborn", STUBBORN, stop_timeout_s=120)
    supervised.supervisor.wait_ready()
    running = supervised.processes()
    asked: list[bool] = []

    def from_the_third_time_on() -> bool:
        asked.append(len(asked) >= 2)
        return asked[-1]

    supervised.supervisor.stop(in_a_hurry=from_the_third_time_on)
    assert asked == [False, False, True], "it waited, and no longer once it was in a hurry"
    assert eventually_gone(running)


def test_logs_are_kept_from_run_to_run(tmp_path: Path) -> None:
    for runs in (1, 2):
        supervised = Supervised(tmp_path)
        supervised.add("part", SLEEPER)
        supervised.supervisor.wait_ready()
        supervised.supervisor.stop(at_leisure)
        (tmp_path / "part").unlink()
        assert supervised.lines == [("part", "started")] * runs
    assert (tmp_path / "part.log").read_text() == "started\n" * 2
