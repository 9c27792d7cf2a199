"""Slots that generate nothing, quickly.

`python -m tests.load.quick_slots REDIS_URL STORE_URL LOG SONG_S SLOTS`: they claim jobs, highest lane first, and end
them as slots do; a song is a wait and three bytes. A prompt that holds `wrong` fails. Each begun job's id is a line of
LOG: what is there twice was generated twice.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from pathlib import Path

from redis import Redis

from serinette.job import JobError, JobStatus
from serinette.jobs import Claimed, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import DEFAULT_POOL, Keys, Lane, artifact_key
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.slot_bench import a_result


def end(jobs: Jobs, store: Store, claimed: Claimed, song_s: float) -> None:
    """What a slot writes of one job."""
    entry, attempt = claimed.entry, claimed.entry.attempts[-1]
    time.sleep(song_s)
    if "wrong" in entry.spec.prompt:
        error = JobError(code="invalid_output", message="no audio")
        jobs(calls.finish(entry.id, attempt.id, Outcome(JobStatus.FAILED, error), recorded=False, by=attempt.id))
        return
    store.put(artifact_key(entry.tenant, entry.id, attempt.id, 0, "mp3"), b"la\n")
    outcome = Outcome(JobStatus.SUCCEEDED, result=a_result(entry.id))
    finish_as(jobs, put_record(store, record_of(entry, attempt, outcome)), by=attempt.id)


def serve(redis_url: str, store_url: str, log: Path, song_s: float) -> None:
    """One slot, until it is killed."""
    keys = Keys()
    redis, store = Redis.from_url(redis_url), Store.open(SharedSettings(store_url=store_url))
    jobs, lease = Jobs(redis, keys.prefix), Lease(f"quick-1.{threading.get_ident()}.slot", 60)
    with log.open("a") as begun:
        while True:
            claimed = jobs(calls.claim(uuid.uuid4().hex, lease, DEFAULT_POOL, list(Lane)))
            if isinstance(claimed, Claimed):
                begun.write(f"{claimed.entry.id}\n")
                begun.flush()
                end(jobs, store, claimed, song_s)
            elif not claimed:
                redis.blpop([keys.wake(DEFAULT_POOL)], 1)


def main() -> None:
    redis_url, store_url, log, song_s, slots = sys.argv[1:]
    threads = [
        threading.Thread(target=serve, args=(redis_url, store_url, Path(log), float(song_s))) for _ in range(int(slots))
    ]
    for thread in threads:
        thread.start()
    threads[0].join()


if __name__ == "__main__":
    main()
