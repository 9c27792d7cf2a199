"""Tells Redis of this worker, beside the supervisor's own work: an absent Redis must not hold that up."""

from __future__ import annotations

import logging
import threading
from collections import deque

from redis import Redis, RedisError

from serinette import brake, counters
from serinette.job import now
from serinette.jobs import Jobs, calls
from serinette.names import Keys
from serinette.presence import BEAT_S, Pace, Presence, WorkerStage, announce, record_pace, withdraw

log = logging.getLogger(__name__)


class Herald:
    """A thread that announces the latest presence, and slots that died: every 5 seconds, and at once what is new."""

    def __init__(self, redis: Redis, keys: Keys, presence: Presence) -> None:
        self._redis = redis
        self._keys = keys
        self._presence = presence
        self._wake = threading.Event()
        self._stopped = False
        self._away = False
        self._failures: deque[str] = deque(maxlen=10)
        self._passed = False
        self.cold_start_s: float | None = None
        self._cold_start_told = False
        self._dead: deque[str] = deque()
        self._thread = threading.Thread(target=self._run, name="herald", daemon=True)

    def start(self) -> None:
        """Begin to announce."""
        self._thread.start()

    def update(self, presence: Presence) -> None:
        """Announce this from now on."""
        changed = presence != self._presence
        became_ready = presence.stage is WorkerStage.READY and self._presence.stage is not WorkerStage.READY
        self._presence = presence
        self._passed = self._passed or became_ready
        if presence.stage is WorkerStage.READY and self.cold_start_s is None:
            self.cold_start_s = (now() - presence.started_at).total_seconds()
        if changed:
            self._wake.set()

    def bury(self, slot: str) -> None:
        """Report that a slot died: its leases run out at once."""
        self._dead.append(slot)
        self._wake.set()

    def load_failed(self, message: str) -> None:
        """The model could not be loaded, for this reason: told once, and kept when this worker is gone."""
        self._failures.append(message)
        self._wake.set()

    def stop(self) -> None:
        """Announce no more, and take the presence back; without Redis it expires by itself."""
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=BEAT_S)
        if self._away:
            return
        try:
            self._tell_dead()
            self._tell_loads()
            withdraw(self._redis, self._keys, self._presence.name)
        except RedisError as error:
            log.warning("the worker's presence expires by itself: %s", error)

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._tell_dead()
                announce(self._redis, self._keys, self._presence.model_copy(update={"at": now()}))
                self._tell_cold_start()
                self._tell_loads()
                if self._away:
                    log.info("Redis is back")
                self._away = False
            except RedisError as error:
                if not self._away:
                    log.warning("Redis does not answer; the engine stays warm: %s", error)
                self._away = True
            self._wake.wait(BEAT_S)
            self._wake.clear()

    def _tell_dead(self) -> None:
        while self._dead:
            Jobs(self._redis, self._keys.prefix)(calls.lapse(self._dead[0]))
            self._dead.popleft()

    def _tell_cold_start(self) -> None:
        if self.cold_start_s is not None and not self._cold_start_told:
            counters.observe(self._redis, self._keys, counters.COLD_START, self.cold_start_s, self._presence.pool)
            record_pace(self._redis, self._keys, self._presence.pool, self.cold_start_s, of=Pace.COLD_START)
            self._cold_start_told = True

    def _tell_loads(self) -> None:
        """What failed and what passed, in the order of a worker's life: it fails until it passes."""
        while self._failures:
            brake.load_failed(self._redis, self._keys, self._presence.pool, self._presence.name, self._failures[0])
            self._failures.popleft()
        if self._passed:
            brake.load_passed(self._redis, self._keys, self._presence.pool)
            self._passed = False
