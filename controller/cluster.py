"""The Kubernetes API as plain JSON: worker pods read and annotated, the Jobs of containers made and deleted.

The one user of the Kubernetes client here. It decides nothing: what objects mean and what is to be done about them is
in pod_explanations.py, autoscaling.py and containers/plan.py. Every method raises ClusterUnavailable, its `status` that
of the answer, or 0 without one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serinette.errors import ClusterUnavailable
from serinette.job import now

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, BatchV1Api
    from kubernetes.client.exceptions import ApiException

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
_CONFLICT, _NOT_FOUND = 409, 404


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
        from kubernetes import client  # noqa: PLC0415  # as above

        self._connection = connection
        self._core = client.CoreV1Api(connection)
        self._namespace = namespace
        self._selector = selector
        self._timeout_s = timeout_s

    def _ask(self, ask: Callable[..., Any], *given: object, **options: object) -> bytes:
        with _as_cluster_unavailable():
            data: bytes = ask(*given, **options, _request_timeout=self._timeout_s, _preload_content=False).data
        return data

    def _items(self, ask: Callable[..., Any], *given: object, **options: object) -> list[Object]:
        with _as_cluster_unavailable():
            items: list[Object] = json.loads(self._ask(ask, *given, **options)).get("items") or []
        return items


class WorkerPods(_Namespace):
    """The worker pods."""

    def pods(self) -> list[Object]:
        """All of them, from the API server's memory: it may be a second behind."""
        return self._items(
            self._core.list_namespaced_pod, self._namespace, label_selector=self._selector, resource_version="0"
        )

    def events(self) -> list[Object]:
        """Of pods, the last hour's as a rule."""
        pods = "involvedObject.kind=Pod"
        return self._items(self._core.list_namespaced_event, self._namespace, field_selector=pods, limit=_MOST_EVENTS)

    def refusals(self) -> list[Object]:
        """Events of pods that the API server refused to their ReplicaSets, the last hour's as a rule."""
        refused = "involvedObject.kind=ReplicaSet,reason=FailedCreate"
        ask = self._core.list_namespaced_event
        return self._items(ask, self._namespace, field_selector=refused, limit=_MOST_EVENTS)

    def nodes(self) -> list[Object]:
        """All nodes."""
        return self._items(self._core.list_node, resource_version="0")

    def scaled_objects(self) -> list[Object]:
        """KEDA's objects of the pools."""
        from kubernetes import client  # noqa: PLC0415  # as above

        ask = client.CustomObjectsApi(self._connection).list_namespaced_custom_object
        return self._items(ask, "keda.sh", "v1alpha1", self._namespace, "scaledobjects", label_selector=self._selector)

    def annotate(self, pod: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a pod; None removes one."""
        patch = {"metadata": {"annotations": dict(annotations)}}
        self._ask(self._core.patch_namespaced_pod, pod, self._namespace, patch, field_manager=FIELD_MANAGER)


class ContainerJobs(_Namespace):
    """The Kubernetes Jobs of containers, their pods and logs."""

    @cached_property
    def _batch(self) -> BatchV1Api:
        from kubernetes import client  # noqa: PLC0415  # as above

        return client.BatchV1Api(self._connection)

    def jobs(self) -> list[Object]:
        """All Jobs, as they are now and not from the API server's memory."""
        return self._items(self._batch.list_namespaced_job, self._namespace, label_selector=self._selector)

    def pods(self) -> list[Object]:
        """All their pods."""
        return self._items(self._core.list_namespaced_pod, self._namespace, label_selector=self._selector)

    def account(self, name: str) -> Object:
        """A service account as it is now: its uid is another when it was made anew."""
        found: Object = json.loads(self._ask(self._core.read_namespaced_service_account, name, self._namespace))
        return {"apiVersion": "v1", "kind": "ServiceAccount", **found}

    def create(self, job: Object) -> bool:
        """Make a Job; False if there is one of its name."""
        try:
            self._ask(self._batch.create_namespaced_job, self._namespace, job)
        except ClusterUnavailable as error:
            if error.status == _CONFLICT:
                return False
            raise
        return True

    def delete(self, name: str) -> None:
        """Have a Job's pod end, and delete it then. One that is gone counts as deleted."""
        try:
            self._ask(self._batch.delete_namespaced_job, name, self._namespace, propagation_policy="Foreground")
        except ClusterUnavailable as error:
            if error.status != _NOT_FOUND:
                raise

    def log(self, pod: str, container: str, since: str, most_bytes: int) -> str:
        """What a container of a pod wrote, each line behind its time; from about `since` on, if not empty."""
        options: dict[str, Any] = {"container": container, "timestamps": True, "limit_bytes": most_bytes}
        if since:  # as the kubelet writes it, nanoseconds and all
            age_s = (now() - datetime.fromisoformat(f"{since[:19]}+00:00")).total_seconds()
            options["since_seconds"] = max(0, int(age_s)) + _SKEW_S
        return self._ask(self._core.read_namespaced_pod_log, pod, self._namespace, **options).decode(errors="replace")


@contextmanager
def _as_cluster_unavailable() -> Iterator[None]:
    """The client's errors as ClusterUnavailable."""
    from kubernetes.client.exceptions import ApiException  # noqa: PLC0415  # as above
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except ApiException as error:
        raise ClusterUnavailable(f"{error.status} {_reason(error)}", status=error.status or 0) from error
    except (HTTPError, ValueError, OSError) as error:
        raise ClusterUnavailable(f"the API server does not answer: {error}") from error


def _reason(error: ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, LookupError):
        return str(error.reason)
