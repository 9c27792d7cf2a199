"""When the supervisor starts, restarts or kills a child; and where it lives."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_worker.process_setup import (
    CONFIGURATION_EXIT_CODE,
    CRASHED_EXIT_CODE,
    FULL_DISK_EXIT_CODE,
    engine_environment,
    exit_code_of,
    private_run_dir,
)
from gpu_worker.supervisor import SlotChild, parts_of_start
from gpu_worker.wire import Hello, Vitals
from serinette.errors import ConfigurationError
from serinette.own_directory import lock_directory
from serinette.supervisor import Action, History, next_action

FRESH = History()
RUNNING = FRESH.started(100)
HEALTHY = RUNNING.became_healthy()
DEAD_ONCE = RUNNING.died(110)


@pytest.mark.parametrize(
    ("history", "at_s", "action"),
    [
        (FRESH, 0, Action.START),
        (RUNNING, 100, Action.NOTHING),
        (RUNNING, 129, Action.NOTHING),
        (RUNNING, 131, Action.KILL),
        (HEALTHY, 1_000, Action.NOTHING),
        (DEAD_ONCE, 110.4, Action.NOTHING),
        (DEAD_ONCE, 110.5, Action.START),
        (HEALTHY.died(110), 110, Action.START),
    ],
)
def test_the_next_action(history: History, at_s: float, action: Action) -> None:
    assert next_action(history, at_s, start_timeout_s=30) is action


def test_pauses_double_to_a_bound_and_health_forgives_all_deaths() -> None:
    history, pauses = FRESH, []
    for _ in range(200):
        history = history.started(0).died(1)
        pauses.append(history.pause_s)
    assert pauses[:4] == [0.5, 1, 2, 4]
    assert pauses[-1] == 60
    assert history.started(2).became_healthy().died(3).pause_s == 0


def test_two_supervisors_share_a_work_dir_and_no_run_dir(tmp_path: Path) -> None:
    with private_run_dir(tmp_path) as one, private_run_dir(tmp_path) as other:
        assert one != other
        assert one.is_dir()
        assert other.is_dir()
    assert not list(tmp_path.glob("run-*"))


def test_what_a_killed_supervisor_left_is_erased_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from gpu_worker.process_setup import private_run_dir as make\n"
        "with make(Path(sys.argv[1])) as directory: (directory / 'spool').touch(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(list(tmp_path.glob("run-*/spool"))) == 1
    with private_run_dir(tmp_path) as directory:
        assert list(tmp_path.glob("run-*")) == [directory]


def test_a_directory_is_there_for_others_only_once_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that starts just then would take it for one that a killed process left."""
    locked: list[Path] = []

    def lock(directory: Path) -> int | None:
        locked.append(directory)
        assert not list(tmp_path.glob("run-*"))
        return lock_directory(directory)

    monkeypatch.setattr("serinette.own_directory.lock_directory", lock)
    with private_run_dir(tmp_path) as own:
        assert len(locked) == 1
        assert list(tmp_path.iterdir()) == [own]


def test_what_the_operator_sets_goes_before_what_children_start_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "5")
    engine, slot = (
        engine_environment(tmp_path),
        SlotChild(0, "x", tmp_path, {"SERINETTE_RUN_DIR": "y"}).spec.environment,
    )
    assert engine["OMP_WAIT_POLICY"] == "ACTIVE"
    assert engine["MALLOC_TRIM_THRESHOLD_"] == slot["MALLOC_TRIM_THRESHOLD_"] == "5"
    assert engine["MALLOC_MMAP_THRESHOLD_"] != slot["MALLOC_MMAP_THRESHOLD_"]
    assert slot["SERINETTE_RUN_DIR"] == "y"


def test_a_long_work_dir_does_not_make_the_socket_unusable(tmp_path: Path) -> None:
    with private_run_dir(tmp_path / ("x" * 100)) as directory:
        assert len(str(directory / "engine.sock")) <= 103


def test_a_work_dir_that_cannot_be_written_to_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("d") / "file"  # not tmp_path: in a place too long for a socket nothing is written
    file.touch()
    with pytest.raises(ConfigurationError, match="SERINETTE_WORK_DIR"), private_run_dir(file / "below"):
        pass


READY = Hello(pid=1, stage="ready", load_times={"weights_s": 0.25004, "load_s": 2.0})


@pytest.mark.parametrize(
    ("known", "hello", "first_song_s", "parts"),
    [
        ({}, None, None, {}),
        ({}, Hello(pid=1, stage="loading"), None, {}),
        ({}, READY, None, {"weights_s": 0.25, "load_s": 2.0}),
        ({"weights_s": 0.25, "load_s": 2.0}, READY, 1.5, {"weights_s": 0.25, "load_s": 2.0, "first_song_s": 1.5}),
        # It dies: it says nothing more, and its death is not seen yet.
        ({"weights_s": 0.25, "first_song_s": 1.5}, None, None, {"weights_s": 0.25, "first_song_s": 1.5}),
        ({"weights_s": 0.25}, None, 1.5, {"weights_s": 0.25, "first_song_s": 1.5}),
    ],
)
def test_what_is_known_of_a_start_stays_when_its_engine_is_silent(
    known: dict[str, float], hello: Hello | None, first_song_s: float | None, parts: dict[str, float]
) -> None:
    vitals = None if first_song_s is None else Vitals(first_song_s=first_song_s)
    assert parts_of_start(known, hello, vitals) == parts


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (ConfigurationError("no such model"), None, CONFIGURATION_EXIT_CODE),
        (ConfigurationError("not its directory"), PermissionError(errno.EACCES, "no"), CONFIGURATION_EXIT_CODE),
        (ConfigurationError("cannot be fetched"), OSError(errno.ENOSPC, "full"), FULL_DISK_EXIT_CODE),
        (OSError(errno.EDQUOT, "of a quota"), None, FULL_DISK_EXIT_CODE),
        (OSError(errno.EACCES, "no"), None, CRASHED_EXIT_CODE),
        (ValueError("a mistake"), None, CRASHED_EXIT_CODE),
    ],
)
def test_an_exit_code_says_what_kind_of_error_it_was(error: Exception, cause: Exception | None, code: int) -> None:
    error.__cause__ = cause
    assert exit_code_of(error) == code
