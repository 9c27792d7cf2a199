"""What is left of jobs that came, ended in every way and were forgotten, in Redis and in the store."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

from benchmarks.record import Figures
from tests.load.crowd import TENANTS, WAYS, Crowd, Held
from tests.receivers import receiver
from tests.servers import valkey

JOBS = int(os.environ.get("JOBS", "100000"))
WAVE = 500
RETENTION_S = 5


def measure() -> Figures:
    """Before and after so many jobs; about twenty minutes on two calm cores."""
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as directory,
        valkey(Path(directory) / "valkey") as server,
        receiver() as target,
    ):
        crowd = Crowd(Path(directory), server.connection_url, target, RETENTION_S)
        crowd.wave(WAVE)  # what is kept once is there from now on
        before, began_s, most = crowd.settle(timeout_s=600), time.monotonic(), 0
        first = crowd.ended.copy()
        for _ in range(0, JOBS, WAVE):
            crowd.wave(WAVE)
            most = max(most, crowd.held().memory_bytes)
        wall_s, after = time.monotonic() - began_s, crowd.settle(timeout_s=600)
        return {
            "jobs": crowd.ended.total() - first.total(),
            "ended": dict(crowd.ended - first),
            "told_by_usage": dict(crowd.reported() - first),
            "ways": {way: WAYS.count(way) for way in WAYS},
            "tenants": TENANTS,
            "webhooks": len(set(target.ids)),
            "wall_s": round(wall_s, 1),
            "before": _figures(before),
            "most_memory_bytes": most,
            "after": _figures(after),
            "grown_keys": len(after.names) - len(before.names),
            "grown_bytes": after.memory_bytes - before.memory_bytes,
        }


def _figures(held: Held) -> Figures:
    return {
        "keys": len(held.names),
        "names": sorted(held.names),
        "memory_bytes": held.memory_bytes,
        "files": held.files,
    }
