"""Two replicas of the gateway, and a slot that works by hand, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from serinette.settings import SharedSettings
from serinette.store import Store
from tests.gateways import HandSlot, RunningGateway, gateway


@pytest.fixture(scope="module")
def two_gateways(
    valkey_url: str, store_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """Two replicas on the module's Valkey and store."""
    directory = tmp_path_factory.mktemp("gateways")
    with gateway(directory, valkey_url, store_url) as one, gateway(directory, valkey_url, store_url) as other:
        yield one, other


@pytest.fixture
def slot(valkey_url: str, store_url: str) -> Iterator[HandSlot]:
    """Claims and ends jobs as the test asks."""
    with Redis.from_url(valkey_url) as redis:
        yield HandSlot(redis, Store.open(SharedSettings.model_validate({"store_url": store_url})))
