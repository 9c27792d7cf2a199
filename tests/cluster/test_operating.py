"""Two releases on one Redis, faults explained by the doctor, KEDA away, walls, upgrades, and nothing left behind."""

from __future__ import annotations

import secrets
import time

import pytest

from serinette.doctor.cluster import Place, look_at_cluster
from serinette.doctor.keda import judge_keda
from serinette.doctor.pods import judge_pods
from tests.cluster.needs import ENFORCED_POLICIES, MAY_CHANGE_NODES, MAY_STOP_KEDA, NO_GPU, OLD_VERSION, needs
from tests.cluster.release import CommandFailed, Release, until
from tests.cluster.target import GPU, advertised
from tests.cluster.test_songs import LONG

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
    assert {"queue", "store"} <= {finding["part"] for finding in findings}


@needs(MAY_CHANGE_NODES, NO_GPU)
def test_a_gpu_that_is_not_free_is_explained(release: Release) -> None:
    """No GPU is needed: a node advertises one, and two workers on CPUs ask for it."""
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


def test_an_uninstall_under_load_gives_the_nodes_back(release: Release) -> None:
    """Its Redis and its store are gone with it, so that no worker has anything to finish for."""
    release.install()
    release.submit(4, **LONG)
    until("both at work", lambda: release.queue()["busy"] == 2, 600)
    began_s = time.monotonic()
    release.uninstall()
    until("no pod is left", lambda: not release.get("pod"), 300)
    assert time.monotonic() - began_s < 60


@needs(MAY_STOP_KEDA)
def test_uninstall_leaves_nothing_after_keda_was_removed(release: Release) -> None:
    release.install()
    release.keda(0)
    try:
        release.uninstall()
        # No operator answers its finalizers: docs/operator.md says how to remove them.
        for name in release.kubectl("get", "scaledobjects,triggerauthentications", "--output", "name").split():
            release.kubectl("patch", name, "--type", "merge", "--patch", '{"metadata":{"finalizers":null}}')
        until("nothing is left", lambda: not release.left_over(), 900)
    finally:
        release.keda(1)


@needs(MAY_STOP_KEDA)
def test_keda_is_away_and_comes_back(release: Release) -> None:
    release.install()
    until("KEDA has looked", lambda: release.replicas() == 0, 180)
    release.keda(0)
    try:
        ids = release.submit(3)
        words = "nothing has scaled this pool"
        until("waiting_for says so", lambda: words in str(release.pool()["waiting_for"]), 120)
        assert release.replicas() == 0
        target = release.target
        found = judge_keda(look_at_cluster(Place(release.namespace, target.context, None, target.keda_namespace)))
        assert any("keda-operator has no ready pod" in each.message and each.remedy for each in found)
    finally:
        release.keda(1)
    release.wait_for(ids)


# A server that a policy closes, and who reaches it all the same where no plugin enforces any.
PROBE = """
apiVersion: v1
kind: Pod
metadata: {name: closed, labels: {app: closed}}
spec:
  containers:
    - {name: server, image: IMAGE, command: [python, -m, http.server, "9000"]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: closed}}, policyTypes: [Ingress]}
"""
CONNECT = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


@needs(ENFORCED_POLICIES)
def test_strangers_reach_the_gateway_and_nothing_behind_it(release: Release) -> None:
    release.install()
    release.kubectl("apply", "--filename", "-", stdin=PROBE.replace("IMAGE", release.image()))
    release.kubectl("wait", "pod/closed", "--for=condition=Ready", "--timeout=120s", timeout_s=130)
    (closed,) = release.get("pod", "closed")

    def reached(host: str, port: int) -> bool:
        """From a pod of the namespace that is none of ours."""
        name = f"probe-{port}-{secrets.token_hex(2)}"
        words = [
            "run",
            name,
            f"--image={release.image()}",
            "--restart=Never",
            "--rm",
            "--attach",
            "--quiet",
            "--command",
        ]
        try:
            release.kubectl(*words, "--", "python", "-c", CONNECT, host, str(port))
        except CommandFailed:
            return False
        return True

    if reached(str(closed["status"]["podIP"]), 9000):
        pytest.skip("this cluster's network enforces no NetworkPolicies")
    assert reached(f"{release.prefix}-gateway", 8019)
    assert not reached(f"{release.prefix}-valkey", 6379)
    assert not reached(f"{release.prefix}-seaweedfs", 8333)
    release.wait_for(release.submit(1))


@needs(OLD_VERSION)
def test_an_upgrade_after_draining_from_two_records_per_job(release: Release) -> None:
    """docs/operator.md: drained, the old layout holds nothing that the new version would have to know."""
    old = release.target.old_chart
    assert old is not None
    release.install("plain", old)
    ids = release.submit(2, **LONG)
    with pytest.raises(CommandFailed):  # 1 while work remains; the image is the new one
        release.check_drained()
    release.wait_for(ids, 1800)
    release.check_drained()
    release.install()
    release.inside("python", "-m", "controller", "restore", part="controller")
    assert release.statuses(ids) == ["succeeded"] * 2, "restored from the store"
    release.wait_for(release.submit(1))
