"""Jobs that came, ended in every way and were forgotten leave nothing that grows with their number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.load.crowd import TENANTS, WAYS, Crowd
from tests.receivers import receiver

# `make load` sends 100,000, by the transitions of gateway and slot alone.
JOBS = int(os.environ.get("JOBS", "1000"))
WAVE = 500
RETENTION_S = 5
# One entry in a set for each job would take fifty times as much.
BYTES_PER_JOB = 2.0
# However many jobs came: tables that grew with the most that were known at once shrink when Valkey finds the time. Seen
# were 15 to 32 kB; an entry for each of 1,000 jobs would be 110 more.
SLACK_BYTES = 49_152


@pytest.mark.timeout(7200)
def test_redis_and_store_are_back_where_they_began(tmp_path: Path, redis_url: str) -> None:
    with receiver() as target:
        crowd = Crowd(tmp_path, redis_url, target, RETENTION_S)
        crowd.wave(len(WAYS) * TENANTS)  # every tenant ends every way: what is kept once is there from now on
        before = crowd.settle(timeout_s=600)
        for _ in range(0, JOBS, WAVE):
            crowd.wave(WAVE)
        after = crowd.settle(timeout_s=600)
    assert crowd.reported() == crowd.ended
    assert after.kept == before.kept
    assert before.files == after.files == 0
    grown = after.memory_bytes - before.memory_bytes
    assert grown < SLACK_BYTES + BYTES_PER_JOB * JOBS, f"{grown} bytes more, of {before.memory_bytes}"
