"""Reports this worker to Redis beside the supervisor's own work: an absent Redis must not hold that up."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from redis import Redis, RedisError

from gpu_worker.settings import WorkerSettings
from serinette import brake, counters
from serinette.housekeeping import HousekeepingRedis
from serinette.job import WaitingCode, now
from serinette.jobs import Jobs, calls
from serinette.names import Keys, host_of
from serinette.presence import (
    BEAT_S,
    ENDED_TTL_S,
    TROUBLES,
    Pace,
    Presence,
    WorkerStage,
    announce,
    record_pace,
    withdraw,
)
from serinette.settings import connect_redis

log = logging.getLogger(__name__)

# Enough for an outage of hours; beyond it, leases run out by themselves and the brake forgets failures anyhow.
_MOST_EVENTS = 1000
# The controller looks at the cluster every few seconds: if it has not seen this pod after so many beats, it will not.
_MOST_LOOKS = 60


def report_ended(settings: WorkerSettings, trouble: WaitingCode) -> None:
    """Leave behind why this worker ended, for those who wait for it: as one that drains, so that it counts as none."""
    name = f"{socket.gethostname()}-ended"  # one of a machine's, however often it is started again
    ended = Presence(
        name=name,
        pool=settings.pool,
        stage=WorkerStage.DRAINING,
        slots=0,
        trouble=trouble,
        message=f"ended, and waits for {TROUBLES[trouble]}",
        started_at=now(),
    )
    redis = HousekeepingRedis(connection_pool=connect_redis(settings).connection_pool)
    try:
        announce(redis, settings.keys, ended, ENDED_TTL_S)
    except RedisError as error:
        log.warning("why this worker ends could not be reported: %s", error)


class PresenceReporter:
    """A thread that reports the latest presence every 5 seconds, and at once what is new.

    Events (a slot that died, a load that failed or passed) are kept while Redis is away, in their order.
    """

    def __init__(self, redis: Redis, keys: Keys, presence: Presence) -> None:
        self._redis = redis
        self._keys = keys
        self._presence = presence
        self._wake = threading.Event()
        self._stopped = False
        self._away = False
        self._events: deque[Callable[[], object]] = deque()
        self.cold_start_s: float | None = None
        self.pod_start: dict[str, float] = {}  # what the controller saw of it
        self._looks = 0
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def update(self, presence: Presence) -> None:
        """Report this from now on."""
        before, self._presence = self._presence, presence
        if presence.stage is WorkerStage.READY and before.stage is not WorkerStage.READY:
            self._report(partial(brake.load_passed, self._redis, self._keys, presence.pool))
            if self.cold_start_s is None:
                took_s = self.cold_start_s = (now() - presence.started_at).total_seconds()
                self._observe(counters.COLD_START, took_s, presence.pool)
                pace = partial(record_pace, self._redis, self._keys, presence.pool, took_s, of=Pace.COLD_START)
                self._report(pace)
        for part, seconds in presence.cold_start.parts().items():
            if part not in before.cold_start.parts():
                self._observe(counters.COLD_START_PART, seconds, presence.pool, part)
        if presence != before:
            self._wake.set()

    def slot_died(self, slot: str) -> None:
        """A slot ended without finishing its jobs: its leases run out at once."""
        self._report(lambda: Jobs(self._redis, self._keys.prefix)(calls.lapse(slot)))

    def load_failed(self, message: str) -> None:
        """The model could not be loaded, for this reason, which is kept when this worker is gone."""
        self._report(
            partial(brake.load_failed, self._redis, self._keys, self._presence.pool, self._presence.name, message)
        )

    def stop(self) -> None:
        """Report no more, and withdraw the presence; without Redis it expires by itself."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=BEAT_S)
        if self._away:
            return
        try:
            self._send_events()
            withdraw(self._redis, self._keys, self._presence.name)
        except RedisError as error:
            log.warning("the worker's presence expires by itself: %s", error)

    def _observe(self, histogram: counters.Measure, seconds: float, *labels: str) -> None:
        self._report(partial(counters.observe, self._redis, self._keys, histogram, seconds, *labels))

    def _report(self, event: Callable[[], object]) -> None:
        if len(self._events) < _MOST_EVENTS:
            self._events.append(event)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._send_events()
                announce(self._redis, self._keys, self._presence.model_copy(update={"at": now()}))
                if not self.pod_start and self._looks < _MOST_LOOKS:  # nothing outside a cluster
                    self._looks += 1
                    found: Any = self._redis.get(self._keys.pod_start(host_of(self._presence.name)))
                    self.pod_start = json.loads(found) if found else {}
                if self._away:
                    log.info("Redis is back")
                self._away = False
            except RedisError as error:
                if not self._away:
                    log.warning("Redis does not answer; the engine stays warm: %s", error)
                self._away = True
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _send_events(self) -> None:
        while self._events:
            self._events[0]()
            self._events.popleft()
