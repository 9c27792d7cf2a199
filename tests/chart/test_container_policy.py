"""The controller's token can create Jobs of containers, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from celpy.adapter import json_to_cel

from controller.containers.manifest import Order, manifest
from controller.settings import ControllerSettings
from serinette.container import ContainerSpec, allowed_by
from serinette.names import Lane
from serinette.settings import ContainerSettings
from tests.chart.policies import denied, evaluated
from tests.chart.rendering import Render, find, of_kind

USER = "system:serviceaccount:serinette:serinette-controller"
IMAGE = "registry.example.com/audio/stems:1"
WRITABLE = "registry.example.com/train/lora:3"
DIGEST = "sha256:" + "4" * 64

Job = dict[str, Any]


@pytest.fixture
def policy(render: Render) -> dict[str, Any]:
    (found,) = of_kind(render("containers"), "ValidatingAdmissionPolicy")
    spec: dict[str, Any] = found["spec"]
    return spec


@pytest.fixture
def settings(render: Render, monkeypatch: pytest.MonkeyPatch) -> ContainerSettings:
    for name, value in find(render("containers"), "Deployment", "-controller").env.items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    return ControllerSettings()


def job_of(settings: ContainerSettings, **spec: Any) -> Job:
    """As an API server shows it to a policy: what is false or empty by default is left out."""
    container = ContainerSpec.model_validate({"image": IMAGE, **spec})
    upload = {"urls": ["https://store/1"], "manifest_url": "https://store/m", "max_bytes": 9}
    order = Order("2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10", "team-a", "attempt", Lane.HIGH, container, 600, (), upload)
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "serinette-container", "uid": "u"}}
    job = manifest(order, settings, owner)
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        del job["spec"]["template"]["spec"][name]
    return job


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"command": ["sh"], "args": ["-c"], "env": {"A": "b"}, "secrets": {"TOKEN": "hub"}, "gpus": 2, "pool": "big"},
        {"image": WRITABLE, "writable_root": True},
    ],
)
def test_jobs_that_the_controller_makes_and_deletes_pass(
    policy: dict[str, Any], settings: ContainerSettings, spec: dict[str, Any]
) -> None:
    job = job_of(settings, **spec)
    assert denied(policy, USER, job) == []
    suspended = copy.deepcopy(job)  # as Kueue's webhook makes it
    suspended["spec"]["suspend"] = True
    assert denied(policy, USER, suspended) == []
    assert denied(policy, USER, None, job) == []


def on_job(**fields: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"].update(fields)


def on_pod(**fields: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["spec"].update(fields)


def on_main(**fields: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["spec"]["containers"][0].update(fields)


def on_step(**fields: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["spec"]["initContainers"][1].update(fields)


def confined(**fields: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["spec"]["containers"][0]["securityContext"].update(fields)


def without(*path: str | int) -> Callable[[Job], None]:
    def change(job: Job) -> None:
        found: Any = job
        for name in path[:-1]:
            found = found[name]
        del found[path[-1]]

    return change


def named(name: str) -> Callable[[Job], None]:
    return lambda job: job["metadata"].update(name=name)


def labeled(name: str, value: str) -> Callable[[Job], None]:
    return lambda job: job["metadata"].update(labels={**job["metadata"]["labels"], name: value})


def pod_labeled(**labels: str) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["metadata"].update(labels=labels)


def another_main(job: Job) -> None:
    job["spec"]["template"]["spec"]["containers"] *= 2


def volume(**source: Any) -> Callable[[Job], None]:
    return lambda job: job["spec"]["template"]["spec"]["volumes"].append({"name": "more", **source})


def variable(**source: Any) -> Callable[[Job], None]:
    return on_main(env=[{"name": "A", "valueFrom": source}])


POD = ("spec", "template", "spec")
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
OURS, PODS, TOKEN = "own release's containers", "has one pod", "has no token"
VOLUMES, ROOT, LIMITS, IMAGES, WRITES = (
    "volumes of its own",
    "is not root",
    "has limits",
    "image is one of",
    "read-only",
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (named("miner"), OURS),
        (without("metadata", "name"), OURS),
        (without("metadata", "labels"), OURS),
        (labeled(INSTANCE, "other"), OURS),
        (labeled(COMPONENT, "worker"), OURS),
        (on_job(parallelism=50), PODS),
        (on_job(completions=50), PODS),
        (pod_labeled(), PODS),
        (without("spec", "template", "metadata", "labels", COMPONENT), PODS),
        (on_pod(serviceAccountName="admin"), TOKEN),
        (without(*POD, "serviceAccountName"), TOKEN),
        (on_pod(automountServiceAccountToken=True), TOKEN),
        (without(*POD, "automountServiceAccountToken"), TOKEN),
        (on_pod(hostNetwork=True), TOKEN),
        (on_pod(hostPID=True), TOKEN),
        (on_pod(hostIPC=True), TOKEN),
        (on_pod(nodeName="control-plane"), TOKEN),
        (on_pod(priorityClassName="system-node-critical"), TOKEN),
        (volume(hostPath={"path": "/"}), VOLUMES),
        (volume(secret={"secretName": "serinette-valkey"}), VOLUMES),
        (volume(projected={"sources": [{"serviceAccountToken": {"path": "token"}}]}), VOLUMES),
        (without(*POD, "securityContext"), ROOT),
        (on_pod(securityContext={"runAsNonRoot": False, "seccompProfile": {"type": "RuntimeDefault"}}), ROOT),
        (on_pod(securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "Unconfined"}}), ROOT),
        (without(*POD, "containers", 0, "securityContext"), ROOT),
        (confined(privileged=True), ROOT),
        (confined(allowPrivilegeEscalation=True), ROOT),
        (confined(runAsNonRoot=False), ROOT),
        (confined(runAsUser=0), ROOT),
        (confined(procMount="Unmasked"), ROOT),
        (confined(seccompProfile={"type": "Unconfined"}), ROOT),
        (confined(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}), ROOT),
        (confined(capabilities={"drop": ["NET_RAW"]}), ROOT),
        (on_step(securityContext={"privileged": True}), ROOT),
        (on_main(resources={"limits": {"cpu": "1", "memory": "1Gi"}}), LIMITS),
        (on_main(ports=[{"hostPort": 80, "containerPort": 80}]), LIMITS),
        (on_main(envFrom=[{"secretRef": {"name": "serinette-valkey"}}]), LIMITS),
        (variable(secretKeyRef={"name": "serinette-valkey", "key": "password"}), LIMITS),
        (variable(secretKeyRef={"name": "hub-credentials", "key": "other"}), LIMITS),
        (variable(configMapKeyRef={"name": "a", "key": "b"}), LIMITS),
        (on_main(image="docker.io/library/miner:1"), IMAGES),
        (on_step(image="docker.io/library/miner:1"), IMAGES),
        (another_main, IMAGES),
        (confined(readOnlyRootFilesystem=False), WRITES),
        (without(*POD, "containers", 0, "securityContext", "readOnlyRootFilesystem"), WRITES),
    ],
)
def test_what_a_stolen_token_would_make_is_refused(
    policy: dict[str, Any], settings: ContainerSettings, change: Callable[[Job], None], words: str
) -> None:
    job = job_of(settings)
    change(job)
    messages = denied(policy, USER, job)
    assert any(words in message for message in messages), messages


@pytest.mark.parametrize("change", [named("backup"), labeled(INSTANCE, "other"), without("metadata", "labels")])
def test_jobs_of_others_are_not_deleted(
    policy: dict[str, Any], settings: ContainerSettings, change: Callable[[Job], None]
) -> None:
    job = job_of(settings)
    change(job)
    (message,) = denied(policy, USER, None, job)
    assert OURS in message


@pytest.mark.parametrize(
    "image",
    [
        "registry.example.com/audio/stems:1",
        "registry.example.com/audio",
        "registry.example.com/audiobook/stems:1",
        "registry.example.com/train/lora",
        "registry.example.com/train/lora:3",
        f"registry.example.com/train/lora:3@{DIGEST}",
        "registry.example.com/train/lorax",
        "registry.example.com/train/stems:2",
        f"registry.example.com/train/stems:2@{DIGEST}",
        "registry.example.com/train/stems:22",
        "registry.example.com/train/stems",
        f"registry.example.com/train/old@{DIGEST}",
        f"registry.example.com/train/old:7@{DIGEST}",
        f"registry.example.com/train/older@{DIGEST}",
        f"registry.example.com/train/old@{DIGEST[:-1]}5",
        "registry.example.com/train/old:7",
        f"registry.example.com/train/pinned:1@sha256:{'5' * 64}",
        f"registry.example.com/train/pinned:2@sha256:{'5' * 64}",
        f"registry.example.com/train/pinned@sha256:{'5' * 64}",
        "localhost:5000/any/thing:1",
        "localhost:50001/any/thing:1",
        "docker.io/library/python:3",
    ],
)
def test_the_policy_and_the_gateway_read_the_list_alike(
    policy: dict[str, Any], settings: ContainerSettings, image: str
) -> None:
    job = job_of(settings)
    on_main(image=image)(job)
    refused = any(IMAGES in message for message in denied(policy, USER, job))
    assert refused is not allowed_by(image, settings.containers_images)


def test_the_steps_may_be_of_the_release_that_is_being_replaced(
    policy: dict[str, Any], settings: ContainerSettings
) -> None:
    older = job_of(
        settings.model_copy(update={"containers_steps_image": "registry.example.com/music/serinette-gateway:0.0.9"})
    )
    assert denied(policy, USER, older) == []


def test_the_policy_binds_only_the_controller(render: Render, policy: dict[str, Any]) -> None:
    (condition,) = policy["matchConditions"]
    for user, meant in ((USER, True), ("system:serviceaccount:kube-system:job-controller", False)):
        given = {"request": json_to_cel({"userInfo": {"username": user}})}
        assert bool(evaluated(condition["expression"], given)) is meant
    (binding,) = of_kind(render("containers"), "ValidatingAdmissionPolicyBinding")
    assert (binding["spec"]["policyName"], binding["spec"]["validationActions"]) == (binding.name, ["Deny"])
    selector = binding["spec"]["matchResources"]["namespaceSelector"]
    assert selector == {"matchLabels": {"kubernetes.io/metadata.name": "strangers"}}
    assert not of_kind(render("containers", "containers.confine=false"), "ValidatingAdmissionPolicy")
    assert binding.name == "serinette-serinette-container", "namespace and release: policies are the cluster's"
