"""From a submit to its start in an idle, warm slot, with this checkout's code and in turns with another's.

Gateway and worker run as real processes, with an engine that needs no torch and a Valkey of their own for each
checkout; both are up at once, and each job has the machine to itself.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.peers.load import Client
from benchmarks.peers.servers import ROOT, environment_of, started, wait_until
from benchmarks.record import Figures, spread
from tests.servers import free_ports, valkey

SONG = {"prompt": "jazz", "duration_s": 1, "format": "wav"}
PAUSE_S = 0.3  # the slot is idle again
LONGEST_S = 60.0


@contextmanager
def idle_worker(checkout: Path, directory: Path, **given: object) -> Iterator[Client]:
    """A client of a gateway with one worker that is ready, both of `checkout`; `given` among their settings."""
    port = free_ports(1)[0]
    with valkey(directory / "valkey") as server:
        settings = {"port": port, "engine_module": "tests.engines", "slots": 1, "log_level": "WARNING", **given}
        environment = environment_of(server.connection_url, directory, **settings)
        with started(["api"], environment, checkout) as process, started(["gpu_worker"], environment, checkout):
            wait_until(port, "/health", "pipeline_loaded", process)
            yield Client(port)


def start_ms(client: Client) -> tuple[float, float]:
    """Milliseconds to the start of a job's attempt: from before its request, and from its own `created_at`."""
    sent_at = time.time()
    job_id = client.ask("POST", "/v1/jobs", SONG)["id"]
    while (job := client.ask("GET", f"/v1/jobs/{job_id}"))["status"] != "succeeded":
        if job["ended_at"] or time.time() - sent_at > LONGEST_S:
            raise RuntimeError(f"job {job_id} is {job['status']}: {job['error']}")
        time.sleep(0.05)
    time.sleep(PAUSE_S)
    created, began = (datetime.fromisoformat(job[name]).timestamp() for name in ("created_at", "started_at"))
    return 1000 * (began - sent_at), 1000 * (began - created)


def commit_of(checkout: Path) -> str:
    """What is checked out there."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def measure(rounds: int = 40, other: Path | None = None) -> Figures:
    """Jobs in turn, one of each checkout in a round; ratios are within a round."""
    checkouts = {"this": ROOT, **({"other": other.resolve()} if other else {})}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        clients = {
            name: stack.enter_context(idle_worker(checkout, directory / name)) for name, checkout in checkouts.items()
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
        for number in range(rounds + 1):  # the first one warms up, uncounted
            for name, client in clients.items():
                took = start_ms(client)
                taken[name] += [took] if number else []
    figures: Figures = {
        name: {
            "commit": commit_of(checkouts[name]),
            "sent_to_start_ms": spread([sent for sent, _ in each], 2),
            "created_to_start_ms": spread([created for _, created in each], 2),
        }
        for name, each in taken.items()
    }
    if other:
        pairs = zip(taken["this"], taken["other"], strict=True)
        figures["sent_to_start_this_to_other"] = spread([mine[0] / theirs[0] for mine, theirs in pairs])
    return figures
