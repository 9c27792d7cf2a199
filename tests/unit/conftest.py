"""A queue for the tests of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from api.queue import pool_status
from tests.unit.queue_harness import QueueHarness, open_queue


@pytest.fixture
async def harness(redis_url: str, file_store_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[QueueHarness]:
    """A queue on this test's Valkey and store."""
    monkeypatch.setattr(pool_status, "MAX_AGE_S", 0)  # what is announced here is looked for at once
    harness = open_queue(redis_url, file_store_url)
    yield harness
    harness.redis.close()
    await harness.jobs.redis.aclose()
