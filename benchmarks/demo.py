"""`serinette demo`, the second time: what `make demo` takes once everything is installed."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.record import Figures, spread
from tests.up import run_cli

RUNS = 3


def measure() -> Figures:
    """Wall time of whole runs in one data directory; the first makes the checkpoint and does not count."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        walls_s = [_run(Path(directory)) for _ in range(RUNS + 1)]
    return {"first_wall_s": round(walls_s[0], 2), "wall_s": spread(walls_s[1:], 2)}


def _run(directory: Path) -> float:
    began = time.perf_counter()
    ended = run_cli("demo", "--port", "0", "--data-dir", str(directory / "data"), timeout_s=600, cwd=directory)
    if ended.returncode != 0:
        raise RuntimeError(ended.stderr)
    return time.perf_counter() - began
