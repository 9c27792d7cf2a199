"""A queue for the tests of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from api.queue import pool_status
from tests.unit.queue_desk import Desk, open_desk


@pytest.fixture
async def desk(redis_url: str, file_store_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    """A queue on this test's Valkey and store."""
    monkeypatch.setattr(pool_status, "MAX_AGE_S", 0)  # what is announced here is looked for at once
    desk = open_desk(redis_url, file_store_url)
    yield desk
    desk.redis.close()
    await desk.jobs.redis.aclose()
