"""Slots that generate nothing, quickly.

`python -m tests.load.quick_slots REDIS_URL STORE_URL LOG SONG_S SLOTS`: they claim jobs, highest lane first, and write
to Redis and store what slots write; a song is a wait and three bytes. A prompt that holds `wrong` fails. Each begun
job's id is a line of LOG: what is there twice was begun twice.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from pathlib import Path

from redis import Redis

from serinette.job import JobError
from serinette.jobs import Claimed, Jobs, Lease, calls
from serinette.names import DEFAULT_POOL, Keys, Lane
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.unit.batch_bench import fail, succeed

_LEASE_S = 20.0
_WRONG = JobError(code="invalid_output", message="nothing was heard")


def serve(redis_url: str, store_url: str, log: Path, song_s: float, slot: str) -> None:
    """One slot, for ever."""
    redis, store, keys = Redis.from_url(redis_url), Store.open(SharedSettings(store_url=store_url)), Keys()
    jobs, lease, woken = Jobs(redis, keys.prefix), Lease(slot, _LEASE_S), False
    with log.open("a") as begun:
        while True:
            claimed = jobs(calls.claim(uuid.uuid4().hex, lease, DEFAULT_POOL, list(Lane), woken=woken))
            woken = False
            if isinstance(claimed, Claimed):
                begun.write(f"{claimed.entry.id}\n")
                begun.flush()
                time.sleep(song_s)
                if "wrong" in claimed.entry.spec.prompt:
                    fail(jobs, store, claimed.entry.id, _WRONG)
                else:
                    succeed(jobs, store, claimed.entry.id, [b"la\n"])
            elif not claimed:
                woken = redis.blpop([keys.wake(DEFAULT_POOL)], 1) is not None


def main() -> None:
    redis_url, store_url, log, song_s, slots = sys.argv[1:]
    threads = [
        threading.Thread(target=serve, args=(redis_url, store_url, Path(log), float(song_s), f"quick.{n}.load"))
        for n in range(int(slots))
    ]
    for thread in threads:
        thread.start()
    threads[0].join()


if __name__ == "__main__":
    main()
