"""What tests/cluster says to a cluster, checked without one: the values, the choice of the cluster, the harness."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts.chart_tools import template_command
from serinette.container import allowed_by
from tests.chart.rendering import Manifest, Render, find, manifests, of_kind
from tests.cluster.release import Release, until
from tests.cluster.target import CONTEXTS, GPU, REGISTRY, SCENARIOS, NotHere, Target, advertised, target_of, values_of
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
        ({}, "production", f"{CONTEXTS} allows none"),
        ({CONTEXTS: "kind-a, kind-b"}, "production", "'production', and SERINETTE_TEST_CONTEXTS allows kind-a, kind-b"),
        ({CONTEXTS: "kind-a"}, "kind", "name there the contexts"),
        ({CONTEXTS: "kind-a"}, "kind-a", f"set {REGISTRY}"),
    ],
)
def test_a_cluster_that_is_not_allowed_is_left_alone(
    environment: dict[str, str], context: str | None, words: str
) -> None:
    with pytest.raises(NotHere, match=words):
        target_of(environment, context)


def test_a_cluster_that_is_allowed() -> None:
    environment = {CONTEXTS: "a, b", REGISTRY: "r", "SERINETTE_TEST_VALUES": "x.yaml:y.yaml", "OTHER": "z"}
    found = target_of(environment, "b")
    assert found == Target("b", "r", (Path("x.yaml"), Path("y.yaml")), "keda", may_stop_keda=False)
    assert target_of({**environment, "SERINETTE_TEST_MAY_STOP_KEDA": "1"}, "a").may_stop_keda


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
