"""What a job waited for and what its song took, counted in the transactions that begin and end it."""

from __future__ import annotations

from redis.client import Pipeline
from rq.job import Job

from gpu_worker.slot.clock import StageClock
from serinette import tally
from serinette.job import Result, now
from serinette.names import Keys


def count_claim(pipe: Pipeline, keys: Keys, job: Job) -> None:
    """A job's first claim."""
    pool, _, lane = job.origin.rpartition(".")
    waited_s = max(0.0, (now() - job.created_at).total_seconds())
    tally.observe(pipe, keys, tally.WAIT, waited_s, pool, lane)


def count_song(pipe: Pipeline, keys: Keys, job: Job, result: Result, clock: StageClock) -> None:
    """A job that this attempt sang."""
    pool, timings = job.origin.rpartition(".")[0], result.timings
    tally.observe(pipe, keys, tally.RUN, timings.run_s, pool)
    parts = {"generate": timings.generate_s, "encode": timings.encode_s, "upload": timings.upload_s}
    for stage, seconds in parts.items():
        tally.observe(pipe, keys, tally.STAGE, seconds, pool, stage)
    if timings.generate_s > 0:
        audio_s = sum(artifact.duration_s for artifact in result.artifacts)
        tally.observe(pipe, keys, tally.REAL_TIME_FACTOR, audio_s / timings.generate_s, pool)
    if clock.steps_per_s:
        tally.observe(pipe, keys, tally.STEP_RATE, clock.steps_per_s, pool)
