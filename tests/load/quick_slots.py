"""Slots that sing nothing, quickly.

`python -m tests.load.quick_slots REDIS_URL STORE_URL LOG SONG_S SLOTS RETENTION_S`: they take jobs from the lanes,
highest first, and write to queue, ledger and store what slots write; a song is a wait and three bytes. A prompt that
holds `wrong` fails. Each begun job's id is a line of LOG: what is there twice was sung twice.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from redis import Redis
from rq.job import Job as RqJob
from rq.job import JobStatus as RqStatus
from rq.serializers import JSONSerializer

from serinette.job import JobError, JobStatus
from serinette.ledger import Ledger, Outcome
from serinette.names import DEFAULT_POOL, Keys, Lane, artifact_key
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.maintenance_bench import a_result

_TENANT = "default"


def sing(redis: Redis, store: Store, ledger: Ledger, job_id: str, song_s: float) -> bool:
    """Begin and end one job; False if it was not to be begun."""
    attempt = uuid.uuid4().hex
    if ledger.begin_attempt(job_id, attempt, "quick") <= 0:
        return False
    job = RqJob.fetch(job_id, redis, JSONSerializer)
    time.sleep(song_s)
    with redis.pipeline(transaction=True) as pipe:
        if "wrong" in job.kwargs["spec"].get("prompt", ""):
            error = JobError(code="invalid_output", message="nothing was heard")
            job.set_status(RqStatus.FAILED, pipeline=pipe)
            job.failed_job_registry.add(job, ttl=ledger.ttl_s, exc_string=error.message, pipeline=pipe)
            pipe.expire(job.key, ledger.ttl_s)
            ledger.settle(job_id, Outcome(JobStatus.FAILED, error), pipeline=pipe)
        else:
            store.put(artifact_key(_TENANT, job_id, attempt, 0, "mp3"), b"la\n")
            result = a_result(job_id)
            job._result = result.model_dump(mode="json")
            job._handle_success(ledger.ttl_s, pipe)
            ledger.settle(job_id, Outcome(JobStatus.SUCCEEDED, result=result), pipeline=pipe)
        pipe.execute()
    return True


def serve(redis_url: str, store_url: str, log: Path, song_s: float, retention_s: int) -> None:
    """One slot, for ever."""
    redis, store = Redis.from_url(redis_url), Store.open(SharedSettings(store_url=store_url))
    keys = Keys()
    ledger = Ledger(redis, keys, retention_s)
    lanes = [keys.waiting(DEFAULT_POOL, lane) for lane in (Lane.HIGH, Lane.NORMAL, Lane.LOW)]
    with log.open("a") as begun:
        while True:
            popped: Any = redis.blpop(lanes, 1)
            if popped and sing(redis, store, ledger, popped[1].decode(), song_s):
                begun.write(f"{popped[1].decode()}\n")
                begun.flush()


def main() -> None:
    redis_url, store_url, log, song_s, slots, retention_s = sys.argv[1:]
    threads = [
        threading.Thread(target=serve, args=(redis_url, store_url, Path(log), float(song_s), int(retention_s)))
        for _ in range(int(slots))
    ]
    for thread in threads:
        thread.start()
    threads[0].join()


if __name__ == "__main__":
    main()
