"""Gateway, controller, workers and KEDA get the same pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.settings import GatewaySettings
from controller.settings import ControllerSettings
from gpu_worker.process_setup import engine_environment
from gpu_worker.settings import CPU_CORES, GPU_CORES, Sizing, sizing_for
from serinette.settings import SharedSettings, read
from tests.chart.rendering import Render, find, of_kind


@pytest.mark.parametrize(("part", "kind"), [("gateway", GatewaySettings), ("controller", ControllerSettings)])
def test_they_know_the_pools_that_workers_serve(
    render: Render, part: str, kind: type[SharedSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render("gpu")
    env = find(objects, "Deployment", f"-{part}").env
    for name in ("SERINETTE_POOL", "SERINETTE_POOLS"):
        monkeypatch.setenv(name, env[name])
    settings = read(kind)
    assert isinstance(settings, GatewaySettings | ControllerSettings)
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


def test_pools_of_a_fixed_size_are_published_as_such(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("fixed", keda=False)
    monkeypatch.setenv("SERINETTE_POOLS", find(objects, "Deployment", "-gateway").env["SERINETTE_POOLS"])
    (pool, *_) = read(GatewaySettings).pools
    assert not of_kind(objects, "ScaledObject")
    assert (pool.min_workers, pool.max_workers) == (2, 2)


@pytest.mark.parametrize(
    ("asked", "slots"),
    [
        ({}, "2"),
        ({"maxBatch": 6}, "12"),
        ({"maxBatch": 64}, "64"),
        ({"maxBatch": 6, "slots": 3}, "3"),
        ({"maxBatch": 6, "slots": None}, "12"),
    ],
)
def test_slots_follow_the_batch_unless_they_are_given(render: Render, asked: dict[str, object], slots: str) -> None:
    objects = render("default", f"pools={json.dumps([{'name': 'default', **asked}])}")
    assert find(objects, "Deployment", "-worker-default").env["SERINETTE_SLOTS"] == slots
    (pool,) = json.loads(find(objects, "Deployment", "-gateway").env["SERINETTE_POOLS"])
    assert pool["slots"] == int(slots)


GPU = {"resource": "nvidia.com/gpu", "count": 1}


@pytest.mark.parametrize(
    ("asked", "gpu", "cores"),
    [
        ({}, False, CPU_CORES),
        ({"maxBatch": 4}, False, CPU_CORES),
        ({"resources": {"requests": {"cpu": "8"}}}, False, 8),
        ({"gpu": GPU}, True, GPU_CORES),
        ({"gpu": GPU, "maxBatch": None}, True, GPU_CORES),
        ({"gpu": GPU, "maxBatch": 16, "resources": {"requests": {"cpu": 4}}}, True, 4),
        ({"gpu": GPU, "maxBatch": 1, "resources": {"requests": {"cpu": "2.5"}}}, True, 2),
        ({"gpu": GPU, "resources": {"requests": {"cpu": "1500m"}}}, True, 1),
        ({"gpu": GPU, "resources": {"requests": {"cpu": "250m"}}}, True, 1),
        ({"device": "cuda:0"}, True, GPU_CORES),
        ({"runtimeClassName": "nvidia"}, True, GPU_CORES),
        ({"runtimeClassName": "gvisor"}, False, CPU_CORES),
    ],
)
def test_a_pool_is_sized_by_the_workers_own_rule(render: Render, asked: dict[str, Any], gpu: bool, cores: int) -> None:
    worker = find(
        render("default", f"pools={json.dumps([{'name': 'default', **asked}])}"), "Deployment", "-worker-default"
    )
    names = ("SERINETTE_MAX_BATCH", "SERINETTE_ENCODERS", "SERINETTE_SLOTS")
    expected = sizing_for(gpu=gpu, cores=cores, max_batch=asked.get("maxBatch") or 0)
    assert Sizing(*(int(worker.env[name]) for name in names)) == expected
    requested = worker.container["resources"]["requests"]["cpu"]
    assert requested == asked.get("resources", {"requests": {"cpu": str(cores)}})["requests"]["cpu"]


def test_the_values_for_gpus_leave_it_to_the_rule(render: Render) -> None:
    values = yaml.safe_load(Path("charts/serinette/values-gpu.yaml").read_text())["pools"][1]
    assert "maxBatch" not in values and "cpu" not in values["resources"]["requests"]


def test_memory_is_planned_by_the_engine_unless_it_is_set(render: Render) -> None:
    env = find(render(), "Deployment", "-worker-default").env
    assert "SERINETTE_CPU_OFFLOAD" not in env
    asked = [{"name": "default", "cpuOffload": True}]
    env = find(render("default", f"pools={json.dumps(asked)}"), "Deployment", "-worker-default").env
    assert env["SERINETTE_CPU_OFFLOAD"] == "true"


def test_what_one_pod_compiled_lies_in_the_volume_that_the_next_one_mounts(
    render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it in a process that compiled
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    worker = find(render(), "Deployment", "-worker-default")
    environment = engine_environment(Path(worker.env["SERINETTE_WORK_DIR"]))
    caches = {name: place for name, place in environment.items() if "CACHE" in name}
    (cache,) = (mount["mountPath"] for mount in worker.container["volumeMounts"] if mount["name"] == "checkpoints")
    assert len(caches) == 2 and all(place.startswith(f"{cache}/") for place in caches.values())
    assert not set(caches) & set(worker.env), "a variable of the pod's would go before it"


def test_gateway_and_workers_publish_the_same_loras(render: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render("gpu", 'loras={"choir": "s3://models/loras/choir"}')
    workers = [item for item in of_kind(objects, "Deployment") if "-worker-" in item.name]
    found = {item.env["SERINETTE_LORAS"] for item in [find(objects, "Deployment", "-gateway"), *workers]}
    assert len(workers) == 4 and len(found) == 1
    monkeypatch.setenv("SERINETTE_LORAS", found.pop())
    assert read(GatewaySettings).loras == {"choir": "s3://models/loras/choir"}
    assert "SERINETTE_LORAS" not in find(render("gpu"), "Deployment", "-gateway").env
