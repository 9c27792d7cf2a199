"""From the kill of a job's holder until it waits again, or another begins it: with the settings we ship.

Each case has processes of its own: a worker pod or two, one or two controller replicas, a Valkey, a directory store.
The engine is a fast one of the tests' that takes a minute over this song; nothing is sped up, so heartbeats, rounds and
leases are those of a deployment. Where the case says so a controller replica dies with the worker: the one that leads.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.record import Figures, spread
from serinette.job import AttemptOutcome
from serinette.leash import leashed
from tests.pod import Pod, pod
from tests.processes import eventually
from tests.servers import valkey

ROUNDS = 3
SHIPPED = {"heartbeat_s": 5, "heartbeat_ttl_s": 20, "interval_s": 2, "lease_s": 10}

Processes = list[subprocess.Popen[bytes]]


def kill_slot(home: Pod, workers: Processes, _keepers: Processes) -> None:
    """The slot alone: its supervisor lives."""
    os.kill(home.child(workers[0], "gpu_worker.slot").pid, signal.SIGKILL)


def kill_worker(_home: Pod, workers: Processes, _keepers: Processes) -> None:
    """The pod that generates, whole: it takes its children along."""
    workers[0].kill()


def kill_worker_and_controller(home: Pod, workers: Processes, keepers: Processes) -> None:
    """The pod that generates, and the replica at work: the first to start has the lease."""
    keepers[0].kill()
    kill_worker(home, workers, keepers)


CASES: dict[str, tuple[Callable[[Pod, Processes, Processes], None], int, int]] = {
    # name: who is killed, workers, replicas of the controller
    "slot_in_a_living_pod": (kill_slot, 1, 1),
    "worker_while_another_is_idle": (kill_worker, 2, 1),
    "last_worker": (kill_worker, 1, 1),
    "worker_and_one_of_two_controller_replicas": (kill_worker_and_controller, 1, 2),
}


def measure() -> Figures:
    """Every case in turn, so that what else happens on the machine befalls them alike."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, case in CASES.items():
            with tempfile.TemporaryDirectory() as directory:
                found[name].append(_recovery_s(Path(directory), *case))
    return {"settings": SHIPPED, "recovery_s": {name: spread(values, 2) for name, values in found.items()}}


def _recovery_s(
    directory: Path, kill: Callable[[Pod, Processes, Processes], None], workers: int, keepers: int
) -> float:
    with (
        valkey(directory / "valkey") as server,
        pod(directory, server.connection_url, SHIPPED) as home,
        _controllers(home, keepers) as running,
    ):
        pods = [home.start()]
        home.wait_stage()
        job_id = home.submit("slow 60", timeout_s=120)
        home.wait_step(job_id)
        pods += [home.start() for _ in range(workers - 1)]  # idle: the job has its worker
        _until(lambda: home.redis.zcard(home.settings.keys.workers) == workers)
        time.sleep(6)  # heartbeats go, rounds are made
        began_s = time.monotonic()
        kill(home, pods, running)
        _until(lambda: home.entry(job_id).attempts[0].outcome is AttemptOutcome.FAILED)
        return time.monotonic() - began_s


@contextmanager
def _controllers(home: Pod, replicas: int) -> Iterator[Processes]:
    running: Processes = []
    try:
        for number in range(replicas):
            with (home.directory / "controller.log").open("ab") as log:
                command = leashed([sys.executable, "-m", "controller"])
                running.append(subprocess.Popen(command, env=home.environment, stdout=log, stderr=log))
            if number == 0:
                _until(lambda: home.redis.exists(home.settings.keys.leader))  # it is up
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def _until(condition: Callable[[], object]) -> None:
    if not eventually(condition, 120):
        raise TimeoutError("two minutes were not enough")
