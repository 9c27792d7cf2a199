"""A container as a Kubernetes Job: a pure function of what was asked for and what the operator allows.

The pod holds no credentials: an init container fetches the inputs from presigned URLs, and a sidecar that Kubernetes
ends after the command has ended, however it ended, puts the outputs to presigned URLs. One object and no other: what
has one name is made once, and nothing is left when it is deleted (docs/decisions/0016).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serinette.container import ContainerSpec
from serinette.names import Lane
from serinette.settings import ContainerSettings, Machines

JOB_LABEL = "serinette.dev/job"
ATTEMPT_LABEL = "serinette.dev/attempt"
TENANT_LABEL = "serinette.dev/tenant"

# Containers of the pod. The two beside the command run controller/containers/steps.py.
MAIN, FETCH, UPLOAD = "main", "fetch", "upload"

# A container that is taken from its node loses its work: autoscalers are to take another node.
_ANNOTATIONS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
# Without rights: images that run as root are run as this all the same.
_USER = 65532
# In case that the Job is never deleted: far longer than the controller is away.
_LEFT_FOR_S = 86_400
# A variable of Linux may have 128 KiB.
MAX_STEP_BYTES = 120_000
# The last step has a handler of SIGTERM. Linux drops a signal that a container's first process has none for, and a
# command may be over before a Python has started.
READY = ("grep", "-q", "^SigCgt:.*[4-7c-f]...$", "/proc/1/status")
# An init, so that a pod that is deleted while its inputs come does not stay for its whole grace. Not for the last step:
# its own handler is what the probe above looks for.
_INIT = ("dumb-init", "--single-child", "--")
_STEP_RESOURCES = {
    "requests": {"cpu": "50m", "memory": "96Mi", "ephemeral-storage": "16Mi"},
    "limits": {"cpu": "1", "memory": "256Mi", "ephemeral-storage": "64Mi"},
}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt. `fetch` and `upload` are what controller/containers/steps.py reads."""

    job_id: str
    tenant: str
    attempt_id: str
    lane: Lane
    spec: ContainerSpec
    timeout_s: int
    fetch: tuple[Mapping[str, Any], ...] = ()
    upload: Mapping[str, Any] | None = None


def job_name(job_id: str) -> str:
    """The Kubernetes Job of a job: all its attempts have this one name, so that no two can be there at once."""
    return f"container-{job_id}"


def identity(instance: str) -> dict[str, str]:
    """Labels of the Jobs and pods of one deployment, and of no other's in the same namespace."""
    return {
        "app.kubernetes.io/name": "serinette",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": "container",
    }


def selector(instance: str) -> str:
    """The same, as Kubernetes selects by labels."""
    return ",".join(f"{name}={value}" for name, value in identity(instance).items())


def manifest(order: Order, settings: ContainerSettings, owner: Object | None = None) -> Object:
    """The Kubernetes Job of one attempt. It goes when `owner`, an object of its namespace, goes."""
    labels = {
        **settings.containers_labels,
        **identity(settings.containers_instance),
        JOB_LABEL: order.job_id,
        ATTEMPT_LABEL: order.attempt_id,
        # A label's value ends with a letter or digit; this one is for people, and decides nothing.
        TENANT_LABEL: order.tenant.rstrip("-"),
    }
    metadata: Object = {"name": job_name(order.job_id), "namespace": settings.containers_namespace, "labels": labels}
    if owner:
        named = {name: owner["metadata"][name] for name in ("name", "uid")}
        metadata["ownerReferences"] = [{"apiVersion": owner["apiVersion"], "kind": owner["kind"], **named}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": _LEFT_FOR_S,
            "template": {
                "metadata": {"labels": labels, "annotations": _ANNOTATIONS},
                "spec": _pod(order, settings),
            },
        },
    }


def _pod(order: Order, settings: ContainerSettings) -> Object:
    machines = settings.containers_machines.get(order.spec.pool or "default", Machines())
    size = f"{order.spec.disk_mib}Mi"
    optional = {
        "serviceAccountName": settings.containers_service_account,
        "runtimeClassName": machines.runtime_class,
        "priorityClassName": settings.containers_priority_classes.get(order.lane),
    }
    # restartPolicy Always makes it a sidecar: it is there before the command starts, and is ended after that has.
    probe = {"exec": {"command": list(READY)}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 120}
    upload = _step(UPLOAD, settings, order.upload, _mount("outputs", read_only=True))
    return {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": order.timeout_s,
        "terminationGracePeriodSeconds": settings.containers_grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": machines.node_selector,
        "tolerations": list(machines.tolerations),
        "volumes": [{"name": name, "emptyDir": {"sizeLimit": size}} for name in ("inputs", "outputs", "tmp")],
        "initContainers": [
            _step(FETCH, settings, list(order.fetch), _mount("inputs")),
            upload | {"restartPolicy": "Always", "startupProbe": probe},
        ],
        "containers": [_main(order.spec, machines, settings)],
        **{name: value for name, value in optional.items() if value},
    }


def _main(spec: ContainerSpec, machines: Machines, settings: ContainerSettings) -> Object:
    limits = {"cpu": f"{spec.cpu:g}", "memory": f"{spec.memory_mib}Mi", "ephemeral-storage": f"{spec.disk_mib}Mi"}
    if spec.gpus:
        limits[machines.gpu_resource] = str(spec.gpus)
    env: list[Object] = [{"name": "HOME", "value": "/tmp"}]  # noqa: S108  # the pod's own
    env += [{"name": name, "value": _literal(value)} for name, value in spec.env.items()]
    for name, published in spec.secrets.items():
        if known := settings.containers_secrets.get(published):
            env.append({"name": name, "valueFrom": {"secretKeyRef": {"name": known.secret, "key": known.key}}})
    words = {"command": list(map(_literal, spec.command)), "args": list(map(_literal, spec.args))}
    return {
        "name": MAIN,
        "image": spec.image,
        "env": env,
        "resources": {"requests": limits, "limits": limits},
        "securityContext": _confined(read_only=not spec.writable_root),
        "volumeMounts": [_mount("inputs", read_only=True), _mount("outputs"), _mount("tmp")],
        **{name: given for name, given in words.items() if given},
    }


def _step(name: str, settings: ContainerSettings, given: object, mount: Object) -> Object:
    return {
        "name": name,
        "image": settings.containers_steps_image,
        "command": [*(_INIT if name == FETCH else ()), "python", "-m", "controller.containers.steps", name],
        "env": [{"name": "SERINETTE_STEP", "value": _literal(json.dumps(given))}],
        "resources": _STEP_RESOURCES,
        "securityContext": _confined(read_only=True),
        "volumeMounts": [mount],
    }


def _confined(*, read_only: bool) -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": read_only,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _mount(name: str, *, read_only: bool = False) -> Object:
    return {"name": name, "mountPath": f"/{name}", "readOnly": read_only}


def _literal(text: str) -> str:
    """Kubernetes replaces $(NAME) in words and values; a client's stay as they are."""
    return text.replace("$(", "$$(")
