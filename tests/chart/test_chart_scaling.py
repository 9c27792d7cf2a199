"""KEDA reads the keys that our processes use, by the measured formula."""

from __future__ import annotations

import pytest

from serinette.names import Keys, Lane
from tests.chart.rendering import Manifest, Render, find, of_kind
from tools.scaling.formula import Formula

VALUES = ("default", "external", "gpu", "sentinel")


def pools(objects: tuple[Manifest, ...]) -> list[str]:
    return [item["metadata"]["labels"]["serinette.dev/pool"] for item in of_kind(objects, "ScaledObject")]


@pytest.mark.parametrize("values", VALUES)
def test_keda_reads_what_our_processes_write(render: Render, values: str) -> None:
    objects = render(values)
    prefix = find(objects, "Deployment", "-controller").env["RQ_KEY_PREFIX"]
    keys = Keys(prefix)
    for pool in pools(objects):
        triggers = find(objects, "ScaledObject", f"-worker-{pool}")["spec"]["triggers"]
        assert {trigger["name"]: trigger["metadata"]["listName"] for trigger in triggers} == {
            **{str(lane): keys.waiting(pool, lane) for lane in Lane},
            "busy": keys.busy(pool),
            "brake": keys.brake(pool),
        }
        kind = "redis-sentinel" if values == "sentinel" else "redis"
        assert {trigger["type"] for trigger in triggers} == {kind}


@pytest.mark.parametrize("values", ("default", "external", "gpu"))
def test_keda_and_our_processes_are_sent_to_one_redis(render: Render, values: str) -> None:
    objects = render(values)
    url = find(objects, "Deployment", "-controller").env["SERINETTE_REDIS_URL"]
    for scaled in of_kind(objects, "ScaledObject"):
        for trigger in scaled["spec"]["triggers"]:
            metadata = trigger["metadata"]
            assert url.partition("?")[0].partition("://")[2] == f"{metadata['address']}/{metadata['databaseIndex']}"


def test_keda_authenticates_with_the_same_secrets(render: Render) -> None:
    objects = render("external")
    env = find(objects, "Deployment", "-controller").env
    assert env["SERINETTE_REDIS_URL"].startswith("rediss://")
    given = {
        item["parameter"]: (item["name"], item["key"])
        for item in find(objects, "TriggerAuthentication", "-redis")["spec"]["secretTargetRef"]
    }
    for parameter, variable in (("password", "SERINETTE_REDIS_PASSWORD"), ("username", "SERINETTE_REDIS_USERNAME")):
        reference = env[variable]["secretKeyRef"]
        assert given[parameter] == (reference["name"], reference["key"])
    assert given["ca"] == ("redis-ca", "ca.crt")
    # KEDA refuses enableTLS beside a TriggerAuthentication's tls, and takes a CA only with the latter.
    assert given["tls"] == ("studio-redis", "tls")
    assert find(objects, "Secret", "-redis")["stringData"] == {"tls": "enable"}
    scaled = of_kind(objects, "ScaledObject")[0]
    assert all("enableTLS" not in trigger["metadata"] for trigger in scaled["spec"]["triggers"])


def test_keda_and_our_processes_ask_the_same_sentinels(render: Render) -> None:
    objects = render("sentinel", "redis.db=3")
    env = find(objects, "Deployment", "-worker-default").env
    assert env["SERINETTE_REDIS_URL"].partition("?")[0] == "rediss://primary/3"
    for trigger in of_kind(objects, "ScaledObject")[0]["spec"]["triggers"]:
        metadata = trigger["metadata"]
        assert metadata["addresses"] == env["SERINETTE_REDIS_SENTINELS"]
        assert (metadata["sentinelMaster"], metadata["databaseIndex"]) == (env["SERINETTE_REDIS_PRIMARY"], "3")
        assert "address" not in metadata
    given = {
        item["parameter"]: {"name": item["name"], "key": item["key"]}
        for item in find(objects, "TriggerAuthentication", "-redis")["spec"]["secretTargetRef"]
    }
    for parameter, variable in (
        ("password", "REDIS_PASSWORD"),
        ("sentinelPassword", "REDIS_SENTINEL_PASSWORD"),
        ("sentinelUsername", "REDIS_SENTINEL_USERNAME"),
    ):
        assert given[parameter] == env[f"SERINETTE_{variable}"]["secretKeyRef"]
    for part in ("gateway", "controller", "worker"):
        egress = find(objects, "NetworkPolicy", f"-{part}")["spec"]["egress"]
        ports = {port["port"] for rule in egress for port in rule["ports"]}
        assert ports >= {6379, 26379}, "the primary and the sentinels"


def test_tls_without_a_custom_ca_is_set_on_the_trigger(render: Render) -> None:
    objects = render("external", 'redis.tls.caSecret=""', 'redis.auth={"existingSecret": ""}')
    assert all(
        trigger["metadata"]["enableTLS"] == "true" and "authenticationRef" not in trigger
        for trigger in of_kind(objects, "ScaledObject")[0]["spec"]["triggers"]
    )
    assert not of_kind(objects, "TriggerAuthentication")


@pytest.mark.parametrize(
    ("waiting", "busy", "brake", "wanted"),
    [
        ((0, 0, 0), 0, 0, 0),
        ((0, 1, 0), 0, 0, 1),
        ((4, 4, 1), 0, 0, 3),  # measured: 9 waiting, J = 4
        ((0, 0, 0), 1, 0, 1),  # measured: 8 songs batched on one worker
        ((0, 40, 0), 1, 0, 6),
        ((0, 40, 0), 1, 1, 1),  # measured: the brake
        ((0, 0, 0), 8, 0, 8),  # a lowered max ends no busy worker
        ((0, 9, 0), 0, 2, 0),
    ],
)
def test_the_formula_wants_what_was_measured(
    render: Render, waiting: tuple[int, int, int], busy: int, brake: int, wanted: int
) -> None:
    (scaled,) = of_kind(render("default", "poolDefaults.max=6", "poolDefaults.jobsPerWorker=4"), "ScaledObject")
    modifiers = scaled["spec"]["advanced"]["scalingModifiers"]
    values = dict(zip(Lane, waiting, strict=True)) | {"busy": busy, "brake": brake}
    assert Formula.parse(modifiers["formula"])(values) == wanted
    assert (modifiers["target"], modifiers["activationTarget"], modifiers["metricType"]) == ("1", "0", "AverageValue")


def test_nothing_divides_by_a_trigger_and_nothing_falls_back(render: Render) -> None:
    for scaled in of_kind(render("gpu"), "ScaledObject"):
        spec = scaled["spec"]
        divisor = spec["advanced"]["scalingModifiers"]["formula"].partition("/ ")[2].partition(")")[0]
        assert divisor.isdigit() and int(divisor) > 0
        assert "fallback" not in spec
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behavior["scaleUp"]["policies"] and behavior["scaleDown"]["policies"]
        assert {policy["type"] for policy in behavior["scaleDown"]["policies"]} == {"Percent", "Pods"}


def test_a_pool_scales_from_its_floor_to_its_max_in_one_go(render: Render) -> None:
    spec = find(render("gpu"), "ScaledObject", "-worker-turbo")["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 500)
    assert "min(busy + ceil((high + normal + low) / 8), 500)" in spec["advanced"]["scalingModifiers"]["formula"]
    up = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]
    assert up["policies"] == [{"type": "Pods", "value": 500, "periodSeconds": 15}]
    spot = find(render("gpu"), "ScaledObject", "-worker-spot")
    assert spot["metadata"]["annotations"] == {"autoscaling.keda.sh/paused": "false"}
    assert spot["spec"]["scaleTargetRef"] == {"name": "serinette-worker-spot"}


def test_a_rollout_never_fights_keda_nor_asks_for_a_gpu_more(render: Render) -> None:
    workers = [item for item in of_kind(render("gpu"), "Deployment") if "-worker-" in item.name]
    assert len(workers) == 4
    for worker in workers:
        spec = worker["spec"]
        assert "replicas" not in spec
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "25%"}
        grace_s = worker.pod["terminationGracePeriodSeconds"] if worker.pod else 0
        load_s = int(worker.env["SERINETTE_ENGINE_START_TIMEOUT_S"])
        assert spec["progressDeadlineSeconds"] > grace_s + load_s


def test_without_keda_pools_have_a_size_and_nothing_of_kedas_is_left(render: Render) -> None:
    objects = render("fixed", keda=False)
    assert find(objects, "Deployment", "-worker-default")["spec"]["replicas"] == 2
    assert (
        find(
            render("fixed", "poolDefaults.min=0", 'pools=[{"name": "default"}]', keda=False), "Deployment", "-default"
        )["spec"]["replicas"]
        == 1
    )
    assert not [item for item in objects if item["apiVersion"].startswith("keda.sh/")]
