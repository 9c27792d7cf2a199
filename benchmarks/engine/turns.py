"""The engines of two checkouts, a song of each in turn: in a process that does nothing else, and in whole pods.

Both load the same checkpoint, the bundled one of the first, and generate the same songs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engine.cases import Case
from benchmarks.peers.load import Client
from benchmarks.peers.servers import ROOT
from benchmarks.record import Figures, spread
from benchmarks.start_latency import commit_of, idle_worker
from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.process_setup import engine_environment
from serinette.leash import leashed

BACKLOG_SONGS, BACKLOG_S = 8, 10.0
_LOOK_S = 0.02
_LONGEST_S = 900.0


class Engine:
    """One checkout's engine in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], checkout: Path) -> None:
        self._process = process
        if not Path(json.loads(self._answer())).is_relative_to(checkout):
            raise RuntimeError(f"{checkout}: another checkout's engine was loaded")

    def took_s(self, duration_s: float, songs: int) -> tuple[float, float]:
        """Seconds of a batch by the clock, and of all cores."""
        if self._process.stdin is None:
            raise RuntimeError("it was started without a way to ask")
        self._process.stdin.write(json.dumps([duration_s, songs]) + "\n")
        self._process.stdin.flush()
        wall_s, cpu_s = json.loads(self._answer())
        return wall_s, cpu_s

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"the engine ended with {self._process.wait()}")
        return line


@contextmanager
def started(checkout: Path, settings: Mapping[str, object]) -> Iterator[Engine]:
    """The engine of a checkout, loaded."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("song.py")), json.dumps(settings)]
    process = subprocess.Popen(
        leashed(command),
        env={**os.environ, **engine_environment(Path(str(settings["work_dir"]))), "PYTHONPATH": str(checkout)},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Engine(process, checkout)
    finally:
        process.kill()
        process.communicate()


def measure(case: Case, other: Path, rounds: int = 7) -> Figures:
    """Ratios are within a round, of this checkout to the other: above 1, this one is faster."""
    checkouts = {"this": ROOT, "other": other.resolve()}
    model = str(locate(case.settings()).directory)
    return {
        "commits": {name: commit_of(checkout) for name, checkout in checkouts.items()},
        "alone": alone(case, checkouts, model, rounds),
        "pod": pods(case, checkouts, model, rounds),
    }


def alone(case: Case, checkouts: Mapping[str, Path], model: str, rounds: int) -> list[Figures]:
    """Each length and batch, one after the other; a first round warms up, uncounted."""
    settings = {"model": model, "device": case.device, "work_dir": str(case.directory)}
    rows = []
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(started(checkout, {**settings, "max_batch": 2}))
            for name, checkout in checkouts.items()
        }
        for duration_s, songs in case.turns:
            turns = [
                {name: engine.took_s(duration_s, songs) for name, engine in in_order(engines, number).items()}
                for number in range(rounds + 1)
            ][1:]
            rows.append(
                {
                    "duration_s": duration_s,
                    "batch": songs,
                    "wall_s": {name: spread([turn[name][0] for turn in turns]) for name in engines},
                    "speed_this_to_other": spread([turn["other"][0] / turn["this"][0] for turn in turns]),
                    "cpu_other_to_this": spread([turn["other"][1] / turn["this"][1] for turn in turns]),
                }
            )
            print("   ", duration_s, songs, rows[-1]["speed_this_to_other"], flush=True)
    return rows


def in_order(sides: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Who was first is second in the next round."""
    return dict(list(sides.items())[:: 1 if number % 2 else -1])


def pods(case: Case, checkouts: Mapping[str, Path], model: str, rounds: int) -> Figures:
    """A whole worker and its gateway under a backlog of mp3s: two slots, one song at a time."""
    settings = {
        "engine_module": "gpu_worker.engine",
        "model": model,
        "device": case.device,
        "slots": 2,
        "heartbeat_s": 5,
        "heartbeat_ttl_s": 20,
    }
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        clients = {
            name: stack.enter_context(idle_worker(checkout, directory / name, **settings))
            for name, checkout in checkouts.items()
        }
        turns = [
            {name: drained_s(client, checkouts[name]) for name, client in in_order(clients, number).items()}
            for number in range(rounds + 1)
        ][1:]
    figures: Figures = {
        "songs_per_min": {name: spread([60 * BACKLOG_SONGS / turn[name][0] for turn in turns], 1) for name in clients},
        "speed_this_to_other": spread([turn["other"][0] / turn["this"][0] for turn in turns]),
        "cpu_other_to_this": spread([turn["other"][1] / turn["this"][1] for turn in turns]),
    }
    print("    pod", figures["speed_this_to_other"], flush=True)
    return figures


def drained_s(client: Client, checkout: Path) -> tuple[float, float]:
    """Seconds from the first submit to the last song of a backlog, and those of all cores in the worker's processes."""
    began_s, began_cpu_s = time.perf_counter(), worker_cpu_s(checkout)
    song = {"prompt": "a slow ballad", "duration_s": BACKLOG_S, "format": "mp3"}
    waiting = [client.ask("POST", "/v1/jobs", {**song, "seed": seed})["id"] for seed in range(BACKLOG_SONGS)]
    while waiting:
        job = client.ask("GET", f"/v1/jobs/{waiting[-1]}")
        if job["status"] == "succeeded":
            waiting.pop()
        elif job["ended_at"] or time.perf_counter() - began_s > _LONGEST_S:
            raise RuntimeError(f"job {waiting[-1]} is {job['status']}: {job['error']}")
        else:
            time.sleep(_LOOK_S)
    return time.perf_counter() - began_s, worker_cpu_s(checkout) - began_cpu_s


def worker_cpu_s(checkout: Path) -> float:
    """What the processes of this checkout's worker have taken: engine, slots and supervisor."""
    taken_s = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if Path(process.cwd()) == checkout and any("gpu_worker" in word for word in process.cmdline()):
                times = process.cpu_times()
                taken_s += times.user + times.system
    return taken_s
