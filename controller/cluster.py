"""The Kubernetes API as plain JSON: worker pods read and annotated, the Jobs of containers made and deleted.

The one user of the Kubernetes client here. It decides nothing: what objects mean and what is to be done about them is
in pod_explanations.py, autoscaling.py and containers/plan.py. Every method raises ClusterUnavailable, its `status` that
of the answer, or 0 without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serinette.errors import ClusterUnavailable
from serinette.job import now

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

log = logging.getLogger(__name__)

Object = dict[str, Any]

# Who has set a field, in an object's managedFields.
FIELD_MANAGER = "serinette-controller"
# To connect, and for each read of an answer, in seconds.
_TIMEOUT_S = (3.0, 10.0)
# Of events; those of pods that come and go by the hundred are cut off.
_MOST_EVENTS = 1_000
# Our clock may be another than the nodes': lines that were read already are known by their times.
_SKEW_S = 60
_BAD_REQUEST, _NOT_FOUND, _CONFLICT = 400, 404, 409


def connect(kubeconfig: Path | None = None) -> ApiClient | None:
    """The cluster that `kubeconfig` names, or that this process runs in; None without one, with the reason logged."""
    try:
        from kubernetes import client, config  # noqa: PLC0415  # half a second, 40 MB: only where there is a cluster
    except ImportError:
        log.warning("Kubernetes is not used, as its client is missing: pip install 'serinette[cluster]'")
        return None
    configuration = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        log.warning("Kubernetes is not used: %s", error)
        return None
    configuration.retries = False
    return client.ApiClient(configuration)


class _Namespace:
    """Objects of one namespace that a label selector finds."""

    def __init__(
        self, connection: ApiClient, namespace: str, selector: str, timeout_s: tuple[float, float] = _TIMEOUT_S
    ) -> None:
        """`timeout_s` is to connect, and for each read."""
        self._connection = connection
        self._here = f"namespaces/{namespace}"
        self._selector = selector
        self._timeout_s = timeout_s

    def _ask(self, method: str, path: str, query: Object | None = None, body: Object | None = None) -> bytes:
        """The body of an answer as it comes: the client's own models refuse what they do not know."""
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415  # as above
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            request = self._connection.param_serialize(  # reads the token anew
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Content-Type": kind},
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = self._connection.call_api(*request, _request_timeout=self._timeout_s)
            data: bytes = answer.read()
        except (ApiException, HTTPError, OSError) as error:
            raise ClusterUnavailable(f"the API server does not answer: {error}") from error
        if answer.status >= _BAD_REQUEST:
            raise ClusterUnavailable(f"{answer.status} {_reason(data) or answer.reason}", status=answer.status)
        return data

    def _items(self, path: str, query: Object) -> list[Object]:
        try:
            items: list[Object] = json.loads(self._ask("GET", path, query)).get("items") or []
        except ValueError as error:
            raise ClusterUnavailable(f"the API server does not answer: {error}") from error
        return items


class WorkerPods(_Namespace):
    """The worker pods."""

    def pods(self) -> list[Object]:
        """All of them, from the API server's memory: it may be a second behind."""
        return self._items(f"/api/v1/{self._here}/pods", {"labelSelector": self._selector, "resourceVersion": 0})

    def events(self) -> list[Object]:
        """Of pods, the last hour's as a rule."""
        return self._events("involvedObject.kind=Pod")

    def refusals(self) -> list[Object]:
        """Events of pods that the API server refused to their ReplicaSets, the last hour's as a rule."""
        return self._events("involvedObject.kind=ReplicaSet,reason=FailedCreate")

    def _events(self, of: str) -> list[Object]:
        return self._items(f"/api/v1/{self._here}/events", {"fieldSelector": of, "limit": _MOST_EVENTS})

    def nodes(self) -> list[Object]:
        """All nodes."""
        return self._items("/api/v1/nodes", {"resourceVersion": 0})

    def scaled_objects(self) -> list[Object]:
        """KEDA's objects of the pools."""
        return self._items(f"/apis/keda.sh/v1alpha1/{self._here}/scaledobjects", {"labelSelector": self._selector})

    def annotate(self, pod: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a pod; None removes one."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._ask("PATCH", f"/api/v1/{self._here}/pods/{pod}", {"fieldManager": FIELD_MANAGER}, patch)


class ContainerJobs(_Namespace):
    """The Kubernetes Jobs of containers, their pods and logs."""

    def jobs(self) -> list[Object]:
        """All Jobs, as they are now and not from the API server's memory."""
        return self._items(f"/apis/batch/v1/{self._here}/jobs", {"labelSelector": self._selector})

    def pods(self) -> list[Object]:
        """All their pods."""
        return self._items(f"/api/v1/{self._here}/pods", {"labelSelector": self._selector})

    def account(self, name: str) -> Object:
        """A service account as it is now: its uid is another when it was made anew."""
        found: Object = json.loads(self._ask("GET", f"/api/v1/{self._here}/serviceaccounts/{name}"))
        return {"apiVersion": "v1", "kind": "ServiceAccount", **found}

    def create(self, job: Object) -> bool:
        """Make a Job; False if there is one of its name."""
        try:
            self._ask("POST", f"/apis/batch/v1/{self._here}/jobs", body=job)
        except ClusterUnavailable as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True

    def delete(self, name: str) -> None:
        """Have a Job's pod end, and delete it then. A Job that is gone counts as deleted."""
        try:
            self._ask("DELETE", f"/apis/batch/v1/{self._here}/jobs/{name}", {"propagationPolicy": "Foreground"})
        except ClusterUnavailable as error:
            if error.status != _NOT_FOUND:
                raise

    def log(self, pod: str, container: str, since: str, most_bytes: int) -> str:
        """What a container of a pod wrote, each line behind its time; from about `since` on, if not empty."""
        query: Object = {"container": container, "timestamps": "true", "limitBytes": most_bytes}
        if since:  # as the kubelet writes it, nanoseconds and all
            age_s = (now() - datetime.fromisoformat(f"{since[:19]}+00:00")).total_seconds()
            query["sinceSeconds"] = max(0, int(age_s)) + _SKEW_S
        return self._ask("GET", f"/api/v1/{self._here}/pods/{pod}/log", query).decode(errors="replace")


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, LookupError):
        return ""
