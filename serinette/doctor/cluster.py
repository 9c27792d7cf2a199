"""Looks at a cluster through the Kubernetes API: gathers, and judges nothing."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, InsecureRequestWarning

Object = Mapping[str, Any]

KEDA_API = "keda.sh/v1alpha1"
_TIMEOUT_S = 10
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_EXTERNAL = "v1beta1.external.metrics.k8s.io"
COMPOSITE_METRIC = "composite-metric"  # the name that KEDA gives to a formula's value


@dataclass(frozen=True, slots=True)
class Answer:
    """What one question brought."""

    status: int
    body: Object = field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether it was answered with something."""
        return self.status == HTTPStatus.OK

    @property
    def forbidden(self) -> bool:
        """Whether we may not ask it."""
        return self.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

    @property
    def items(self) -> list[Object]:
        """Of a list."""
        return list(self.body.get("items") or [])


_NOTHING = Answer(HTTPStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """What a cluster said. Answers that were not asked for are `404`."""

    context: str
    server: str
    namespace: str
    trouble: str = ""  # why nothing could be asked
    version: str = ""
    ahead_s: float = 0.0
    clock_within_s: float = 0.0  # how exactly that could be measured, beside the whole seconds of a Date
    answers: Mapping[str, Answer] = field(default_factory=dict)
    metrics: Mapping[str, Answer] = field(default_factory=dict)  # of each ScaledObject, what KEDA tells HPA

    def __getitem__(self, name: str) -> Answer:
        return self.answers.get(name, _NOTHING)

    @property
    def installed(self) -> bool:
        """Whether a release of ours is in the namespace."""
        return bool(self["deployments"].items)


def questions(namespace: str, keda_namespace: str, release: str | None) -> dict[str, str]:
    """What is asked: a name for each path."""
    ours = "labelSelector=app.kubernetes.io/name%3Dserinette"
    ours += f",app.kubernetes.io/instance%3D{release}" if release else ""
    inside = f"namespaces/{namespace}"
    return {
        "scaledobjects crd": f"{_CRDS}/scaledobjects.keda.sh",
        "triggerauthentications crd": f"{_CRDS}/triggerauthentications.keda.sh",
        "keda": f"/apis/apps/v1/namespaces/{keda_namespace}/deployments",
        "external metrics": f"/apis/apiregistration.k8s.io/v1/apiservices/{_EXTERNAL}",
        "nodes": "/api/v1/nodes",
        "all pods": "/api/v1/pods?fieldSelector=status.phase!%3DSucceeded,status.phase!%3DFailed",
        "storage classes": "/apis/storage.k8s.io/v1/storageclasses",
        "deployments": f"/apis/apps/v1/{inside}/deployments?{ours}",
        "statefulsets": f"/apis/apps/v1/{inside}/statefulsets?{ours}",
        "pods": f"/api/v1/{inside}/pods?{ours}",
        "claims": f"/api/v1/{inside}/persistentvolumeclaims",
        "events": f"/api/v1/{inside}/events?fieldSelector=type%3DWarning",
        "scaledobjects": f"/apis/{KEDA_API}/{inside}/scaledobjects?{ours}",
    }


@dataclass(frozen=True, slots=True)
class Place:
    """Which cluster, and where in it."""

    namespace: str
    context: str | None = None  # None: the current one
    kubeconfig: str | None = None  # files, as KUBECONFIG has them; None: ~/.kube/config


def look_at_cluster(place: Place, keda_namespace: str = "keda", release: str | None = None) -> ClusterSeen:
    """Ask a cluster by the kubeconfig, or by the pod's own account inside one. It reads, and changes nothing."""
    try:
        name, api = _connect(place)
    except (ConfigException, OSError, ValueError) as error:
        return ClusterSeen(place.context or "", "", place.namespace, trouble=f"no cluster is configured: {error}")
    namespace = place.namespace
    with api, warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)  # whoever wrote the kubeconfig chose so
        server = str(api.configuration.host)
        try:
            sent_s = time.time()
            version, date = _get(api, "/version")
            took_s = time.time() - sent_s
            if version.status != HTTPStatus.OK:
                trouble = f"it answers {version.status}: {version.body.get('message', '')}"
                return ClusterSeen(name, server, namespace, trouble=trouble)
            answers = {each: _get(api, path)[0] for each, path in questions(namespace, keda_namespace, release).items()}
            names = [str(found["metadata"]["name"]) for found in answers["scaledobjects"].items]
            metrics = {each: _get(api, metric_path(namespace, each))[0] for each in names}
        except (HTTPError, OSError) as error:
            return ClusterSeen(name, server, namespace, trouble=f"it does not answer: {error}")
    ahead_s = parsedate_to_datetime(date).timestamp() + 0.5 - (sent_s + took_s / 2) if date else 0.0
    told = str(version.body.get("gitVersion", "?"))
    if told.startswith("v0."):  # a build that was not told its own
        told = f"v{version.body.get('major')}.{version.body.get('minor')}"
    return ClusterSeen(name, server, namespace, "", told, ahead_s, took_s / 2, answers, metrics)


def configured(kubeconfig: str | None = None) -> bool:
    """Whether a kubeconfig with a current context, or a pod's own account, is there. Asks nobody."""
    try:
        return bool(config.list_kube_config_contexts(kubeconfig)[1])
    except (ConfigException, OSError):
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").is_file()


def metric_path(namespace: str, scaled_object: str) -> str:
    """Where HPA asks for the value of a ScaledObject's formula."""
    base = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{COMPOSITE_METRIC}"
    return f"{base}?labelSelector=scaledobject.keda.sh%2Fname%3D{scaled_object}"


def _connect(place: Place) -> tuple[str, client.ApiClient]:
    try:
        contexts, active = config.list_kube_config_contexts(place.kubeconfig)
    except ConfigException:
        if place.context is not None:
            raise
        inside = client.Configuration()
        config.load_incluster_config(inside)
        inside.retries = False
        return "(inside the cluster)", client.ApiClient(inside)
    name = place.context or (active or {}).get("name", "")
    if name not in {each["name"] for each in contexts}:
        raise ConfigException(f"there is no context {name!r} in the kubeconfig")
    settings = client.Configuration()
    config.load_kube_config(place.kubeconfig, context=name, client_configuration=settings)
    settings.retries = False
    return name, client.ApiClient(settings)


def _get(api: client.ApiClient, path: str) -> tuple[Answer, str]:
    """A body as it comes (the client's own models refuse what they do not know) and the Date of the answer."""
    request = api.param_serialize("GET", path, auth_settings=["BearerToken"])
    answer = api.call_api(*request, _request_timeout=_TIMEOUT_S)
    raw = answer.read()
    try:
        body = json.loads(raw)
    except ValueError:
        body = {"message": raw[:200].decode(errors="replace")}
    return Answer(int(answer.status), body if isinstance(body, dict) else {}), answer.getheader("Date") or ""
