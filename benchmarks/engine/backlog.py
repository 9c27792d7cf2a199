"""A whole worker pod under backlog, from the queue to the store: songs a minute, and how busy its engine is."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.engine import plain
from benchmarks.engine.cases import Case, let_go
from benchmarks.engine.speed import PROMPTS
from benchmarks.record import Figures
from serinette.job import JobStatus
from serinette.spec import AudioFormat
from tests import servers
from tests.pod import Pod, pod

_BUSY = re.compile(r"^serinette_worker_engine_busy_seconds_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_LOAD_TIMEOUT_S = 900
_SONG_TIMEOUT_S = 900


def measure(case: Case) -> Figures:
    """For each length diffusers' loop, a pod that does one thing at a time, one that overlaps, and one that batches."""
    loops = plain.measure(case)
    let_go()
    rows = [
        _measured(case, duration_s, slots, batch)
        for duration_s in case.backlog_durations_s
        for slots, batch in case.backlog_ways
    ]
    return {
        "device": case.device_name,
        "songs": case.backlog_songs,
        "plain": loops,
        "pod": rows,
        "ratios": [_ratios(duration_s, loops, rows) for duration_s in case.backlog_durations_s],
    }


def _ratios(duration_s: float, loops: Sequence[Figures], rows: Sequence[Figures]) -> Figures:
    """The pod's best against the plain loop at batch 1, and at the loop's own best batch."""
    one, *_ = own = [float(row["songs_per_min"]) for row in loops if row["duration_s"] == duration_s]
    pods = [float(row["songs_per_min"]) for row in rows if row["duration_s"] == duration_s]
    gains = (round(later / earlier, 2) for earlier, later in itertools.pairwise(pods))
    return {
        "duration_s": duration_s,
        "to_plain": round(max(pods) / one, 2),
        "to_plain_at_its_best": round(max(pods) / max(own), 2),
        **dict(zip(("overlap", "batching"), gains, strict=False)),
    }


def _measured(case: Case, duration_s: float, slots: int, batch: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="bench-") as place, servers.valkey(Path(place) / "valkey") as server:
        (port,) = servers.free_ports(1)
        settings = {
            "engine_module": "gpu_worker.engine",
            "model": case.model,
            "device": case.device,
            "compile": case.compile,
            "work_dir": case.directory,
            "threads": os.cpu_count(),
            "slots": slots,
            "max_batch": batch,
            "metrics_port": port,
            "heartbeat_s": 5,
            "heartbeat_ttl_s": 20,
        }
        directory = Path(place) / "pod"
        directory.mkdir()
        with pod(directory, server.connection_url, settings) as made:
            row = _drained(made, case, duration_s, f"http://127.0.0.1:{port}/metrics")
    row = {"duration_s": duration_s, "slots": slots, "max_batch": batch, **row}
    print("   ", row, flush=True)
    return row


def _drained(made: Pod, case: Case, duration_s: float, metrics: str) -> Figures:
    made.start()
    made.wait_stage(timeout_s=_LOAD_TIMEOUT_S)
    _generate(made, 2, duration_s)
    time.sleep(case.metrics_settle_s)
    busy_s, began_s = _busy_s(metrics), time.perf_counter()
    _generate(made, case.backlog_songs, duration_s)
    wall_s = time.perf_counter() - began_s
    time.sleep(case.metrics_settle_s)
    return {
        "wall_s": round(wall_s, 2),
        "songs_per_min": round(60 * case.backlog_songs / wall_s, 1),
        "engine_busy_share": round((_busy_s(metrics) - busy_s) / wall_s, 3),
    }


def _generate(made: Pod, songs: int, duration_s: float) -> None:
    jobs = [
        made.submit(PROMPTS[index % len(PROMPTS)], duration_s=duration_s, format=AudioFormat.MP3, timeout_s=3600)
        for index in range(songs)
    ]
    for job_id in jobs:
        made.wait_over(job_id, JobStatus.SUCCEEDED, timeout_s=_SONG_TIMEOUT_S)


def _busy_s(metrics: str) -> float:
    found = _BUSY.search(httpx.get(metrics, timeout=30).text)
    if found is None:
        raise RuntimeError(f"{metrics} has no busy seconds of the engine")
    return float(found[1])
