"""A whole Serinette in a temporary directory and on a free port: gateway, controller and worker as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serinette.leash import leashed
from tests.servers import free_ports, valkey

MODULES = {"gateway": "api", "controller": "controller", "worker": "gpu_worker"}


@dataclass
class Stack:
    """Processes by name, to be killed and started again as a test likes; what they wrote lies in `directory`."""

    directory: Path
    url: str
    redis_url: str
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, environment: Mapping[str, str] | None = None) -> None:
        """Start gateway, controller or worker, with settings of its own beyond the shared ones."""
        with (self.directory / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                leashed([sys.executable, "-m", MODULES[name]]),
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def stop(self, name: str, timeout_s: float = 20) -> None:
        """Ask a process to leave, and end whatever is left of it and its children."""
        self.processes[name].terminate()
        with suppress(subprocess.TimeoutExpired):
            self.processes[name].wait(timeout_s)
        self.kill(name)

    def kill(self, name: str) -> None:
        """End a process and its children at once."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        """The end of what a process wrote."""
        return (self.directory / f"{name}.log").read_text(errors="replace")[-4_000:]

    def wait_health(self, *, loaded: bool = True, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until the gateway answers and, if `loaded`, a worker has its model; what /health then says."""
        deadline = time.monotonic() + timeout_s
        health: dict[str, Any] = {}
        with httpx.Client(timeout=2) as http:  # one, for each reads all certificates of the system
            while time.monotonic() < deadline:
                for name, process in self.processes.items():
                    assert process.poll() is None, f"{name} ended with {process.returncode}:\n{self.log(name)}"
                with suppress(httpx.HTTPError, ValueError):
                    health = http.get(f"{self.url}/health").json()
                    if health.get("pipeline_loaded") or (health and not loaded):
                        return health
                time.sleep(0.1)
        logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes)
        raise AssertionError(f"no model within {timeout_s} s; /health says {health}\n{logs}")


@contextmanager
def running(
    directory: Path,
    *,
    shared: Mapping[str, str] | None = None,
    gateway: Mapping[str, str] | None = None,
    worker: Mapping[str, str] | None = None,
    parts: tuple[str, ...] = tuple(MODULES),
) -> Iterator[Stack]:
    """Start `parts` in `directory`, each with environment of its own beyond `shared`; waits for those it starts.

    For an engine that needs no torch give `worker={"SERINETTE_ENGINE_MODULE": "tests.engines"}`.
    """
    port = free_ports(1)[0]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SERINETTE_")}
    with valkey(directory / "valkey") as server:
        environment = {
            **inherited,
            "OMP_NUM_THREADS": "2",
            "PYTHONUNBUFFERED": "1",
            "SERINETTE_REDIS_URL": server.connection_url,
            "SERINETTE_STORE_URL": f"file://{directory / 'store'}",
            "SERINETTE_WORK_DIR": str(directory / "work"),
            "SERINETTE_PORT": str(port),
            **(shared or {}),
        }
        stack = Stack(directory, f"http://127.0.0.1:{port}", server.connection_url, environment)
        own = {"gateway": gateway, "controller": None, "worker": worker}
        try:
            for part in parts:
                stack.start(part, own[part])
            stack.wait_health(loaded="worker" in parts)
            yield stack
        finally:
            for part in list(stack.processes):
                stack.kill(part)
