"""How much of Redis a page of jobs reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pytest
from redis import Redis

from api.queue.reader import SCAN_CHUNK, Reader
from api.queue.sighting import Sighting
from serinette.job import now
from serinette.ledger import Ledger
from serinette.names import Keys


@pytest.mark.parametrize(
    ("limit", "wanted", "expected"),
    [(3, 3, [3]), (4, 5, [4, 8]), (4, 50, [4, 8, 16, 32]), (100, 100, [100]), (100, 250, [100, SCAN_CHUNK])],
)
def test_a_page_reads_few_jobs_at_first(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, limit: int, wanted: int, expected: list[int]
) -> None:
    ledger = Ledger(redis, Keys(), 60)
    for number in range(300):
        ledger.open(f"job-{number}", "me", now())
    read: list[int] = []
    see = Reader.see

    def counted(self: Reader, job_ids: Sequence[str]) -> list[Sighting | None]:
        read.append(len(job_ids))
        return see(self, job_ids)

    monkeypatch.setattr(Reader, "see", counted)
    found = [cursor.job_id for cursor, _ in islice(Reader(redis, ledger).scan("me", None, limit), wanted)]
    assert len(set(found)) == wanted
    assert read == expected
