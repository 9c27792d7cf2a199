"""Tells Redis of this worker, beside the supervisor's own work: an absent Redis must not hold that up."""

from __future__ import annotations

import logging
import threading
from collections import deque

from redis import Redis, RedisError

from serinette import tally
from serinette.job import now
from serinette.names import Keys
from serinette.presence import BEAT_S, Presence, WorkerStage, announce, bury_slot, withdraw

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
        self._presence = presence
        if presence.stage is WorkerStage.READY and self.cold_start_s is None:
            self.cold_start_s = (now() - presence.started_at).total_seconds()
        if changed:
            self._wake.set()

    def bury(self, slot: str) -> None:
        """Tell that a slot died: maintenance takes its job from it at once, instead of waiting for its heartbeat."""
        self._dead.append(slot)
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
            withdraw(self._redis, self._keys, self._presence.name)
        except RedisError as error:
            log.warning("the worker's presence expires by itself: %s", error)

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._tell_dead()
                announce(self._redis, self._keys, self._presence.model_copy(update={"at": now()}))
                self._tell_cold_start()
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
            bury_slot(self._redis, self._keys, self._dead[0])
            self._dead.popleft()

    def _tell_cold_start(self) -> None:
        if self.cold_start_s is not None and not self._cold_start_told:
            tally.observe(self._redis, self._keys, tally.COLD_START, self.cold_start_s, self._presence.pool)
            self._cold_start_told = True
