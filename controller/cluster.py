"""The cluster as plain JSON: pods, events and nodes read, a pod's annotations patched. The one user of the client here.

Nothing is decided here: what the objects mean is in controller/pod_words.py, what to patch in protecting.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serinette.errors import ClusterUnavailable

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, CoreV1Api
    from kubernetes.client.exceptions import ApiException

log = logging.getLogger(__name__)

Object = dict[str, Any]

# To connect, and for each read of an answer, in seconds.
_TIMEOUT_S = (3.0, 10.0)
# Of events; those of pods that come and go by the hundred are cut off.
_MOST_EVENTS = 1_000


class Cluster:
    """One namespace. Every method raises ClusterUnavailable, its `status` that of the answer or 0 without one."""

    def __init__(
        self, api: CoreV1Api, namespace: str, selector: str, timeout_s: tuple[float, float] = _TIMEOUT_S
    ) -> None:
        """`selector` finds the worker pods by their labels; `timeout_s` is to connect, and of each read."""
        self._timeout_s = timeout_s
        self._api = api
        self._namespace = namespace
        self._selector = selector

    @classmethod
    def open(cls, namespace: str | None, selector: str, kubeconfig: Path | None = None) -> Cluster | None:
        """The cluster that `kubeconfig` names, or that this process runs in; None without one, and said in the log."""
        found = connect(kubeconfig) if namespace else None
        if namespace is None or found is None:
            return None
        from kubernetes import client  # noqa: PLC0415  # half a second, 40 MB: for those who ask for it

        return cls(client.CoreV1Api(found), namespace, selector)

    def pods(self) -> list[Object]:
        """The worker pods, from the API server's memory: it may be a second behind."""
        return self._items(
            self._api.list_namespaced_pod, self._namespace, label_selector=self._selector, resource_version="0"
        )

    def events(self) -> list[Object]:
        """Of pods, the last hour's as a rule."""
        return self._items(
            self._api.list_namespaced_event,
            self._namespace,
            field_selector="involvedObject.kind=Pod",
            limit=_MOST_EVENTS,
        )

    def nodes(self) -> list[Object]:
        """All nodes."""
        return self._items(self._api.list_node, resource_version="0")

    def annotate(self, pod: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a pod; None removes one."""
        with own_errors():
            self._api.patch_namespaced_pod(
                pod,
                self._namespace,
                {"metadata": {"annotations": dict(annotations)}},
                _request_timeout=self._timeout_s,
                _preload_content=False,
            )

    def _items(self, ask: Callable[..., Any], *given: str, **options: str | int) -> list[Object]:
        with own_errors():
            answer = ask(*given, **options, _request_timeout=self._timeout_s, _preload_content=False)
            items: list[Object] = json.loads(answer.data).get("items") or []
        return items


def connect(kubeconfig: Path | None = None) -> ApiClient | None:
    """The cluster that `kubeconfig` names, or that this process runs in; None without one, and said in the log."""
    try:
        from kubernetes import client, config  # noqa: PLC0415  # as above
    except ImportError:
        log.warning("the cluster is not looked at: pip install 'serinette[cluster]'")
        return None
    configuration = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)
    except config.ConfigException as error:
        log.warning("the cluster is not looked at: %s", error)
        return None
    configuration.retries = False
    return client.ApiClient(configuration)


@contextmanager
def own_errors() -> Iterator[None]:
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
