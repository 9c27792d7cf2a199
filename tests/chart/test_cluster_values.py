"""What tests/cluster says to a cluster, checked without one: the values, the choice of the cluster, the harness."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from scripts.chart_tools import ROOT, template_command
from serinette.container import allowed_by
from serinette.names import Keys, Lane
from serinette.spec import GenerationSpec
from tests.chart.rendering import Manifest, Render, find, manifests, of_kind
from tests.cluster import needs, observations
from tests.cluster.release import COUNT, POP, Release, until
from tests.cluster.target import CONTEXTS, GPU, REGISTRY, SCENARIOS, NotHere, Target, advertised, target_of, values_of
from tests.jobs import Board
from tests.kube import merged
from tools.scaling.rule import read_rules

TARGET = Target("kind-test", "registry.example.com/music")


@pytest.fixture(params=sorted(SCENARIOS))
def scenario(request: pytest.FixtureRequest, render: Render, tmp_path: Path) -> tuple[str, list[Manifest]]:
    """Each scenario as helm renders it."""
    render()  # skips without helm
    values = tmp_path / "values.yaml"
    values.write_text(TARGET.helm_values(values_of(request.param, "music")))
    done = subprocess.run(template_command([values]), check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return request.param, list(manifests(done.stdout))


def test_the_values_render(scenario: tuple[str, list[Manifest]]) -> None:
    name, objects = scenario
    (rule,) = read_rules(objects).values()
    pool = values_of(name, "music")["pools"][0]
    assert (rule.pool, rule.max_workers, rule.cooldown_s) == ("default", pool["max"], 15)
    worker = find(objects, "Deployment", "-worker-default")
    asked = worker.container["resources"].get("limits", {}).get(GPU)
    assert asked == (1 if name == "gpu" else None)
    assert all(image.startswith(TARGET.registry) for image in _images(objects))
    gateway, controller = find(objects, "Deployment", "-gateway"), find(objects, "Deployment", "-controller")
    if name in {"containers", "impatient"}:
        assert json.loads(gateway.env["SERINETTE_CONTAINERS_IMAGES"]) == [f"{TARGET.registry}/"]
        assert allowed_by(gateway.container["image"], [f"{TARGET.registry}/"]), "which is what they run"
        assert controller.env["SERINETTE_CONTAINERS_START_S"] == ("30" if name == "impatient" else "900")
    else:
        assert "SERINETTE_CONTAINERS" not in gateway.env
    if name == "guest":
        assert worker.env["SERINETTE_REDIS_URL"] == "redis://one-serinette-valkey.music.svc:6379/0"
        assert worker.env["RQ_KEY_PREFIX"] == "guest"
        assert not [each for each in of_kind(objects, "StatefulSet") if "valkey" in each.name]


def _images(objects: list[Manifest]) -> list[str]:
    return [container["image"] for each in objects if each.pod for container in each.pod["containers"]]


@pytest.mark.parametrize(
    ("environment", "context", "words"),
    [
        ({}, None, "set KUBECONFIG"),
        ({CONTEXTS: "kind-a, kind-b"}, "production", "'production', and SERINETTE_TEST_CONTEXTS allows kind-a, kind-b"),
        ({CONTEXTS: "kind-a"}, "kind", "name there the contexts"),
        ({CONTEXTS: "kind-a"}, "kind-a", f"set {REGISTRY}"),
        ({}, "kind-a", f"set {REGISTRY}"),
    ],
)
def test_a_cluster_that_is_not_allowed_is_left_alone(
    environment: dict[str, str], context: str | None, words: str
) -> None:
    with pytest.raises(NotHere, match=words):
        target_of(environment, context, lambda: ["docker.io/library/postgres:17"])


def test_a_kubeconfig_and_images_on_its_nodes_are_enough() -> None:
    """What stays in namespaces of its own then runs; what changes nodes wants the cluster named."""
    names = [
        "registry.k8s.io/pause:3",
        "docker.io/you/serinette-gateway@sha256:1",
        "docker.io/you/serinette-gateway:dev",
    ]
    found = target_of({}, "kind-a", lambda: names)
    assert (found.context, found.registry, found.tag) == ("kind-a", "docker.io/you", "dev")
    assert json.loads(found.helm_values({}))["images"]["worker"] == {"tag": "dev"}
    assert needs.missing([needs.MAY_CHANGE_NODES], found, []).endswith(f"name the context in {CONTEXTS}")


def test_a_cluster_that_is_allowed() -> None:
    environment = {CONTEXTS: "a, b", REGISTRY: "r", "SERINETTE_TEST_VALUES": "x.yaml:y.yaml", "OTHER": "z"}
    found = target_of(environment, "b", list)
    values = (Path("x.yaml"), Path("y.yaml"))
    assert found == Target("b", "r", values, "keda", may_stop_keda=False, may_change_nodes=True)
    assert target_of({**environment, "SERINETTE_TEST_MAY_STOP_KEDA": "1"}, "a", list).may_stop_keda


def test_an_advertised_gpu() -> None:
    (there,) = json.loads(advertised(GPU, 2))
    assert there == {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "2"}
    (gone,) = json.loads(advertised(GPU, None))
    assert gone == {"op": "remove", "path": "/status/capacity/nvidia.com~1gpu"}


class Canned(Release):
    """A release whose kubectl is a table."""

    def kubectl(self, *words: str | Path, timeout_s: float = 120, stdin: str | None = None) -> str:
        del timeout_s, stdin
        said = " ".join(map(str, words))
        self.songs.append(said)
        if said.startswith("get pod "):
            kept, leaving = {"metadata": {"name": "a"}}, {"metadata": {"name": "b", "deletionTimestamp": "now"}}
            return json.dumps({"items": [kept, leaving]})
        if said.startswith("get deploy one-"):
            return json.dumps({"metadata": {}, "spec": {}})
        if said.startswith("get events "):
            messages = (
                "Scaled up replica set w-1 from 0 to 1",
                "Scaled up replica set w-1 to 3",
                "Scaled down from 3 to 0",
            )
            return json.dumps({"items": [{"message": message} for message in messages]})
        if " jobs " in said:
            return json.dumps([{"id": "1", "status": "succeeded"}, {"id": "2", "status": "failed"}])
        return "pod/x secret/y\n"


def test_the_harness_reads_what_a_cluster_says() -> None:
    release = Canned(TARGET, "music")
    assert [pod["metadata"]["name"] for pod in release.workers()] == ["a"]
    assert [pod["metadata"]["name"] for pod in release.workers(leaving=True)] == ["b"]
    assert (release.replicas(), release.most_workers()) == (0, 3)
    assert release.statuses(["2", "1", "3"]) == ["failed", "succeeded", "lost"]
    assert release.left_over() == ["pod/x", "secret/y"]
    with pytest.raises(AssertionError, match="'2': 'failed'"):
        release.wait_for(["1", "2"], timeout_s=0)
    with pytest.raises(AssertionError, match=r"what\? did not come about within 0 s; last seen: \[\]"):
        until("what?", list, timeout_s=0)


def test_a_dump_holds_what_was_asked(tmp_path: Path) -> None:
    Canned(TARGET, "music").dump(tmp_path / "dump")
    assert {"objects.yaml", "pods.txt", "events.txt", "nodes.txt", "keda.txt", "x.log"} <= {
        path.name for path in (tmp_path / "dump").iterdir()
    }


def test_a_merge_patch() -> None:
    assert merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": None, "e": [1]}}) == {"a": 1, "b": {"d": 3, "e": [1]}}


def inside(script: str, redis_url: str) -> str:
    """As in a gateway's pod."""
    environment = {**os.environ, "SERINETTE_REDIS_URL": redis_url}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_harness_reads_and_robs_a_real_queue(redis: Redis, redis_url: str, keys: Keys) -> None:
    board = Board(redis, keys)
    ids = [board.submit(None, GenerationSpec(prompt="jazz", seed=1)) for _ in range(3)]
    redis.sadd(keys.busy("default"), "w-1")
    assert json.loads(inside(COUNT, redis_url)) == {"waiting": 3, "busy": 1, "live": 3}
    assert inside(POP, redis_url).strip() == ids[0]
    assert json.loads(inside(COUNT, redis_url))["waiting"] == 3, "the list has lost it, and the lane has not"
    assert redis.zcard(keys.waiting("default", Lane.NORMAL)) == 3


def pods(stay: str = "", leave: str = "") -> list[dict[str, Any]]:
    """Pods by a letter each."""
    leaving = [{"metadata": {"name": name, "deletionTimestamp": "2026-01-01T00:00:00Z"}} for name in leave]
    return [*({"metadata": {"name": name}} for name in stay), *leaving]


def attempt(worker: str, outcome: str, number: int = 1) -> dict[str, Any]:
    return {"number": number, "worker": f"{worker}-abc123", "outcome": outcome}


RETURNED, LOST, GOOD = attempt("a", "returned"), attempt("b", "failed"), attempt("c", "succeeded", 2)


@pytest.mark.parametrize(
    ("attempts", "asked", "cut", "charged"),
    [
        ([GOOD], "", 0, 0),
        ([RETURNED, GOOD], "a", 0, 0),
        ([RETURNED, GOOD], "", 1, 0),  # KEDA took a busy pod
        ([LOST, GOOD], "a", 1, 1),
        ([LOST, RETURNED, GOOD], "ab", 0, 1),
    ],
)
def test_what_is_concluded_of_jobs(attempts: list[dict[str, Any]], asked: str, cut: int, charged: int) -> None:
    jobs = {"1": {"attempts": attempts}}
    assert len(observations.cut_short(jobs, set(asked))) == cut
    assert sum(observations.charged(jobs).values()) == charged


def test_what_is_concluded_of_pods() -> None:
    """An idle third that KEDA takes away is no fault; a third that stays would be."""
    assert observations.most_staying([pods("ab"), pods("c", "ab"), pods("cd", "abx")]) == 2
    assert observations.names(pods("c", "ab"), leaving=True) == {"a", "b"}


NODES = [{"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "2"}}}]
GPUS = [{"metadata": {"name": "n"}, "status": {"allocatable": {GPU: "1"}}}]


@pytest.mark.parametrize(
    ("need", "target", "nodes", "words"),
    [
        (needs.MAY_STOP_KEDA, TARGET, NODES, "set SERINETTE_TEST_MAY_STOP_KEDA=1"),
        (needs.MAY_STOP_KEDA, Target("c", "r", may_stop_keda=True), NODES, ""),
        (needs.NO_GPU, TARGET, NODES, ""),
        (needs.NO_GPU, TARGET, GPUS, "n has GPUs of its own"),
        (needs.OLD_VERSION, TARGET, NODES, "SERINETTE_TEST_OLD_CHART"),
        (needs.OLD_VERSION, Target("c", "r", old_chart=Path("x")), NODES, ""),
        (needs.ENFORCED_POLICIES, TARGET, NODES, ""),
    ],
)
def test_what_a_cluster_lacks(need: str, target: Target, nodes: list[dict[str, Any]], words: str) -> None:
    found = needs.missing([need], target, nodes)
    assert (words in found) and bool(words) == bool(found)


def stated() -> dict[str, str]:
    """The suite's tests, each with what it says that it needs."""
    found = {}
    for name in ("test_songs", "test_operating", "test_containers"):
        for node in ast.parse((ROOT / "tests" / "cluster" / f"{name}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [each for each in node.decorator_list if isinstance(each, ast.Call)]
                wanted = [each.args for each in calls if isinstance(each.func, ast.Name) and each.func.id == "needs"]
                words = [getattr(needs, word.id) for args in wanted for word in args if isinstance(word, ast.Name)]
                found[f"{name}::{node.name}"] = ", ".join(words)
    return found


def test_the_page_lists_every_test_with_its_needs_and_no_result_without_a_log() -> None:
    page = ROOT / "docs" / "cluster-tests.md"
    rows = re.findall(r"^\| `(test_\w+::test_\w+)` \| (.*?) ?\| (.+) \|$", page.read_text(), re.MULTILINE)
    assert {name: wanted for name, wanted, _ in rows} == stated()
    for name, _, result in rows:
        if result != "NOT RUN":
            log = re.search(r"\((cluster-logs/[^)]+)\)", result)
            assert log, f"{name}: a result needs its log"
            text = (page.parent / log[1]).read_text()
            assert re.search(rf"{name.partition('::')[2]}\S* PASSED", text), f"{name}: {log[1]} does not show it"
