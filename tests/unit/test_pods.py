"""The controller beside a cluster: an API server of real HTTP, the real client, a real Valkey."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from redis import Redis

from controller.autoscaling import MARKS, plan_marks
from controller.cluster import FIELD_MANAGER, WorkerPods, connect
from controller.pods import PodWatch
from controller.settings import ControllerSettings
from serinette.errors import ClusterUnavailable
from serinette.job import now
from serinette.names import Keys, Lane
from serinette.pools import PoolFacts
from serinette.presence import HOLDUP_TTL_S, parse_holdups
from tests.kube import Kube, kubernetes_api
from tests.unit.test_pod_explanations import GPU, NO_GPU, NODES, event, started, unscheduled

SELECTOR = "app.kubernetes.io/component=worker"
CLEARED = dict.fromkeys(MARKS)
POOLS = (PoolFacts(name="turbo", gpu_resource=GPU), PoolFacts(name="base"))


def bare(name: str, annotations: dict[str, str] | None = None, *, leaving: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if annotations is not None:
        metadata["annotations"] = annotations
    return {"metadata": metadata | ({"deletionTimestamp": "2026-05-01T12:00:00Z"} if leaving else {})}


def managed(manager: str, *annotations: str) -> dict[str, Any]:
    return {
        "manager": manager,
        "fieldsV1": {"f:metadata": {"f:annotations": {f"f:{name}": {} for name in annotations}}},
    }


# A pod whose pool's own podAnnotations have one of the marks.
MANAGED = [managed("kube-controller-manager", ".", "karpenter.sh/do-not-disrupt"), managed(FIELD_MANAGER, *MARKS)]


@pytest.mark.parametrize(
    ("pods", "busy", "idle", "patches"),
    [
        ([], {"a"}, set(), {}),
        ([bare("a")], {"a"}, set(), {"a": MARKS}),
        ([bare("a", dict(MARKS))], {"a"}, set(), {}),
        ([bare("a", {"karpenter.sh/do-not-disrupt": "true"})], set(), set(), {}),  # idle for a moment only
        ([bare("a", dict(MARKS))], set(), {"a"}, {"a": CLEARED}),
        ([bare("a", {"mine": "x"})], set(), {"a"}, {}),
        (
            [bare("a", {**MARKS, "karpenter.sh/do-not-disrupt": "false"})],  # not ours
            set(),
            {"a"},
            {"a": {name: None for name in MARKS if not name.startswith("karpenter")}},
        ),
        (
            [{"metadata": {**bare("a", dict(MARKS))["metadata"], "managedFields": MANAGED}}],
            set(),
            {"a"},
            {"a": {name: None for name in MARKS if not name.startswith("karpenter")}},
        ),
        ([bare("a", leaving=True)], {"a"}, set(), {}),
        ([bare("a", dict(MARKS)), bare("b")], {"b"}, {"a"}, {"b": MARKS, "a": CLEARED}),
        ([bare(name) for name in "abcdef"], set("abcdef"), set(), dict.fromkeys("abcd", MARKS)),
    ],
)
def test_pods_are_marked_while_they_hold_work(
    pods: list[dict[str, Any]], busy: set[str], idle: set[str], patches: dict[str, Any]
) -> None:
    assert list(plan_marks(pods, busy, idle, most=4).items()) == list(patches.items())


@pytest.fixture
def kube() -> Iterator[Kube]:
    with kubernetes_api() as running:
        yield running


@pytest.fixture
def cluster(kube: Kube, tmp_path: Path) -> WorkerPods:
    connection = connect(kube.kubeconfig(tmp_path))
    assert connection
    return WorkerPods(connection, "music", SELECTOR)


@pytest.fixture
def pods(cluster: WorkerPods, redis_url: str, redis: Redis) -> PodWatch:
    settings = ControllerSettings.model_validate({"redis_url": redis_url, "pools": POOLS})
    return PodWatch(redis, cluster, settings)


def add_pod(kube: Kube, name: str, pool: str = "turbo", *, pending: bool = False, **metadata: Any) -> None:
    labels = {"app.kubernetes.io/component": "worker", "serinette.dev/pool": pool}
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    status = unscheduled(NO_GPU)["status"] if pending else ready
    found = {"name": name, "labels": labels, **metadata}
    kube.add({"apiVersion": "v1", "kind": "Pod", "metadata": found, "status": status}, namespace="music")


def marks(kube: Kube, name: str) -> dict[str, str]:
    pod = kube.get("v1", "Pod", name, "music")
    assert pod
    found: dict[str, str] = pod["metadata"].get("annotations", {})
    return found


def reported(redis: Redis, keys: Keys) -> dict[str, tuple[int, str]]:
    found: Any = redis.hgetall(keys.holdups)
    return {pool: (each.pods, each.words) for pool, each in parse_holdups(found).items()}


def test_what_holds_up_each_pool_is_reported(kube: Kube, pods: PodWatch, redis: Redis, keys: Keys) -> None:
    add_pod(kube, "w-1", pending=True)
    add_pod(kube, "w-2", pool="base")
    kube.add(*({"apiVersion": "v1", "kind": "Node", **node} for node in NODES))
    scaled_up = event("TriggeredScaleUp", "pod triggered scale-up")
    kube.add({"apiVersion": "v1", "kind": "Event", **scaled_up}, namespace="music")
    pods.look(0)
    words = "no node has a free nvidia.com/gpu: 6 are on 2 nodes, none free for it, and the autoscaler is adding a node"
    assert reported(redis, keys) == {"turbo": (1, words), "base": (1, "")}
    assert 0 < int(redis.ttl(keys.holdups)) <= HOLDUP_TTL_S
    kube.remove("v1", "Pod", "w-1", "music")
    pods.look(10)
    assert reported(redis, keys) == {"turbo": (0, ""), "base": (1, "")}


def test_without_a_pod_that_waits_only_pods_are_asked_for(kube: Kube, pods: PodWatch) -> None:
    add_pod(kube, "w-1")
    pods.look(0)
    (asked,) = kube.requests
    assert asked.path == "/api/v1/namespaces/music/pods"
    assert asked.query == {"labelSelector": SELECTOR, "resourceVersion": "0"}


def test_a_pool_that_nothing_scales_is_reported_once_jobs_have_waited(
    kube: Kube, pods: PodWatch, redis: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    meta = {"name": "w", "labels": {"app.kubernetes.io/component": "worker", "serinette.dev/pool": "turbo"}}
    scaled = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": meta,
        "spec": {"pollingInterval": 5},
    }
    kube.add(scaled, namespace="music")
    pods.look(0)
    assert [asked.path for asked in kube.requests] == ["/api/v1/namespaces/music/pods"], "no job waits"
    redis.zadd(keys.waiting("turbo", Lane.NORMAL), {"job": 1})
    pods.look(10)
    assert reported(redis, keys)["turbo"] == (0, "")
    pods.look(40)
    assert reported(redis, keys)["turbo"] == (0, "nothing has scaled this pool for over 30 s")
    pods.look(50)
    assert caplog.text.count("is KEDA's operator running?") == 1
    redis.sadd(keys.brake("turbo"), "load: no checkpoint")
    pods.look(60)
    assert reported(redis, keys)["turbo"] == (0, ""), "the brake holds it, and says so"
    redis.delete(keys.brake("turbo"))
    add_pod(kube, "w-1", pending=True)
    pods.look(100)
    assert reported(redis, keys)["turbo"][1].startswith("no node has a free")
    kube.remove("v1", "Pod", "w-1", "music")
    kube.fail("scaledobjects", 403)
    pods.look(110)
    pods.look(145)
    assert reported(redis, keys)["turbo"] == (0, "nothing has scaled this pool for over 30 s"), "without the right too"


def test_a_pool_below_its_max_is_watched_also_with_workers_up(
    kube: Kube, cluster: WorkerPods, redis_url: str, redis: Redis, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    """A dead KEDA leaves one worker with the jobs of four; a quota leaves it so too, and is told apart."""
    facts = PoolFacts(name="turbo", max_workers=4)
    settings = ControllerSettings.model_validate({"redis_url": redis_url, "pools": (facts,)})
    pods = PodWatch(redis, cluster, settings)
    add_pod(kube, "w-1")
    redis.sadd(keys.busy("turbo"), "w-1-abc123")
    redis.zadd(keys.waiting("turbo", Lane.NORMAL), {"job": 1})
    pods.look(0)
    assert reported(redis, keys)["turbo"] == (1, "")
    pods.look(31)
    assert reported(redis, keys)["turbo"] == (1, "nothing has scaled this pool for over 30 s")
    add_pod(kube, "w-2")
    redis.sadd(keys.busy("turbo"), "w-2-abc123")
    pods.look(41)
    assert reported(redis, keys)["turbo"] == (2, ""), "it was scaled since"
    refused = event("FailedCreate", "is forbidden: exceeded quota: gpus", name="serinette-worker-turbo-5f9")
    at = {"involvedObject": {"kind": "ReplicaSet", "name": "serinette-worker-turbo-5f9"}, "lastTimestamp": str(now())}
    kube.add({"apiVersion": "v1", "kind": "Event", **refused, **at}, namespace="music")
    pods.look(51)
    assert reported(redis, keys)["turbo"] == (2, "the cluster refuses its pods: a quota is used up")
    assert "is forbidden: exceeded quota: gpus" in caplog.text
    asked = [each.query["fieldSelector"] for each in kube.requests if each.path.endswith("/events")]
    assert set(asked) == {"involvedObject.kind=ReplicaSet,reason=FailedCreate"}


def test_what_a_pods_start_took_is_reported_once(kube: Kube, pods: PodWatch, redis: Redis, keys: Keys) -> None:
    seen = started(20)
    labels = {"app.kubernetes.io/component": "worker", "serinette.dev/pool": "turbo"}
    kube.add(
        {"apiVersion": "v1", "kind": "Pod", **seen, "metadata": {**seen["metadata"], "labels": labels}},
        namespace="music",
    )
    pods.look(0)
    found: Any = redis.get(keys.pod_start("w-1"))
    assert json.loads(found) == {"node_s": 30, "image_s": 50}
    redis.delete(keys.pod_start("w-1"))
    pods.look(10)
    assert not redis.exists(keys.pod_start("w-1"))


def test_nodes_that_may_not_be_read_are_left_out_and_not_asked_for_again_soon(
    kube: Kube, pods: PodWatch, redis: Redis, keys: Keys
) -> None:
    add_pod(kube, "w-1", pending=True)
    kube.fail("/nodes", 403)
    for at_s in (0, 10, 20):
        pods.look(at_s)
    assert reported(redis, keys)["turbo"] == (1, "no node has a free nvidia.com/gpu")
    assert [asked.path for asked in kube.requests].count("/api/v1/nodes") == 1
    pods.look(601)
    assert [asked.path for asked in kube.requests].count("/api/v1/nodes") == 2


def test_a_busy_pod_is_marked_until_it_was_idle_for_a_minute(
    kube: Kube, pods: PodWatch, redis: Redis, keys: Keys
) -> None:
    add_pod(kube, "w-1", annotations={"mine": "x"})
    add_pod(kube, "w-2")
    redis.sadd(keys.busy("turbo"), "w-1-abc123")
    pods.look(0)
    assert marks(kube, "w-1") == {"mine": "x", **MARKS}
    assert marks(kube, "w-2") == {}
    redis.srem(keys.busy("turbo"), "w-1-abc123")
    for at_s in (10, 30, 50, 60):
        pods.look(at_s)
    assert marks(kube, "w-1") == {"mine": "x", **MARKS}
    pods.look(71)
    assert marks(kube, "w-1") == {"mine": "x"}
    assert [each.query["fieldManager"] for each in kube.patches] == [FIELD_MANAGER] * 2


@pytest.mark.parametrize(
    ("status", "at_once", "after_s"),
    [
        (404, True, 10),  # gone meanwhile: the others are patched
        (410, True, 10),
        (409, True, 10),
        (403, False, 601),  # forbidden: no pod is patched until an operator may have allowed it
        (429, False, 31),
        (500, False, 31),
        (0, False, 31),  # it hung up
    ],
)
def test_what_the_api_server_answers_to_a_patch(
    kube: Kube, pods: PodWatch, redis: Redis, keys: Keys, status: int, at_once: bool, after_s: float
) -> None:
    for name in ("w-1", "w-2"):
        add_pod(kube, name)
        redis.sadd(keys.busy("turbo"), f"{name}-abc123")
    kube.fail("/pods/w-1", status, method="PATCH", times=1)
    pods.look(0)
    assert bool(marks(kube, "w-2")) is at_once
    asked = len(kube.patches)
    if not at_once:
        pods.look(9)
        assert len(kube.patches) == asked
    pods.look(after_s)
    assert marks(kube, "w-1") == marks(kube, "w-2") == dict(MARKS)


def test_a_cluster_that_is_away_is_reported_once_and_marks_nothing(
    kube: Kube, pods: PodWatch, caplog: pytest.LogCaptureFixture
) -> None:
    kube.fail("/pods", 503, "apiserver not ready")
    with caplog.at_level(logging.INFO):
        for at_s in (0, 10):
            pods.look(at_s)
        kube.recover()
        pods.look(20)
    assert [record.getMessage() for record in caplog.records] == [
        "looking at the cluster fails: 503 apiserver not ready",
        "looking at the cluster goes on",
    ]


def test_protection_can_be_switched_off(
    cluster: WorkerPods, kube: Kube, redis: Redis, keys: Keys, redis_url: str
) -> None:
    add_pod(kube, "w-1")
    redis.sadd(keys.busy("turbo"), "w-1-abc123")
    settings = ControllerSettings.model_validate({"redis_url": redis_url, "cluster_protect": False})
    PodWatch(redis, cluster, settings).look(0)
    assert not kube.patches


def test_an_api_server_that_never_answers_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configuration = client.Configuration(host=f"http://127.0.0.1:{silent.getsockname()[1]}")
        configuration.retries = False
        connection = client.ApiClient(configuration)
        with pytest.raises(ClusterUnavailable, match="does not answer") as error:
            WorkerPods(connection, "music", SELECTOR, timeout_s=(0.2, 0.2)).pods()
    assert error.value.status == 0


def test_a_token_that_cannot_be_read_is_a_cluster_that_does_not_answer() -> None:
    configuration = client.Configuration(host="http://127.0.0.1:1")

    def gone(_configuration: client.Configuration) -> None:
        raise FileNotFoundError("token")

    configuration.refresh_api_key_hook = gone
    configuration.api_key["authorization"] = "Bearer x"
    with pytest.raises(ClusterUnavailable, match="does not answer"):
        WorkerPods(client.ApiClient(configuration), "music", SELECTOR).pods()


def test_without_a_cluster_there_is_none_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert connect() is None
    assert connect(tmp_path / "none") is None
    assert caplog.text.count("Kubernetes is not used") == 2
