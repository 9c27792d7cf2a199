"""Asks a cluster through the Kubernetes API, and judges nothing. It reads, and changes nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, InsecureRequestWarning

Object = Mapping[str, Any]

_TIMEOUT_S = 5.0  # of each question
_NO_ANSWER = 0

# A name for each path. {inside}: a namespace; {ours}: the labels of a release.
_QUESTIONS = {
    "deployments of keda": "/apis/apps/v1/namespaces/{keda}/deployments",
    "apiservice of external metrics": "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io",
    "nodes": "/api/v1/nodes",
    "deployments": "/apis/apps/v1/{inside}/deployments?{ours}",
    "statefulsets": "/apis/apps/v1/{inside}/statefulsets?{ours}",
    "pods": "/api/v1/{inside}/pods?{ours}",
    "scaledobjects": "/apis/keda.sh/v1alpha1/{inside}/scaledobjects?{ours}",
}


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
    def trouble(self) -> str:
        """Why it says nothing, though what was asked for may be there; empty when it does, or when it is not there."""
        if self.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return "we may not ask for it"
        if self.status in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            return ""
        return f"the API server answers {self.status or 'nothing'}: {self.body.get('message', '')}"

    @property
    def items(self) -> list[Object]:
        """Of a list."""
        return list(self.body.get("items") or [])


@dataclass(frozen=True, slots=True)
class Place:
    """Which cluster, and where in it."""

    namespace: str
    context: str | None = None  # None: the current one
    kubeconfig: str | None = None  # files, as KUBECONFIG has them; None: ~/.kube/config
    keda_namespace: str = "keda"
    release: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """What a cluster said; each answer by the name of its question."""

    place: Place
    context: str
    server: str = ""
    trouble: str = ""  # why nothing could be asked
    version: str = ""
    answers: Mapping[str, Answer] = field(default_factory=dict)
    metrics: Mapping[str, Answer] = field(default_factory=dict)  # of each ScaledObject, what KEDA gives to HPA

    def __getitem__(self, question: str) -> Answer:
        return self.answers[question]

    @property
    def installed(self) -> bool:
        """Whether a release of ours is in the namespace."""
        return bool(self["deployments"].items)


def metric_path(namespace: str, scaled_object: str) -> str:
    """Where HPA asks for the value of a ScaledObject's formula, which KEDA calls composite-metric."""
    base = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/composite-metric"
    return f"{base}?labelSelector=scaledobject.keda.sh%2Fname%3D{scaled_object}"


def look_at_cluster(place: Place) -> ClusterSeen:
    """Ask a cluster by the kubeconfig, or by the pod's own account inside one. Each question has its own timeout."""
    try:
        name, api = _connect(place)
    except (ConfigException, OSError, ValueError) as error:
        return ClusterSeen(place, place.context or "", trouble=f"no cluster is configured: {error}")
    with api, warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)  # the kubeconfig's author chose so
        server = str(api.configuration.host)
        version = _get(api, "/version")
        if not version.found:
            answers = f"answers {version.status}" if version.status else "does not answer"
            return ClusterSeen(place, name, server, trouble=f"it {answers}: {version.body.get('message', '')}")
        ours = "labelSelector=app.kubernetes.io/name%3Dserinette"
        ours += f",app.kubernetes.io/instance%3D{place.release}" if place.release else ""
        given = {"inside": f"namespaces/{place.namespace}", "ours": ours, "keda": place.keda_namespace}
        found = _answers(api, {question: path.format_map(given) for question, path in _QUESTIONS.items()})
        names = [str(each["metadata"]["name"]) for each in found["scaledobjects"].items]
        metrics = _answers(api, {each: metric_path(place.namespace, each) for each in names})
    return ClusterSeen(place, name, server, "", str(version.body.get("gitVersion", "?")), found, metrics)


def _answers(api: client.ApiClient, questions: Mapping[str, str]) -> dict[str, Answer]:
    """All at once; one that hangs (KEDA's metrics do while its operator is down) keeps no other from its answer."""
    pool = ThreadPoolExecutor(len(questions) or 1)
    asked = {name: pool.submit(_get, api, path) for name, path in questions.items()}
    wait(asked.values(), timeout=_TIMEOUT_S + 1)
    pool.shutdown(wait=False)
    late = Answer(_NO_ANSWER, {"message": f"within {_TIMEOUT_S:g} s"})
    return {name: future.result() if future.done() else late for name, future in asked.items()}


def configured(kubeconfig: str | None = None) -> bool:
    """Whether a kubeconfig with a current context, or a pod's own account, is there. Asks no server."""
    try:
        return bool(config.list_kube_config_contexts(kubeconfig)[1])
    except (ConfigException, OSError):
        return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").is_file()


def _connect(place: Place) -> tuple[str, client.ApiClient]:
    settings = client.Configuration()
    settings.retries = False
    try:
        contexts, active = config.list_kube_config_contexts(place.kubeconfig)
    except ConfigException:
        if place.context is not None:
            raise
        config.load_incluster_config(settings)
        return "(inside the cluster)", client.ApiClient(settings)
    name = place.context or (active or {}).get("name", "")
    if name not in {each["name"] for each in contexts}:
        raise ConfigException(f"there is no context {name!r} in the kubeconfig")
    config.load_kube_config(place.kubeconfig, context=name, client_configuration=settings)
    return name, client.ApiClient(settings)


def _get(api: client.ApiClient, path: str) -> Answer:
    """A body as it comes: the client's own models refuse what they do not know."""
    request = api.param_serialize("GET", path, auth_settings=["BearerToken"])
    try:
        answer = api.call_api(*request, _request_timeout=_TIMEOUT_S)
        raw = answer.read()
    except (HTTPError, OSError) as error:
        return Answer(_NO_ANSWER, {"message": str(error)})
    try:
        body = json.loads(raw)
    except ValueError:
        body = {"message": raw[:200].decode(errors="replace")}
    return Answer(int(answer.status), body if isinstance(body, dict) else {})
