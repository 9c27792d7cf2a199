"""A song after an install; scaling from zero and back; nothing is lost, whatever dies."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest

from scripts.chart_tools import helm
from tests.cluster.needs import MAY_CHANGE_NODES, needs
from tests.cluster.observations import charged, cut_short, most_staying, names
from tests.cluster.release import Release, run, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

LONG = {"duration_s": 120, "steps": 100}
MEDIUM = {"duration_s": 30, "steps": 60}


def test_helm_test_generates_a_song(release: Release) -> None:
    release.install()
    base: list[str | Path] = [helm(), "--kube-context", release.target.context, "--namespace", release.namespace]
    output = run([*base, "test", release.name, "--logs", "--timeout", "15m"], timeout_s=960)
    assert "Succeeded" in output


def test_from_zero_to_many_and_back_with_no_job_lost(release: Release) -> None:
    release.install()
    until("KEDA has looked", lambda: release.replicas() == 0, 180)
    ids = release.submit(3, **MEDIUM)  # more than the first worker has slots for, should it be there already
    popped = release.pop_one()
    ids += release.submit(3, **MEDIUM)

    def back_at_zero() -> bool:
        return set(release.statuses(ids)) == {"succeeded"} and release.replicas() == 0

    until("all ended, and zero again", back_at_zero, 900)
    assert release.most_workers() == 2
    assert popped in ids, "one was popped and not claimed, and was generated all the same"
    assert release.queue() == {"waiting": 0, "busy": 0, "live": 0}


def test_eight_songs_on_one_pod_are_one_replica_for_a_minute(release: Release) -> None:
    release.install("batch")
    ids = release.submit(8, duration_s=300, steps=200)
    until("all eight begun", lambda: release.queue() == {"waiting": 0, "busy": 1, "live": 8}, 600)
    until_s = time.monotonic() + 60
    seen = []
    while time.monotonic() < until_s:
        seen.append((release.replicas(), len(release.workers())))
        time.sleep(3)
    assert set(seen) == {(1, 1)}, seen
    release.cancel(ids)


def test_a_backlog_and_sigterm_make_no_more_pods_than_are_leaving(release: Release) -> None:
    """KEDA may take an idle worker away meanwhile; it replaces those that leave, and cuts no other song short."""
    release.install()
    ids = release.submit(6, **LONG)
    until("both at work", lambda: release.queue()["busy"] == 2, 600)
    asked = names(release.all_workers(), leaving=False)
    release.kubectl("delete", "pod", *sorted(asked), "--wait=false")
    samples, until_s = [], time.monotonic() + 60
    while time.monotonic() < until_s:
        samples.append(release.all_workers())
        time.sleep(2)
    assert most_staying(samples) <= 2, "those that leave are replaced, and no more than that"
    release.wait_for(ids, 1800)
    assert cut_short(release.jobs(), asked) == []


def test_pods_deleted_at_random_moments_of_their_start(release: Release) -> None:
    """From the first instant of a container to a model at work: no job is lost, charged or stuck, no pod stays."""
    random = Random(13)
    release.install("restless")
    ids = []
    for _ in range(15):
        ids += release.submit(1, **MEDIUM)
        time.sleep(random.uniform(0, 25))
        if staying := sorted(names(release.all_workers(), leaving=False)):
            release.kubectl("delete", "pod", random.choice(staying), "--wait=false")
    release.wait_for(ids, 1800)
    assert charged(release.jobs()) == {}, "a pod that is asked to leave gives its jobs back"
    until("none that was deleted is left", lambda: not release.workers(leaving=True), 120)
    until("zero again", lambda: release.replicas() == 0, 300)
    assert release.queue() == {"waiting": 0, "busy": 0, "live": 0}


def test_an_upgrade_with_jobs_in_flight(release: Release) -> None:
    release.install()
    ids = release.submit(4, **LONG)
    until("both at work", lambda: release.queue()["busy"] == 2, 600)
    release.install("upgraded")
    ids += release.submit(2)
    most, done_s = 0, time.monotonic() + 30
    while time.monotonic() < done_s:
        most = max(most, len(release.workers()))
        time.sleep(2)
    assert most <= 2, "a rollout adds no pod"
    release.wait_for(ids, 1800)


def test_a_first_install_may_start_at_min_and_no_upgrade_sets_the_number_back(release: Release) -> None:
    release.install("at-min")
    assert release.most_workers() == 0 and not release.all_workers(), "no GPU is asked for before a song is"
    ids = release.submit(4, **LONG)
    until("both at work", lambda: release.queue()["busy"] == 2, 600)
    release.install("at-min-upgraded")
    assert release.replicas() == 2
    release.wait_for(ids, 1800)
    assert charged(release.jobs()) == {}


def test_a_pod_killed_mid_song(release: Release) -> None:
    release.install()
    (song,) = release.submit(1, **LONG)
    until("it runs", lambda: release.statuses([song]) == ["running"], 600)
    (worker,) = release.workers()
    release.kubectl("delete", "pod", worker["metadata"]["name"], "--grace-period=0", "--force")
    release.wait_for([song], 1800)
    assert len(release.jobs()[song]["attempts"]) == 2


@needs(MAY_CHANGE_NODES)
def test_a_drained_node(release: Release) -> None:
    release.install()
    ids = release.submit(2, **LONG)
    until("both at work", lambda: release.queue()["busy"] >= 1, 600)
    node = release.workers()[0]["spec"]["nodeName"]
    selector = f"app.kubernetes.io/component=worker,app.kubernetes.io/instance={release.name}"
    drain = ["drain", node, "--pod-selector", selector, "--ignore-daemonsets", "--delete-emptydir-data"]
    try:
        release.kubectl(*drain, "--timeout=1300s", timeout_s=1320)
        assert not [pod for pod in release.workers() if pod["spec"].get("nodeName") == node]
    finally:
        release.kubectl("uncordon", node)
    release.wait_for(ids, 1800)
