"""Looks at the cluster for everybody, once in a while: tells what holds the pools, and marks pods that hold work."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis import Redis

from controller.cluster import Cluster
from controller.lease import FailureLog
from controller.pod_words import POOL_LABEL, holdup
from controller.protecting import plan
from controller.settings import ControllerSettings
from serinette.errors import ClusterUnavailable
from serinette.job import now
from serinette.names import host_of
from serinette.pools import of_name
from serinette.presence import Holdup, report_holdups
from serinette.settings import connect_redis

log = logging.getLogger(__name__)

# Between two songs a worker is idle for moments only.
_IDLE_S = 60.0
# A round's patches: the API server must not feel a fleet of 500 begin to sing.
_MOST_PATCHES = 50
# What we may not do is asked for again after so long; an operator may have mended it.
_FORBIDDEN_S = 600.0
_GONE = {404, 410}
_NOT_NOW = {409}


class Surroundings:
    """One round: one list of pods, and of events and nodes when a pod is held up."""

    def __init__(self, cluster: Cluster, settings: ControllerSettings, redis: Redis | None = None) -> None:
        self._cluster = cluster
        self._settings = settings
        self._keys = settings.keys
        self._redis = redis or connect_redis(settings)
        self._idle_since_s: dict[str, float] = {}
        self._failures = FailureLog(log, "looking at the cluster")
        self._not_before_s: dict[str, float] = {}

    def __call__(self) -> None:
        """Raises RedisError; a cluster that does not answer is told of in the log, and what was known expires."""
        self.look(time.monotonic())

    def look(self, at_s: float) -> None:
        """As a call, at a monotonic time."""
        try:
            pods = self._cluster.pods()
        except ClusterUnavailable as error:
            self._failures.note(error)
            return
        self._failures.note(None)
        report_holdups(self._redis, self._keys, self._explained(pods, at_s))
        self._protect(pods, at_s)

    def _explained(self, pods: Sequence[dict[str, Any]], at_s: float) -> dict[str, Holdup]:
        by_pool: dict[str, list[dict[str, Any]]] = {pool.name: [] for pool in self._settings.pools}
        for pod in pods:
            by_pool.setdefault(pod["metadata"].get("labels", {}).get(POOL_LABEL, ""), []).append(pod)
        by_pool.pop("", None)
        waiting = any(pod.get("status", {}).get("phase") == "Pending" for pod in pods)
        events = self._asked("events", at_s) if waiting else None
        nodes = self._asked("nodes", at_s) if waiting else None
        found = {}
        for pool, ours in by_pool.items():
            facts = of_name(self._settings.pools, pool)
            found[pool] = holdup(ours, events or [], nodes, facts.gpu_resource if facts else "", now())
        return found

    def _asked(self, what: str, at_s: float) -> list[dict[str, Any]] | None:
        """Events or nodes; None when they may not be read, or are not answered."""
        if at_s < self._not_before_s.get(what, 0.0):
            return None
        try:
            return self._cluster.events() if what == "events" else self._cluster.nodes()
        except ClusterUnavailable as error:
            self._rest(what, error, at_s)
            return None

    def _protect(self, pods: Sequence[dict[str, Any]], at_s: float) -> None:
        names = [pod["metadata"]["name"] for pod in pods]
        busy = self._busy(pods)
        self._idle_since_s = {name: self._idle_since_s.get(name, at_s) for name in names if name not in busy}
        idle = {name for name, since_s in self._idle_since_s.items() if at_s - since_s >= _IDLE_S}
        if not self._settings.cluster_protect or at_s < self._not_before_s.get("patches", 0.0):
            return
        for patch in plan(pods, busy, idle, _MOST_PATCHES):
            try:
                self._cluster.annotate(patch.pod, patch.annotations)
            except ClusterUnavailable as error:
                if error.status not in _GONE | _NOT_NOW:  # those are one pod's, and seen anew in the next round
                    self._rest("patches", error, at_s)
                    return

    def _busy(self, pods: Sequence[Mapping[str, Any]]) -> set[str]:
        pools = {pod["metadata"].get("labels", {}).get(POOL_LABEL, "") for pod in pods}
        members: list[Any] = [self._redis.smembers(self._keys.busy(pool)) for pool in pools]
        return {host_of(member.decode()) for found in members for member in found}

    def _rest(self, what: str, error: ClusterUnavailable, at_s: float) -> None:
        rest_s = _FORBIDDEN_S if error.status in {401, 403} else 3 * self._settings.cluster_interval_s
        self._not_before_s[what] = at_s + rest_s
        log.warning("no %s for %g s: %s", what, rest_s, error)
