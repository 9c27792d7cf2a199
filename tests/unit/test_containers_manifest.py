"""The Kubernetes Job of a container: confined, whatever was asked for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from controller.containers.manifest import READY, Order, job_name, manifest
from scripts.chart_tools import TOOLS
from serinette.container import ContainerSpec
from serinette.names import Lane
from serinette.settings import ContainerSettings
from tests.unit.container_bench import IMAGE, ON

JOB_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
SETTINGS = ContainerSettings.model_validate(
    {
        **ON,
        "containers_labels": {"kueue.x-k8s.io/queue-name": "gpus", "serinette.dev/job": "overwritten"},
        "containers_priority_classes": {"high": "songs-first"},
        "containers_secrets": {"hub": {"secret": "hub-token", "key": "token"}},
        "containers_machines": {
            "big": {"node_selector": {"gpu": "h100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}],
                    "gpu_resource": "amd.com/gpu", "runtime_class": "gvisor"},
        },
    }
)  # fmt: skip


def made(lane: Lane = Lane.NORMAL, **spec: Any) -> dict[str, Any]:
    container = ContainerSpec.model_validate({"image": IMAGE, **spec})
    upload = {"urls": ["https://store/1"], "manifest_url": "https://store/m", "max_bytes": 9}
    order = Order(JOB_ID, "team-a", "attempt", lane, container, 600, ({"path": "a", "url": "https://store/a"},), upload)
    return manifest(order, SETTINGS)


EVERYTHING: dict[str, Any] = {
    "command": ["sh", "-c", "echo $(HOME) $HOME"],
    "args": ["--x"],
    "env": {"A": "$(TOKEN)"},
    "secrets": {"TOKEN": "hub"},
    "gpus": 2,
    "pool": "big",
    "writable_root": True,
}


def pod_of_job(job: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = job["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("spec", [{}, EVERYTHING])
def test_restricted_pod_security(spec: dict[str, Any]) -> None:
    """As the Pod Security Standards define `restricted`, and more."""
    pod = pod_of_job(made(**spec))
    assert pod["automountServiceAccountToken"] is False
    assert not (pod["hostNetwork"] or pod["hostPID"] or pod["hostIPC"] or pod["shareProcessNamespace"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert [list(volume) for volume in pod["volumes"]] == [["name", "emptyDir"]] * 3
    for each in (*pod["initContainers"], *pod["containers"]):
        context = each["securityContext"]
        assert context["allowPrivilegeEscalation"] is context["privileged"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is not (each["name"] == "main" and bool(spec))
        assert {"cpu", "memory", "ephemeral-storage"} <= each["resources"]["limits"].keys(), "a fork bomb ends there"
        assert "ports" not in each


def test_what_is_asked_for() -> None:
    job = made(Lane.HIGH, **EVERYTHING)
    pod, (main,) = pod_of_job(job), pod_of_job(job)["containers"]
    assert job["metadata"]["name"] == job_name(JOB_ID) == f"container-{JOB_ID}"
    assert main["resources"]["limits"]["amd.com/gpu"] == "2"
    assert (pod["nodeSelector"], pod["runtimeClassName"]) == ({"gpu": "h100"}, "gvisor")
    assert (pod["priorityClassName"], pod["activeDeadlineSeconds"], job["spec"]["backoffLimit"]) == (
        "songs-first",
        600,
        0,
    )
    assert main["command"][-1] == "echo $$(HOME) $HOME", "Kubernetes replaces nothing in a client's words"
    env = {each["name"]: each for each in main["env"]}
    assert env["A"]["value"] == "$$(TOKEN)"
    assert env["TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "hub-token", "key": "token"}}


def test_every_tenants_name_makes_a_label() -> None:
    """What a tenant may be called, Kubernetes may refuse: team- ends with a hyphen."""
    order = Order(JOB_ID, "team-", "attempt", Lane.LOW, ContainerSpec(image=IMAGE), 600)
    assert manifest(order, SETTINGS)["metadata"]["labels"]["serinette.dev/tenant"] == "team"


def test_labels_are_the_operators_and_ours() -> None:
    job = made()
    labels = job["metadata"]["labels"]
    assert labels == job["spec"]["template"]["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert (labels["serinette.dev/job"], labels["serinette.dev/tenant"]) == (JOB_ID, "team-a"), "ours win"


def test_an_autoscaler_takes_another_node() -> None:
    template = made()["spec"]["template"]
    assert template["metadata"]["annotations"] == {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }


def test_the_steps_around_it_hold_the_urls_and_the_command_does_not() -> None:
    pod = pod_of_job(made())
    fetch, upload = pod["initContainers"]
    assert "restartPolicy" not in fetch and upload["restartPolicy"] == "Always", "a sidecar: it ends after the command"
    assert json.loads(fetch["env"][0]["value"]) == [{"path": "a", "url": "https://store/a"}]
    assert "https://store" not in json.dumps(pod["containers"])
    mounts = {each["name"]: [(m["name"], m["readOnly"]) for m in each["volumeMounts"]] for each in (fetch, upload)}
    assert mounts == {"fetch": [("inputs", False)], "upload": [("outputs", True)]}
    assert upload["startupProbe"]["exec"]["command"] == list(READY), "a command that is short waits until it listens"
    assert fetch["command"][0] == "dumb-init", "process 1 ignores SIGTERM until it has a handler"


def test_kubernetes_own_schemas_take_it(tmp_path: Path) -> None:
    tool = TOOLS / "python" / "bin" / "kubernetes-validate"
    if not tool.exists():
        pytest.skip("kubernetes-validate is not here: `make chart` fetches it")
    file = tmp_path / "job.yaml"
    for spec in ({}, EVERYTHING):
        file.write_text(json.dumps(made(**spec)))
        done = subprocess.run([tool, "--strict", file], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
