"""Two releases on one Redis, faults explained by the doctor, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.chart_tools import kubectl
from serinette.doctor.cluster import Place, look_at_cluster
from serinette.doctor.pods import judge_pods
from tests.cluster.release import Release, run, until
from tests.cluster.target import GPU, advertised

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(2400)]


def test_two_releases_on_one_redis_by_prefix(release: Release) -> None:
    release.install("shared")
    guest = Release(release.target, release.namespace, name="two")
    try:
        guest.install("guest")
        own, theirs = release.submit(2), guest.submit(1)
        release.wait_for(own)
        guest.wait_for(theirs)
        assert set(release.jobs()) == set(own)
        assert set(guest.jobs()) == set(theirs)
    finally:
        guest.uninstall()
    release.wait_for(release.submit(1))


# Scheme, database and password, and what is said of them.
WRONG = (
    ("redis", "0", "wrong", "refuses this user or password"),
    ("redis", "99", None, "has no such database"),
    ("redis", "5", None, "but in database 0"),
    ("rediss", "0", None, "we speak TLS and the server does not"),
)


def test_the_doctor_reports_it(release: Release) -> None:
    release.install()
    release.wait_for(release.submit(1))
    host = f"{release.prefix}-valkey.{release.namespace}.svc:6379"
    for scheme, database, password, words in WRONG:
        environment = {} if password is None else {"SERINETTE_REDIS_PASSWORD": password}
        _, findings = release.doctor("--redis-url", f"{scheme}://{host}/{database}", **environment)
        wrong = [finding for finding in findings if finding["level"] in {"bad", "warning"}]
        assert any(words in finding["message"] and finding["remedy"] for finding in wrong), (words, findings)
    healthy, findings = release.doctor()
    assert healthy, findings
    assert {"queue", "store", "clock"} <= {finding["part"] for finding in findings}


def test_a_gpu_that_is_not_free_is_explained(release: Release) -> None:
    """No GPU is needed: a node advertises one, and two workers on CPUs ask for it."""
    nodes = [node["metadata"]["name"] for node in release.get("nodes") if GPU in node["status"]["allocatable"]]
    if nodes:
        pytest.skip(f"{nodes[0]} has GPUs of its own")
    node = release.get("nodes")[0]["metadata"]["name"]
    patch = ["patch", "node", node, "--subresource", "status", "--type", "json", "--patch"]
    release.kubectl(*patch, advertised(GPU, 1))
    try:
        release.install("gpu")

        def pending() -> list[str]:
            found = judge_pods(look_at_cluster(Place(release.namespace, release.target.context)))
            return [each.message for each in found if "waits for a free GPU" in each.message]

        (finding,) = until("the doctor reports it", pending, 120)
        assert f"the cluster has 1 {GPU} allocatable in all" in finding
        release.wait_for(release.submit(1))
    finally:
        release.kubectl(*patch, advertised(GPU, None))


def test_uninstall_leaves_nothing(release: Release) -> None:
    release.install()
    release.wait_for(release.submit(1))
    assert release.left_over()
    release.uninstall()
    until("nothing is left", lambda: not release.left_over(), 900)


def test_uninstall_leaves_nothing_after_keda_was_removed(release: Release) -> None:
    if not release.target.may_stop_keda:
        pytest.skip("this stops the cluster's KEDA for a while: SERINETTE_TEST_MAY_STOP_KEDA=1 allows it")
    release.install()
    keda: list[str | Path] = [
        kubectl(),
        "--context",
        release.target.context,
        "--namespace",
        release.target.keda_namespace,
    ]
    run([*keda, "scale", "deploy/keda-operator", "--replicas=0"])
    try:
        release.uninstall()
        # No operator answers its finalizers: docs/operator.md says how to remove them.
        for name in release.kubectl("get", "scaledobjects,triggerauthentications", "--output", "name").split():
            release.kubectl("patch", name, "--type", "merge", "--patch", '{"metadata":{"finalizers":null}}')
        until("nothing is left", lambda: not release.left_over(), 900)
    finally:
        run([*keda, "scale", "deploy/keda-operator", "--replicas=1"])
