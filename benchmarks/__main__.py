"""`python -m benchmarks [name...]`: measure, write raw results, and put their figures into docs/benchmarks.md."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks import batch, client_import, demo, forgetting, gateway_import, gateway_load, page, recovery, songs
from benchmarks.engine import backlog, cold_start, feeding, speed
from benchmarks.engine.cases import Case, on_cpu, on_gpu
from benchmarks.record import Figures, write
from gpu_worker.engine_environment import engine_environment

BENCHMARKS = {
    "gateway-import": gateway_import.measure,
    "client-import": client_import.measure,
    "gateway-load": gateway_load.measure,
    "songs": songs.measure,
    "demo": demo.measure,
}
# Only by name: it takes long.
LONG = {
    "batch": batch.measure,
    "feeding": feeding.measure,
    "forgetting": forgetting.measure,
    "recovery": recovery.measure,
}
# Likewise, and they sing in this process.
ENGINE = {
    "engine": lambda: engine_figures(on_cpu()),
    "gpu-cold-start": lambda: cold_start.measure(on_gpu("turbo")),
    "gpu-engine": lambda: speed.measure(on_gpu("turbo")),
    "gpu-engine-xl": lambda: speed.measure(on_gpu("xl")),
    "gpu-backlog": lambda: backlog.measure(on_gpu("turbo")),
}


def engine_figures(case: Case) -> Figures:
    """All of the engine's benchmarks in one run: a CPU takes minutes for them."""
    return {"speed": speed.measure(case), "backlog": backlog.measure(case), "cold_start": cold_start.measure(case)}


def as_engine(names: list[str]) -> None:
    """Begin this process again as a worker's engine is begun: threads' and memory's settings are read then."""
    wanted = engine_environment(Path(tempfile.gettempdir()) / "serinette-benchmarks")
    if not wanted.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *names], {**wanted, **os.environ})


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all but the long ones."""
    known = BENCHMARKS | LONG | ENGINE
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    if any(name in ENGINE for name in names):
        as_engine(names)
    for name in names or BENCHMARKS:
        print(f"{name}...", flush=True)
        print(f"  {write(name, known[name]())}", flush=True)
    page.update()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
