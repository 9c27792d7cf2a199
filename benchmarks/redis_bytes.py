"""Bytes that Redis holds of a job while it waits, while it runs, after its end and once its record has shrunk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.record import Figures
from serinette.job import JobStatus
from serinette.jobs import Claimed, Outcome, calls
from serinette.names import Keys
from serinette.spec import GenerationSpec
from tests.jobs import Board
from tests.servers import valkey
from tests.unit.batch_bench import result

JOBS = int(os.environ.get("JOBS", "20000"))
SPEC = GenerationSpec(
    prompt="a slow jazz ballad with brushed drums, upright bass and a muted trumpet, late at night, 72 bpm",
    duration_s=60,
    seed=7,
)
# A beat every five seconds of a minute's song.
BEATS = 12
PROGRESS = '{"stage":"denoising","step":4,"steps":8,"at":"2026-01-01T00:00:00Z"}'
# Jobs whose records are whole at a time: of a service that runs for days, few are.
WAVE = 500


def measure() -> Figures:
    """JOBS of them in each state, with one label each; the shrunk ones come in waves, as over days."""
    with (
        tempfile.TemporaryDirectory() as directory,
        valkey(Path(directory) / "valkey") as server,
        Redis.from_url(server.connection_url) as redis,
    ):
        board = Board(redis, Keys())
        _shrunk(board, WAVE)  # what is kept once, scripts among it, is there from now on
        steady = redis.info("memory")["used_memory"]
        _shrunk(board, JOBS)
        figures = {"jobs": JOBS, "ended_shrunk_bytes": _each(redis, steady)}
        redis.flushdb()  # our own server's
        steady = redis.info("memory")["used_memory"]
        _submit(board, JOBS)
        figures["waiting_bytes"] = _each(redis, steady)
        held = _claim(board, JOBS)
        for claimed in held:
            owner, lease = claimed.entry.owner or "", board.lease_of(claimed)
            board.jobs.many(BEATS * [calls.beat(claimed.entry.id, owner, lease, PROGRESS)])
        figures["running_bytes"] = _each(redis, steady)
        _end(board, held)
        figures["ended_whole_bytes"] = _each(redis, steady)
        return figures


def _shrunk(board: Board, count: int) -> None:
    for _ in range(0, count, WAVE):
        _submit(board, WAVE)
        held = _claim(board, WAVE)
        _end(board, held)
        entries = [seen.entry for seen in board.jobs(calls.look([claimed.entry.id for claimed in held]))]
        shrinks = [calls.shrink(entry) for entry in entries if entry]
        done = board.jobs.many(shrinks)
        if not all(done):
            raise RuntimeError("a record was not shrunk")


def _submit(board: Board, count: int) -> None:
    for _ in range(count):
        board.submit(None, SPEC, labels={"album": "blue"}, digest=SPEC.digest())


def _claim(board: Board, count: int) -> list[Claimed]:
    return [claimed for _ in range(count) if (claimed := board.claim())]


def _end(board: Board, held: list[Claimed]) -> None:
    for claimed in held:
        job_id, attempt_id = claimed.entry.id, claimed.entry.owner or ""
        songs = result("default", job_id, attempt_id, [b"song"])
        board.finish(claimed, Outcome(JobStatus.SUCCEEDED, result=songs), recorded=True)


def _each(redis: Redis, before: int) -> int:
    memory: Any = redis.info("memory")
    return round((int(memory["used_memory"]) - before) / JOBS)
