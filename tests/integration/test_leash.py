"""Children end with their parent, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import below, eventually, eventually_gone, gone

# A parent that starts one sleeping child in the way under test, prints its process id and sleeps too.
PARENT = """
import os, subprocess, sys, time
from serinette import leash
child = subprocess.Popen({start})
print(child.pid, flush=True)
time.sleep(60)
"""
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
BETWEEN = f"import os, sys; from serinette import leash; sys.exit(leash.run_watched(int(sys.argv[1]), {SLEEP!r}))"
STARTS = {
    "leashed": f"leash.leashed({SLEEP!r})",
    "run_watched": f"[sys.executable, '-c', {BETWEEN!r}, str(os.getpid())]",
}


@pytest.fixture(params=list(STARTS))
def family(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A parent and everything below it, all asleep."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(start=STARTS[request.param])], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert eventually(lambda: len(below(child)) == (2 if request.param == "run_watched" else 1))
    children = below(child)
    try:
        yield parent, children
    finally:
        for process in children:
            if not gone(process):
                process.kill()
        parent.kill()
        parent.wait()
        parent.stdout.close()


def test_a_killed_parent_takes_its_children_along(family: tuple[subprocess.Popen[str], list[psutil.Process]]) -> None:
    parent, children = family
    assert not any(gone(process) for process in children)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert eventually_gone(children)


def test_a_command_started_for_a_parent_that_is_gone_never_runs(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", ""])
    stranger.wait()
    mark = tmp_path / "ran"
    command = [sys.executable, "-m", "serinette.leash", str(stranger.pid), "--", "touch", str(mark)]
    assert subprocess.run(command, check=False).returncode != 0
    assert not mark.exists()


def test_the_leash_is_transparent() -> None:
    leash = [sys.executable, "-m", "serinette.leash", str(os.getpid()), "--"]
    ended = subprocess.run([*leash, "sh", "-c", "echo $$; exit 7"], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.strip().isdecimal()) == (7, True)
    missing = subprocess.run([*leash, "/no/such/program"], check=False, capture_output=True, text=True)
    assert missing.returncode == 127
    assert "/no/such/program" in missing.stderr


def test_a_process_between_passes_signals_and_the_status_on() -> None:
    code = "import os, sys; from serinette import leash; sys.exit(leash.run_watched(os.getppid(), sys.argv[1:]))"
    child = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
    child += "print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, sys.executable, "-c", child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as between:
        assert between.stdout
        assert between.stdout.readline() == "1\n"
        between.terminate()
        assert between.wait(timeout=15) == 5


def test_bad_usage_is_refused() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "serinette.leash", "sleep", "1"], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "usage:" in ended.stderr
