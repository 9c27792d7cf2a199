"""What gateway and maintenance are told of the pools is what the workers and KEDA are told."""

from __future__ import annotations

import pytest

from api.settings import GatewaySettings, MaintenanceSettings
from serinette.settings import SharedSettings, read
from tests.chart.rendering import Render, find, of_kind


@pytest.mark.parametrize(("part", "kind"), [("gateway", GatewaySettings), ("maintenance", MaintenanceSettings)])
def test_they_know_the_pools_that_workers_serve(
    render: Render, part: str, kind: type[SharedSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render("gpu")
    env = find(objects, "Deployment", f"-{part}").env
    for name in ("SERINETTE_POOL", "SERINETTE_POOLS"):
        monkeypatch.setenv(name, env[name])
    settings = read(kind)
    assert isinstance(settings, GatewaySettings | MaintenanceSettings)
    assert settings.pool == "turbo"
    assert [pool.name for pool in settings.pools] == ["turbo", "small", "spot", "shared"]
    for pool in settings.pools:
        worker = find(objects, "Deployment", f"-worker-{pool.name}").env
        scaled = find(objects, "ScaledObject", f"-worker-{pool.name}")["spec"]
        assert (pool.min_workers, pool.max_workers) == (scaled["minReplicaCount"], scaled["maxReplicaCount"])
        assert pool.model == worker["SERINETTE_MODEL"]
        assert pool.model_name == worker.get("SERINETTE_MODEL_NAME", "")
        assert (pool.slots, pool.max_batch) == (int(worker["SERINETTE_SLOTS"]), int(worker["SERINETTE_MAX_BATCH"]))
        drain_s = None if pool.name == "spot" else int(worker["SERINETTE_DRAIN_TIMEOUT_S"])
        assert pool.longest_s == drain_s


def test_pools_of_a_fixed_size_are_told_as_such(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("fixed", keda=False)
    monkeypatch.setenv("SERINETTE_POOLS", find(objects, "Deployment", "-gateway").env["SERINETTE_POOLS"])
    (pool, *_) = read(GatewaySettings).pools
    assert not of_kind(objects, "ScaledObject")
    assert (pool.min_workers, pool.max_workers) == (2, 2)
