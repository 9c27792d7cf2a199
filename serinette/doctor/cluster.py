"""Asks a cluster through the Kubernetes API, and judges nothing. It reads, and changes nothing."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, InsecureRequestWarning

Object = Mapping[str, Any]

_TIMEOUT_S = 5.0  # of each question
_NO_ANSWER = 0
_API_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


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
class ClusterSeen:
    """What a cluster said; each answer by the name of its question."""

    context: str
    server: str
    namespace: str
    trouble: str = ""  # why nothing could be asked
    version: str = ""
    ahead_s: float = 0.0
    clock_within_s: float = 0.0  # how exactly that could be measured, beside the whole seconds of a Date
    answers: Mapping[str, Answer] = field(default_factory=dict)
    metrics: Mapping[str, Answer] = field(default_factory=dict)  # of each ScaledObject, what KEDA gives to HPA
    keda_namespace: str = "keda"

    def __getitem__(self, question: str) -> Answer:
        return self.answers[question]

    @property
    def installed(self) -> bool:
        """Whether a release of ours is in the namespace."""
        return bool(self["deployments"].items)


@dataclass(frozen=True, slots=True)
class Place:
    """Which cluster, and where in it."""

    namespace: str
    context: str | None = None  # None: the current one
    kubeconfig: str | None = None  # files, as KUBECONFIG has them; None: ~/.kube/config
    keda_namespace: str = "keda"
    release: str | None = None

    @property
    def questions(self) -> dict[str, str]:
        """What is asked: a name for each path."""
        ours = "labelSelector=app.kubernetes.io/name%3Dserinette"
        ours += f",app.kubernetes.io/instance%3D{self.release}" if self.release else ""
        inside = f"namespaces/{self.namespace}"
        return {
            "definition of scaledobjects": f"{_CRDS}/scaledobjects.keda.sh",
            "definition of triggerauthentications": f"{_CRDS}/triggerauthentications.keda.sh",
            "deployments of keda": f"/apis/apps/v1/namespaces/{self.keda_namespace}/deployments",
            "apiservice of external metrics": f"{_API_SERVICES}/v1beta1.external.metrics.k8s.io",
            "nodes": "/api/v1/nodes",
            "storageclasses": "/apis/storage.k8s.io/v1/storageclasses",
            "deployments": f"/apis/apps/v1/{inside}/deployments?{ours}",
            "statefulsets": f"/apis/apps/v1/{inside}/statefulsets?{ours}",
            "pods": f"/api/v1/{inside}/pods?{ours}",
            "persistentvolumeclaims": f"/api/v1/{inside}/persistentvolumeclaims",
            "events": f"/api/v1/{inside}/events?fieldSelector=type%3DWarning",
            "scaledobjects": f"/apis/keda.sh/v1alpha1/{inside}/scaledobjects?{ours}",
        }


def metric_path(namespace: str, scaled_object: str) -> str:
    """Where HPA asks for the value of a ScaledObject's formula, which KEDA calls composite-metric."""
    base = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/composite-metric"
    return f"{base}?labelSelector=scaledobject.keda.sh%2Fname%3D{scaled_object}"


def look_at_cluster(place: Place) -> ClusterSeen:
    """Ask a cluster by the kubeconfig, or by the pod's own account inside one. Each question has its own timeout."""
    try:
        name, api = _connect(place)
    except (ConfigException, OSError, ValueError) as error:
        return ClusterSeen(place.context or "", "", place.namespace, trouble=f"no cluster is configured: {error}")
    with api, warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureRequestWarning)  # the kubeconfig's author chose so
        server = str(api.configuration.host)
        sent_s = time.time()
        version, date = _get(api, "/version")
        took_s = time.time() - sent_s
        if not version.found:
            message = version.body.get("message", "")
            trouble = f"it answers {version.status}: {message}" if version.status else f"it does not answer: {message}"
            return ClusterSeen(name, server, place.namespace, trouble=trouble)
        answers = _answers(api, place.questions)
        names = [str(each["metadata"]["name"]) for each in answers["scaledobjects"].items]
        metrics = _answers(api, {each: metric_path(place.namespace, each) for each in names})
    ahead_s = parsedate_to_datetime(date).timestamp() + 0.5 - (sent_s + took_s / 2) if date else 0.0
    words = str(version.body.get("gitVersion", "?"))
    if words.startswith("v0."):  # a build that does not know its own
        words = f"v{version.body.get('major')}.{version.body.get('minor')}"
    seen = (name, server, place.namespace, "", words, ahead_s, took_s / 2, answers, metrics)
    return ClusterSeen(*seen, place.keda_namespace)


def _answers(api: client.ApiClient, questions: Mapping[str, str]) -> dict[str, Answer]:
    """All at once; one that hangs (KEDA's metrics do while its operator is down) keeps no other from its answer."""
    pool = ThreadPoolExecutor(len(questions) or 1)
    asked = {name: pool.submit(_get, api, path) for name, path in questions.items()}
    wait(asked.values(), timeout=_TIMEOUT_S + 1)
    pool.shutdown(wait=False)
    late = Answer(_NO_ANSWER, {"message": f"within {_TIMEOUT_S:g} s"})
    return {name: future.result()[0] if future.done() else late for name, future in asked.items()}


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


def _get(api: client.ApiClient, path: str) -> tuple[Answer, str]:
    """A body as it comes (the client's own models refuse what they do not know) and the Date of the answer."""
    request = api.param_serialize("GET", path, auth_settings=["BearerToken"])
    try:
        answer = api.call_api(*request, _request_timeout=_TIMEOUT_S)
        raw = answer.read()
    except (HTTPError, OSError) as error:
        return Answer(_NO_ANSWER, {"message": str(error)}), ""
    try:
        body = json.loads(raw)
    except ValueError:
        body = {"message": raw[:200].decode(errors="replace")}
    return Answer(int(answer.status), body if isinstance(body, dict) else {}), answer.getheader("Date") or ""
