"""What maintenance does over and over, by one replica at a time, whatever fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import TypeVar

from redis import Redis
from redis.exceptions import RedisError

from api.maintenance import leftovers
from api.maintenance.deadlines import Deadlines
from api.maintenance.homeless import Homeless
from api.maintenance.homes import Homes
from api.maintenance.lease import Lease
from api.maintenance.mend import Mender, Patient
from api.maintenance.metrics import MaintenanceMetrics
from api.maintenance.orphans import Orphans
from api.maintenance.plan import Action
from api.maintenance.reaper import Reaper
from api.maintenance.records import Records
from api.maintenance.strays import Strays
from api.maintenance.trouble import Trouble
from api.settings import MaintenanceSettings
from serinette import logs
from serinette.errors import StoreUnavailable
from serinette.ledger import Ledger
from serinette.store import Store

log = logging.getLogger(__name__)

_TIDY_EVERY_S = 60.0
_LONGEST_BACKOFF_S = 5.0

Kept = TypeVar("Kept", bound=Callable[[], object])


class Rounds:
    """One round for the queue: find the jobs in trouble, mend them, tidy up.

    It remembers what it has watched. After a gap in the watch (Redis was away) a new one must be made, so that nothing
    is taken from a worker that could not beat.
    """

    def __init__(
        self, redis: Redis, store: Store, settings: MaintenanceSettings, metrics: MaintenanceMetrics | None = None
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._metrics = metrics
        ledger = Ledger(redis, settings.keys, settings.retention_s)
        homes = Homes(settings.pools, settings.pool)
        self._mender = Mender(redis, ledger, store, homes)
        self._records = Records(redis, ledger, store)
        self._reaper = Reaper(redis, settings.keys, settings.heartbeat_ttl_s)
        self._orphans = Orphans(redis, settings.keys, settings.orphan_grace_s)
        self._deadlines = Deadlines(redis, settings.keys)
        self._homeless = Homeless(redis, settings.keys, homes, settings.rehome_after_s)
        self._strays = Strays(redis, settings.keys, settings.retention_s)
        self._unreadable: set[str] = set()
        self._tidy_at_s = 0.0

    def __call__(self) -> None:
        """One round. Raises RedisError when Redis does not answer; an unanswered question to the store can wait."""
        at_s = time.monotonic()
        for patient in self._patients(at_s):
            self._mend(patient)
        self._records.step()
        self._strays.step()
        if at_s >= self._tidy_at_s:
            leftovers.clear(self._redis, self._settings.keys, self._settings.retention_s)
            self._tidy_at_s = at_s + _TIDY_EVERY_S
        if self._metrics:
            self._metrics.round_ended()

    def _patients(self, at_s: float) -> Iterator[Patient]:
        yield from self._reaper.find(at_s)
        yield from self._deadlines.find()
        yield from self._homeless.find(at_s)
        yield from self._orphans.find(at_s)

    def watch(self) -> None:
        """A round that finds the silent and does nothing: should the replica at work die, with a worker perhaps, this
        one need not begin to count from zero.
        """
        self._reaper.find(time.monotonic())

    def _mend(self, patient: Patient) -> None:
        try:
            with logs.about(job=patient.job_id):
                action = self._mender.mend(patient)
            if self._metrics and action is not Action.LEAVE:
                self._metrics.mended(action)
        except StoreUnavailable:  # told by the mender; the next round asks again
            return
        except RedisError:
            raise
        except Exception:  # one job that cannot be read must not keep the others from being mended
            if patient.job_id not in self._unreadable:
                log.exception("cannot reconcile job=%s", patient.job_id)
            self._unreadable.add(patient.job_id)


def keep(
    make_duty: Callable[[], Kept],
    lease: Lease,
    pause_s: float,
    stop: Event,
    otherwise: Callable[[Kept], object] = lambda _: None,
) -> None:
    """Do a duty every `pause_s` while the lease is ours, and `otherwise` with it while it is another's, until `stop`.

    The duty is made anew after every failure.
    """
    trouble = Trouble(log, lease.name)
    duty: Kept | None = None
    wait_s = pause_s
    while not stop.wait(wait_s):
        try:
            held = lease.hold()
            duty = duty or make_duty()
            if held:
                duty()
            else:
                otherwise(duty)
        except (RedisError, StoreUnavailable) as error:
            trouble.note(error)
            duty, wait_s = None, min(2 * wait_s, max(_LONGEST_BACKOFF_S, pause_s))
        except Exception:
            log.exception("%s failed; starting over", lease.name)
            duty, wait_s = None, max(_LONGEST_BACKOFF_S, pause_s)
        else:
            trouble.note(None)
            wait_s = pause_s
