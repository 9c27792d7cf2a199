"""Kubernetes Jobs of containers, their pods and logs, as plain JSON. Nothing is decided here."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from controller.cluster import own_errors
from controller.containers.manifest import MAIN, Object, identity
from serinette.errors import ClusterUnavailable
from serinette.job import now

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

# To connect, and for each read of an answer, in seconds.
_TIMEOUT_S = (3.0, 10.0)
# Our clock may be another than the nodes': lines that were read already are known by their times.
_SKEW_S = 60


class Jobs:
    """Those of one deployment in one namespace.

    Every method raises ClusterUnavailable, its `status` that of the answer or 0 without one.
    """

    def __init__(self, connection: ApiClient, namespace: str, instance: str) -> None:
        from kubernetes import client  # noqa: PLC0415  # half a second, 40 MB: for those who ask for it

        self._batch, self._core = client.BatchV1Api(connection), client.CoreV1Api(connection)
        self._namespace = namespace
        self._selector = ",".join(f"{name}={value}" for name, value in identity(instance).items())

    def jobs(self) -> list[Object]:
        """All Jobs of containers, as they are now and not from the API server's memory."""
        return self._items(self._batch.list_namespaced_job)

    def pods(self) -> list[Object]:
        """All pods of containers."""
        return self._items(self._core.list_namespaced_pod)

    def account(self, name: str) -> Object:
        """A service account as it is now: its uid is another when it was made anew."""
        found: Object = json.loads(self._ask(self._core.read_namespaced_service_account, name, self._namespace))
        return {"apiVersion": "v1", "kind": "ServiceAccount", **found}

    def create(self, job: Object) -> bool:
        """Make a Job; False if there is one of its name."""
        try:
            self._ask(self._batch.create_namespaced_job, self._namespace, job)
        except ClusterUnavailable as error:
            if error.status == 409:
                return False
            raise
        return True

    def delete(self, name: str) -> None:
        """Delete a Job when its pod has ended, which is told to end. One that is gone is deleted."""
        try:
            self._ask(self._batch.delete_namespaced_job, name, self._namespace, propagation_policy="Foreground")
        except ClusterUnavailable as error:
            if error.status != 404:
                raise

    def log(self, pod: str, since: str, most_bytes: int) -> str:
        """What the command of a pod wrote, each line behind its time; from about `since` on, if not empty."""
        options: dict[str, Any] = {"container": MAIN, "timestamps": True, "limit_bytes": most_bytes}
        if since:
            options["since_seconds"] = _seconds_since(since) + _SKEW_S
        return self._ask(self._core.read_namespaced_pod_log, pod, self._namespace, **options).decode(errors="replace")

    def _items(self, ask: Callable[..., Any]) -> list[Object]:
        items: list[Object] = (
            json.loads(self._ask(ask, self._namespace, label_selector=self._selector)).get("items") or []
        )
        return items

    def _ask(self, ask: Callable[..., Any], *given: object, **options: object) -> bytes:
        with own_errors():
            data: bytes = ask(*given, **options, _request_timeout=_TIMEOUT_S, _preload_content=False).data
        return data


def _seconds_since(time: str) -> int:
    """From a time as the kubelet writes it, nanoseconds and all."""
    return max(0, int((now() - datetime.fromisoformat(f"{time[:19]}+00:00")).total_seconds()))
