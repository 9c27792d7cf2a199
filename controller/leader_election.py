"""One leader among the controller's replicas; and the loop of a duty, in every replica or on the leader alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event

from redis import Redis
from redis.exceptions import LockError, RedisError

from serinette.errors import StoreUnavailable
from serinette.names import Keys

log = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 5.0
# A round of a leader's duty that lasts longer than so many pauses, and at least this long, has stalled.
_PATIENCE_PAUSES = 300
_PATIENCE_S = 60.0


class LeaderElection:
    """A lock in Redis that expires after `lease_s`, and that the leader renews several times in between.

    It saves double work and no more: every write of the controller is safe beside another replica that believes it
    leads. So a duty that outlasts the lease, or a replica that was frozen, does no harm.

    A leader with a duty that has stalled steps aside for two leases, once for each such round: another replica leads
    from then on, if there is one.
    """

    def __init__(self, redis: Redis, keys: Keys, lease_s: float) -> None:
        self._lock = redis.lock(keys.leader, timeout=lease_s, blocking=False, thread_local=False)
        self._lease_s = lease_s
        self._leads_until_s = self._aside_until_s = 0.0
        self._rounds: dict[str, float] = {}  # until when each duty's round is expected to end; monotonic
        self._stepped_aside_for: dict[str, float] = {}

    def __call__(self) -> bool:
        """Take the lead or keep it; False while another replica leads. Raises RedisError."""
        asked_s = time.monotonic()
        if self._leads_until_s and (stalled := self.stalled - self._stepped_aside_for.items()):
            log.critical("another replica is to lead: stalled here: %s", ", ".join(sorted(name for name, _ in stalled)))
            self._stepped_aside_for = dict(self.stalled)
            self._aside_until_s = asked_s + 2 * self._lease_s
            self.resign()
        if asked_s < self._aside_until_s:
            return False
        try:
            leads = bool(self._lock.reacquire())
        except LockError:  # never held, or lost to expiry or to a restart of Redis
            leads = bool(self._lock.acquire())
        self._leads_until_s = asked_s + self._lease_s if leads else 0.0
        return leads

    @property
    def leading(self) -> bool:
        """Whether this replica leads, as far as can be known without asking Redis."""
        return time.monotonic() < self._leads_until_s

    @property
    def stalled(self) -> set[tuple[str, float]]:
        """Duties of this replica whose round should have ended long ago, and when."""
        now_s = time.monotonic()
        return {(name, until_s) for name, until_s in self._rounds.copy().items() if now_s > until_s}

    @contextmanager
    def round_of(self, name: str, pause_s: float) -> Iterator[None]:
        """A round of a duty that follows another after `pause_s`."""
        self._rounds[name] = time.monotonic() + max(_PATIENCE_S, _PATIENCE_PAUSES * pause_s)
        try:
            yield
        finally:
            del self._rounds[name]

    def resign(self) -> None:
        """Let the next replica begin at once. Raises RedisError."""
        self._leads_until_s = 0.0
        try:
            self._lock.release()
        except LockError:
            return


class FailureLog:
    """One line when a part fails and one when it works again, however often it is tried in between."""

    def __init__(self, log: logging.Logger, part: str) -> None:
        self._log = log
        self._part = part
        self._failing = False

    def note(self, error: Exception | None) -> None:
        """Take in how the last try went; None: it succeeded."""
        if error and not self._failing:
            self._log.warning("%s fails: %s", self._part, error)
        elif self._failing and not error:
            self._log.info("%s goes on", self._part)
        self._failing = error is not None


def loop(
    name: str, duty: Callable[[], object], pause_s: float, stop: Event, leader: LeaderElection | None = None
) -> None:
    """Do a duty every `pause_s` until `stop`, after failures with longer pauses; with `leader`, only while this replica
    leads.
    """
    failures = FailureLog(log, name)
    wait_s = pause_s
    while not stop.wait(wait_s):
        if leader and not leader.leading:
            continue
        try:
            with leader.round_of(name, pause_s) if leader else nullcontext():
                duty()
        except (RedisError, StoreUnavailable) as error:
            failures.note(error)
            wait_s = min(2 * wait_s, max(_LONGEST_BACKOFF_S, pause_s))
        except Exception:
            log.exception("%s failed; starting over", name)
            wait_s = max(_LONGEST_BACKOFF_S, pause_s)
        else:
            failures.note(None)
            wait_s = pause_s
