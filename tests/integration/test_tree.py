"""The tree of processes, on small processes: awaited, restarted, ended in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from serinette.errors import Unavailable
from serinette.tree import LAST_LINES, Notice, Part, Phase, Tree, restart_delay_s
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


class Forest:
    """A tree under test and what it told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notices: list[Notice] = []
        self.lines: list[tuple[str, str]] = []
        self.tree = Tree(directory, self.notices.append, lambda part, line: self.lines.append((part, line)))

    def part(self, name: str, code: str, **options: float) -> Part:
        mark = self.directory / name
        command = (sys.executable, "-c", code, str(mark))
        return Part(name, command, {}, lambda: None if mark.exists() else "waking", **options)

    def told(self, phase: Phase) -> list[str]:
        return [notice.part for notice in self.notices if notice.phase is phase]

    def processes(self) -> list[psutil.Process]:
        """Those of this tree alone: a session of tests has servers of its own running."""
        return [process for top in psutil.Process().children() if self.holds(top) for process in below(top.pid)]

    def holds(self, process: psutil.Process) -> bool:
        try:
            return str(self.directory) in " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # ended, perhaps not yet waited for by the test that started it
            return False

    def tending(self, condition: Callable[[], object]) -> bool:
        def tended() -> object:
            self.tree.tend()
            return condition()

        return eventually(tended)


@pytest.fixture
def forest(tmp_path: Path) -> Iterator[Forest]:
    forest = Forest(tmp_path)
    yield forest
    forest.tree.stop(in_a_hurry=lambda: True)


def test_parts_are_awaited_and_end_in_opposite_order(forest: Forest) -> None:
    forest.tree.start(forest.part("first", SLEEPER))
    forest.tree.start(forest.part("second", SLEEPER))
    forest.tree.wait_ready()
    assert sorted(forest.told(Phase.READY)) == ["first", "second"]
    assert "waking" in {notice.detail for notice in forest.notices if notice.phase is Phase.WAITING}
    running = forest.processes()
    assert len(running) == 2
    forest.tree.stop(at_leisure)
    assert eventually_gone(running)
    assert forest.told(Phase.STOPPING) == ["second", "first"]
    assert sorted(forest.lines) == [("first", "started"), ("second", "started")]


def test_a_part_that_fails_to_start_shows_its_last_words(forest: Forest) -> None:
    forest.tree.start(forest.part("poet", "import sys; [print('line', n) for n in range(99)]; sys.exit(3)"))
    with pytest.raises(Unavailable, match="poet ended with status 3 before it was ready") as caught:
        forest.tree.wait_ready()
    assert caught.value.message.splitlines()[-1].strip() == "line 98"
    assert caught.value.message.count("line ") == LAST_LINES


def test_a_part_that_never_gets_ready_is_given_up(forest: Forest) -> None:
    forest.tree.start(forest.part("dreamer", "import time; time.sleep(60)", start_timeout_s=0.5))
    with pytest.raises(Unavailable, match=r"dreamer was not ready within 0.5 s: waking"):
        forest.tree.wait_ready()


def test_what_dies_is_started_again(forest: Forest) -> None:
    forest.tree.start(forest.part("phoenix", SLEEPER))
    forest.tree.wait_ready()
    (first,) = forest.processes()
    first.kill()
    assert forest.tending(lambda: forest.told(Phase.RESTARTED))
    died = next(notice for notice in forest.notices if notice.phase is Phase.DIED)
    assert died.detail.startswith("killed by SIGKILL")
    assert died.last_lines == ("started",)
    assert [process.pid for process in forest.processes()] != [first.pid]


def test_a_part_that_keeps_dying_waits_longer_each_time(forest: Forest) -> None:
    forest.tree.start(forest.part("moth", SLEEPER))
    forest.tree.wait_ready()

    def restarted(times: int) -> bool:
        return len(forest.told(Phase.RESTARTED)) == times

    for deaths in (1, 2):
        os.killpg(forest.processes()[0].pid, signal.SIGKILL)
        assert forest.tending(partial(restarted, deaths))
    delays = [notice.detail.rpartition(" in ")[2] for notice in forest.notices if notice.phase is Phase.DIED]
    assert delays == ["0.5 s", "1 s"]
    assert [restart_delay_s(deaths) for deaths in (1, 2, 3, 7, 100)] == [0.5, 1, 2, 30, 30]


@pytest.mark.parametrize("code", [SLEEPER, STUBBORN, LEAVES_A_CHILD])
def test_nothing_is_left(forest: Forest, code: str) -> None:
    forest.tree.start(forest.part("part", code, stop_timeout_s=0.5))
    forest.tree.wait_ready()
    running = forest.processes()
    forest.tree.stop(at_leisure)
    assert eventually_gone(running)


def test_haste_waits_for_nobody(forest: Forest) -> None:
    forest.tree.start(forest.part("stubborn", STUBBORN, stop_timeout_s=120))
    forest.tree.wait_ready()
    running = forest.processes()
    asked: list[bool] = []

    def from_the_third_time_on() -> bool:
        asked.append(len(asked) >= 2)
        return asked[-1]

    forest.tree.stop(in_a_hurry=from_the_third_time_on)
    assert asked == [False, False, True], "it waited, and no longer once it was in a hurry"
    assert eventually_gone(running)


def test_logs_are_kept_from_run_to_run(tmp_path: Path) -> None:
    for _ in range(2):
        forest = Forest(tmp_path)
        forest.tree.start(forest.part("part", SLEEPER))
        forest.tree.wait_ready()
        forest.tree.stop(at_leisure)
        (tmp_path / "part").unlink()
        assert forest.lines == [("part", "started")]
    assert (tmp_path / "part.log").read_text() == "started\n" * 2
