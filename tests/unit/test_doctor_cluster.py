"""What the doctor says of a cluster: a real API over HTTP, the real client, and a real Valkey behind KEDA's formula."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from redis import Redis
from typer.testing import CliRunner

from serinette.cli.app import app
from serinette.doctor import cluster
from serinette.doctor.cluster import metric_path
from serinette.names import Keys, Lane
from tests.kube import HANG, Kube, Object, kubernetes_api

ROOT = Path(__file__).parents[2]
NAMESPACE = "serinette"
METRIC = metric_path(NAMESPACE, "serinette-worker-default").partition("?")[0]


def keda(*, ready: int = 1, version: str = "2.20.1") -> list[Object]:
    """KEDA as its own chart installs it."""
    operators: list[Object] = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "keda", "labels": {"app.kubernetes.io/version": version}},
            "status": {"readyReplicas": ready},
        }
        for name in ("keda-operator", "keda-operator-metrics-apiserver")
    ]
    another = {"name": "x", "namespace": "another"}
    return [*operators, {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": another}]


def node(gpus: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "gpu-1"},
        "spec": {},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)}},
    }


def release(change: Callable[[Object], None] = lambda _: None) -> list[Object]:
    """What k8s/ applies, ready, with KEDA at work on it."""
    found: list[Object] = []
    for name in ("gateway", "controller", "worker", "valkey", "seaweedfs", "keda"):
        found += [each for each in yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text()) if each]
    for each in found:
        if each["kind"] in {"Deployment", "StatefulSet"}:
            each["status"] = {"readyReplicas": each["spec"].get("replicas", 0)}
        if each["kind"] == "ScaledObject":
            each["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
        change(each)
    return found


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    with kubernetes_api(*keda()) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path)))
        yield running


def ask(*options: str) -> tuple[int, list[dict[str, str]]]:
    """Exit status and findings of `serinette doctor`."""
    done = CliRunner().invoke(app, ["doctor", "--cluster", "--json", *options])
    assert done.stdout, done.exception
    return done.exit_code, json.loads(done.stdout)["findings"]


def wrong(*options: str) -> list[dict[str, str]]:
    return [each for each in ask(*options)[1] if each["level"] != "ok"]


def test_before_an_install(kube: Kube) -> None:
    status, found = ask()
    assert status == 0
    assert {each["level"] for each in found} == {"ok"}, found
    messages = {(each["part"], each["check"]): each["message"] for each in found}
    assert "Kubernetes v1.36.0, namespace serinette" in messages["cluster", "reachable"]
    assert messages["keda", "version"] == "KEDA 2.20.1"


CASES: list[tuple[list[Object], str, str, str]] = [
    (keda(version="2.14.0"), "keda", "bad", "KEDA 2.14.0"),
    (keda(ready=0), "keda", "bad", "has no ready pod"),
]


@pytest.mark.parametrize(("objects", "part", "level", "words"), CASES)
def test_what_is_wrong_before(kube: Kube, objects: list[Object], part: str, level: str, words: str) -> None:
    kube.add(*objects)
    found = [each for each in wrong() if words in each["message"]]
    assert [(each["part"], each["level"], bool(each["remedy"])) for each in found[:1]] == [(part, level, True)], wrong()


def test_no_keda(kube: Kube) -> None:
    kube.fail("scaledobjects", 404)
    status, found = ask()
    keda_lines = [each for each in found if each["part"] == "keda"]
    assert (status, keda_lines[0]["level"], "helm install keda" in keda_lines[0]["remedy"]) == (1, "bad", True)
    kube.add(*(each for each in release() if each["kind"] == "Deployment"))
    assert [each["level"] for each in ask()[1] if each["part"] == "keda"] == ["ok"], "fixed pools need none"


def test_what_we_may_not_see_is_said_and_is_not_bad(kube: Kube) -> None:
    for path in ("/nodes", "/pods"):
        kube.fail(path, 403)
    status, found = ask()
    assert status == 0
    hidden = ["nodes", "pods"]
    assert [each["check"] for each in found if each["level"] == "unknown"] == hidden
    assert {each["remedy"].rpartition(" read ")[2] for each in found if each["level"] == "unknown"} == set(hidden)


def test_a_question_without_an_answer_keeps_no_other_from_being_asked(kube: Kube) -> None:
    for path in ("/nodes", "/statefulsets", "scaledobjects"):
        kube.fail(path, 0)
    status, found = ask()
    assert status == 0
    unanswered = {each["check"]: each["message"] for each in found if each["level"] == "unknown"}
    assert unanswered.keys() == {"nodes", "statefulsets", "scaledobjects"}
    assert all("the API server answers nothing" in message for message in unanswered.values())
    assert {"pods", "cluster", "keda"} <= {each["part"] for each in found if each["level"] == "ok"}


def test_a_question_that_hangs_takes_its_own_time_and_no_other_answer(
    kube: Kube, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """KEDA's metrics hang while its operator is down."""
    monkeypatch.setattr(cluster, "_TIMEOUT_S", 0.5)
    kube.add(*release(), *keda(ready=0))
    kube.fail("external.metrics.k8s.io/v1beta1/namespaces", HANG)
    kube.fail("/nodes", HANG)
    found = ask("--redis-url", redis_url)[1]
    by_check = {(each["part"], each["check"]): each for each in found}
    assert by_check["cluster", "nodes"]["level"] == "unknown"
    assert any("keda-operator has no ready pod" in each["message"] for each in found)
    assert any("KEDA's number cannot be read: the API server answers nothing" in each["message"] for each in found)
    assert {"queue", "cluster", "keda", "pods"} <= {each["part"] for each in found}


@pytest.mark.parametrize(("metrics", "namespace"), [("keda-metrics-apiserver", "scaler"), ("", "scaler")])
def test_remedies_name_what_is_there(kube: Kube, redis_url: str, metrics: str, namespace: str) -> None:
    """KEDA's own manifests name the metrics server otherwise than its chart does."""
    for each in keda():
        if each["kind"] == "Deployment":
            kube.remove("apps/v1", "Deployment", each["metadata"]["name"], "keda")
            name = metrics if "metrics" in each["metadata"]["name"] else "keda-operator"
            if name:  # else none, as in another namespace than was looked in
                kube.add({**each, "metadata": {**each["metadata"], "name": name, "namespace": namespace}})
    kube.add(*release(lambda each: each.get("status", {}).pop("conditions", None)))
    remedies = " ".join(each["remedy"] for each in wrong("--keda-namespace", namespace, "--redis-url", redis_url))
    assert f"kubectl -n {namespace} logs deploy/keda-operator" in remedies
    assert f"kubectl -n {namespace} logs deploy/{metrics or 'keda-operator-metrics-apiserver'}" in remedies
    assert "-n keda " not in remedies


def test_no_cluster_or_no_such_context(kube: Kube) -> None:
    assert "no context 'other'" in wrong("--context", "other")[0]["message"]
    kube.fail("/version", 401, "who are you")
    assert "it answers 401: who are you" in wrong()[0]["message"]
    kube.recover()
    kube.fail("/version", 0)
    assert "it does not answer" in wrong()[0]["message"]


def metric(kube: Kube, value: str) -> None:
    kube.answers[METRIC] = {"kind": "ExternalMetricValueList", "items": [{"value": value}]}


class TestScaling:
    @pytest.mark.parametrize(
        ("theirs", "brake", "level", "words"),
        [
            ("5", False, "ok", "KEDA's number of workers is 5; in Redis: "),
            ("0", False, "bad", "jobs wait or run and KEDA reads 0"),
            ("0", True, "ok", "KEDA's number of workers is 0"),
            (None, False, "warning", "KEDA's number cannot be read"),
        ],
    )
    def test_kedas_number(
        self,
        kube: Kube,
        redis: Redis,
        redis_url: str,
        keys: Keys,
        theirs: str | None,
        brake: bool,
        level: str,
        words: str,
    ) -> None:
        for index in range(5):
            redis.zadd(keys.waiting("default", Lane.NORMAL), {str(index): index})
        if brake:
            redis.sadd(keys.brake("default"), "x")
        kube.add(*release())
        if theirs is not None:
            metric(kube, theirs)
        found = [each for each in ask("--redis-url", redis_url)[1] if "normal 5" in each["message"]]
        assert [(each["level"], words in each["message"]) for each in found] == [(level, True)]

    def test_what_keda_says_itself(self, kube: Kube) -> None:
        def change(each: Object) -> None:
            if each["kind"] == "ScaledObject":
                message = "error establishing connection: WRONGPASS"
                each["status"]["conditions"] = [{"type": "Ready", "status": "False", "reason": "x", "message": message}]
                each["metadata"]["annotations"] = {"autoscaling.keda.sh/paused-replicas": "2"}

        kube.add(*release(change))
        messages = {each["message"] for each in wrong() if each["part"] == "scaling"}
        assert "KEDA says: x error establishing connection: WRONGPASS" in messages
        assert "paused by autoscaling.keda.sh/paused-replicas" in messages

    def test_what_says_false_pauses_nothing(self, kube: Kube) -> None:
        def change(each: Object) -> None:
            if each["kind"] == "ScaledObject":
                each["metadata"]["annotations"] = {"autoscaling.keda.sh/paused": "false"}

        kube.add(*release(change))
        assert not [each for each in wrong() if "paused" in each["message"]]


def pod(name: str, message: str = "", waiting: dict[str, str] | None = None) -> Object:
    conditions = [{"type": "PodScheduled", "status": "False" if message else "True", "message": message}]
    containers = [{"state": {"waiting": waiting}}] if waiting else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "serinette"}},
        "spec": {"containers": [{"resources": {"limits": {"nvidia.com/gpu": 1}}}]},
        "status": {"phase": "Pending", "conditions": conditions, "containerStatuses": containers},
    }


class TestPods:
    def test_a_gpu_that_is_not_free(self, kube: Kube) -> None:
        busy = pod("busy")
        busy["spec"]["nodeName"] = "gpu-1"
        kube.add(node(1), busy, pod("w", "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."), *release())
        (finding,) = (each for each in wrong() if each["check"] == "w")
        assert finding["level"] == "warning"
        assert "waits for a free GPU" in finding["message"]
        assert "the cluster has 1 nvidia.com/gpu allocatable in all" in finding["message"]

    @pytest.mark.parametrize(
        ("reason", "remedy"),
        [
            ("ImagePullBackOff", "imageRegistry"),
            ("CreateContainerConfigError", "Secret"),
            ("CrashLoopBackOff", "--previous"),
        ],
    )
    def test_containers_that_wait(self, kube: Kube, reason: str, remedy: str) -> None:
        kube.add(pod("w", waiting={"reason": reason, "message": "why"}), *release())
        (finding,) = (each for each in wrong() if each["check"] == "w")
        assert (finding["level"], finding["message"], remedy in finding["remedy"]) == ("bad", f"{reason}: why", True)

    def test_pods_that_the_cluster_refuses(self, kube: Kube) -> None:
        """A worker is never bad for not being there; one that cannot be made is."""
        why = 'pods "w-x" is forbidden: exceeded quota: gpus'

        def change(each: Object) -> None:
            if each["kind"] == "Deployment" and "worker" in each["metadata"]["name"]:
                failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": why}
                each["status"] = {"conditions": [failure]}

        kube.add(*release(change))
        (finding,) = (each for each in wrong() if each["part"] == "pods")
        assert (finding["level"], finding["message"]) == ("bad", f"the cluster refuses its pods: {why}")

    def test_a_part_that_is_not_ready(self, kube: Kube) -> None:
        def change(each: Object) -> None:
            if each["kind"] == "StatefulSet":
                each["status"] = {}

        claim = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
        kube.add(pod("valkey-0", claim), *release(change))
        messages = [each["message"] for each in wrong() if each["level"] == "bad"]
        assert f"no node takes it: {claim}" in messages
        assert messages.count("none of 1 is ready") == 2


def test_nothing_is_changed(kube: Kube) -> None:
    kube.add(*release())
    ask()
    assert {asked.method for asked in kube.requests} == {"GET"}
