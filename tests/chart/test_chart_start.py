"""A first install may start `min` workers, and nothing of the chart sets KEDA's number back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.chart_tools import CHART, helm
from tests.chart.rendering import Manifest, Render, find, manifests, of_kind
from tests.kube import Kube, kubernetes_api

POOL = 'pools=[{"name": "default", "min": 1, "max": 9}]'


def manager(name: str, operation: str, *fields: str) -> dict[str, Any]:
    return {"manager": name, "operation": operation, "fieldsV1": {"f:spec": {f"f:{field}": {} for field in fields}}}


SERVER_SIDE = manager("helm", "Apply", "template", "replicas")
CLIENT_SIDE = manager("helm", "Update", "template", "replicas")
HPA = manager("kube-controller-manager", "Update", "replicas")


@pytest.fixture
def kube(render: Render) -> Iterator[Kube]:
    """A cluster that knows the kinds of the chart, from another release."""
    with kubernetes_api() as running:
        running.add(*render("default"), *of_kind(render("edge"), "HorizontalPodAutoscaler"), namespace="other")
        yield running


def deployment(name: str, managers: list[dict[str, Any]]) -> dict[str, Any]:
    metadata = {
        "name": name,
        "managedFields": managers,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {"meta.helm.sh/release-name": "serinette", "meta.helm.sh/release-namespace": "music"},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": 4}}


def rendered(kube: Kube, tmp_path: Path, *settings: str) -> tuple[Manifest, ...]:
    """As helm upgrades, which looks at what is there."""
    command = [str(helm()), "template", "serinette", str(CHART), "--dry-run=server", "--namespace", "music"]
    command += ["--disable-openapi-validation", "--values", str(CHART / "ci" / "default-values.yaml")]
    command += [part for setting in settings for part in ("--set-json", setting)]
    environment = {**os.environ, "KUBECONFIG": str(kube.kubeconfig(tmp_path))}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {asked.method for asked in kube.requests} == {"GET"}
    return manifests(done.stdout)


@pytest.mark.parametrize(
    ("managers", "replicas", "gateways"),
    [
        (None, 1, None),  # a first install: `min`, and one gateway, until the autoscaler has looked
        ([SERVER_SIDE], 4, 4),  # left out, a field that Helm alone has is reset to 1
        ([SERVER_SIDE, HPA], None, None),  # it is the autoscaler's: nothing to conflict with
        ([CLIENT_SIDE, HPA], 4, 4),  # left out, Helm 3 would reset it to 1
        ([], 4, 4),
    ],
)
def test_an_upgrade_leaves_what_autoscalers_made(
    kube: Kube, tmp_path: Path, managers: list[dict[str, Any]] | None, replicas: int | None, gateways: int | None
) -> None:
    if managers is not None:
        for name in ("serinette-worker-default", "serinette-gateway"):
            kube.add(deployment(name, managers), namespace="music")
    objects = rendered(kube, tmp_path, POOL, "keda.startAtMin=true", "gateway.autoscaling.enabled=true")
    assert find(objects, "Deployment", "-worker-default")["spec"].get("replicas") == replicas
    assert find(objects, "Deployment", "-gateway")["spec"].get("replicas") == gateways


@pytest.mark.parametrize(
    ("settings", "replicas"),
    [((), None), (("keda.startAtMin=true",), 1), (("keda.enabled=false", "keda.startAtMin=true"), 1)],
)
def test_without_one(render: Render, settings: tuple[str, ...], replicas: int | None) -> None:
    """As Argo CD renders: what it writes it enforces at each sync, and a rollback writes again what was written."""
    worker = find(render("default", POOL, *settings), "Deployment", "-worker-default")
    assert worker["spec"].get("replicas") == replicas
    assert "replicas" not in find(render("k8s"), "Deployment", "-worker-default")["spec"]
