"""Looks at the worker pods for all others: reports what holds up each pool's, and marks those that hold work."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis import Redis

from controller.autoscaling import plan_marks
from controller.cluster import WorkerPods
from controller.leader_election import FailureLog
from controller.pod_explanations import POOL_LABEL, holdup, lacks_workers, pod_start, refused, unscaled
from controller.settings import ControllerSettings
from serinette.errors import ClusterUnavailable
from serinette.job import now
from serinette.names import Lane, host_of
from serinette.pools import of_name
from serinette.presence import Holdup, report_holdups

log = logging.getLogger(__name__)

# Between two jobs a worker is idle for moments only.
_IDLE_S = 60.0
# A round's patches: the API server must not feel a fleet of 500 begin to work.
_MOST_PATCHES = 50
# What we may not do is tried again after so long; an operator may have allowed it.
_FORBIDDEN_S = 600.0
# It is gone, or was changed just now: seen anew in the next round.
_OF_ONE_POD = {404, 409, 410}
# Its worker reads it within seconds.
_START_KNOWN_S = 3600


class PodWatch:
    """The duty. One round: one list of pods, and of events and nodes when a pod is pending."""

    def __init__(self, redis: Redis, cluster: WorkerPods, settings: ControllerSettings) -> None:
        self._redis = redis
        self._cluster = cluster
        self._settings = settings
        self._keys = settings.keys
        self._idle_since_s: dict[str, float] = {}
        self._lacking_since_s: dict[tuple[str, int], float] = {}  # by pool and its pods
        self._words: dict[str, str] = {}
        self._started: set[str] = set()
        self._failures = FailureLog(log, "looking at the cluster")
        self._not_before_s: dict[str, float] = {}

    def __call__(self) -> None:
        """Raises RedisError; a cluster that does not answer is logged, and what was reported expires."""
        self.look(time.monotonic())

    def look(self, at_s: float) -> None:
        """As a call, at a monotonic time."""
        try:
            pods = self._cluster.pods()
        except ClusterUnavailable as error:
            self._failures.note(error)
            return
        self._failures.note(None)
        found = self._explained(pods, at_s)
        found |= self._lacking(found, at_s)
        report_holdups(self._redis, self._keys, found)
        self._log(found)
        self._report_starts(pods)
        self._mark(pods, at_s)

    def _explained(self, pods: Sequence[dict[str, Any]], at_s: float) -> dict[str, Holdup]:
        by_pool: dict[str, list[dict[str, Any]]] = {pool.name: [] for pool in self._settings.pools}
        for pod in pods:
            by_pool.setdefault(pod["metadata"].get("labels", {}).get(POOL_LABEL, ""), []).append(pod)
        by_pool.pop("", None)
        pending = any(pod.get("status", {}).get("phase") == "Pending" for pod in pods)
        events = self._asked("events", at_s) if pending else None
        nodes = self._asked("nodes", at_s) if pending else None
        found = {}
        for pool, ours in by_pool.items():
            facts = of_name(self._settings.pools, pool)
            found[pool] = holdup(ours, events or [], nodes, facts.gpu_resource if facts else "", now())
        return found

    def _lacking(self, found: Mapping[str, Holdup], at_s: float) -> dict[str, Holdup]:
        """Of pools that should have a pod more: that nothing scales them, or that the cluster refuses it."""
        lacking = {pool: seen.pods for pool, seen in found.items() if self._lacks_workers(pool, seen.pods)}
        since_s = {each: self._lacking_since_s.get(each, at_s) for each in lacking.items()}
        self._lacking_since_s = since_s
        objects = self._asked("scaled_objects", at_s) if lacking else None
        refusals = self._asked("refusals", at_s) if lacking else None
        by_pool = {each["metadata"].get("labels", {}).get(POOL_LABEL): each for each in objects or []}
        why = {}
        for pool, pods in lacking.items():
            refusal = refused(refusals or [], f"{self._settings.cluster_deployments}{pool}", now())
            if each := unscaled(by_pool.get(pool), at_s - since_s[pool, pods], refusal):
                why[pool] = found[pool].model_copy(update={"words": each.text, "detail": each.detail})
        return why

    def _lacks_workers(self, pool: str, pods: int) -> bool:
        waiting = sum(int(self._redis.zcard(self._keys.waiting(pool, lane))) for lane in Lane)
        if not waiting or self._redis.exists(self._keys.brake(pool)):
            return False
        busy = int(self._redis.scard(self._keys.busy(pool)))
        return lacks_workers(waiting, busy, pods, of_name(self._settings.pools, pool))

    def _report_starts(self, pods: Sequence[Mapping[str, Any]]) -> None:
        """What each pod's start took, once: a worker cannot see what came before its process."""
        starts = {pod["metadata"]["name"]: pod_start(pod) for pod in pods}
        for pod, start in starts.items():
            if start and pod not in self._started:
                self._redis.set(self._keys.pod_start(pod), json.dumps(start), ex=_START_KNOWN_S)
        self._started = {pod for pod, start in starts.items() if start}

    def _log(self, found: Mapping[str, Holdup]) -> None:
        """For the operator, in the cluster's own sentences: once for each cause."""
        for pool, seen in found.items():
            words = seen.stuck_words or seen.words
            if words and words != self._words.get(pool):
                log.warning("pool %s waits: %s%s", pool, words, f" ({seen.detail})" if seen.detail else "")
            self._words[pool] = words

    def _asked(self, what: str, at_s: float) -> list[dict[str, Any]] | None:
        """Events, nodes or scaled objects; None when they may not be read, or are not answered."""
        if at_s < self._not_before_s.get(what, 0.0):
            return None
        try:
            found: list[dict[str, Any]] = getattr(self._cluster, what)()
            return found
        except ClusterUnavailable as error:
            self._pause(what, error, at_s)
            return None

    def _mark(self, pods: Sequence[dict[str, Any]], at_s: float) -> None:
        names = [pod["metadata"]["name"] for pod in pods]
        pools = {pod["metadata"].get("labels", {}).get(POOL_LABEL, "") for pod in pods}
        members: list[Any] = [self._redis.smembers(self._keys.busy(pool)) for pool in pools]
        busy = {host_of(member.decode()) for found in members for member in found}
        self._idle_since_s = {name: self._idle_since_s.get(name, at_s) for name in names if name not in busy}
        idle = {name for name, since_s in self._idle_since_s.items() if at_s - since_s >= _IDLE_S}
        if not self._settings.cluster_protect or at_s < self._not_before_s.get("patches", 0.0):
            return
        for pod, marks in plan_marks(pods, busy, idle, _MOST_PATCHES).items():
            try:
                self._cluster.annotate(pod, marks)
            except ClusterUnavailable as error:
                if error.status not in _OF_ONE_POD:
                    self._pause("patches", error, at_s)
                    return

    def _pause(self, what: str, error: ClusterUnavailable, at_s: float) -> None:
        pause_s = _FORBIDDEN_S if error.status in {401, 403} else 3 * self._settings.cluster_interval_s
        self._not_before_s[what] = at_s + pause_s
        log.warning("no %s for %g s: %s", what, pause_s, error)
