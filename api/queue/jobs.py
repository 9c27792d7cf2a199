"""JobQueue: what may be done with jobs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from redis import Redis
from rq import defaults
from rq.exceptions import DuplicateJobError

from api.answering import answering
from api.containers.checking import check_container, check_inputs, check_taken
from api.queue.admission import check_audio, check_spec, check_webhook, pool_for, timeout_for
from api.queue.bounds import Bounds, error_of
from api.queue.cursors import Cursor
from api.queue.durability import Disk
from api.queue.entry import Work, drop_from_lane, enqueue, fetched, keyed_job_id, meta_of, terms_of
from api.queue.explain import Pool
from api.queue.reader import Reader
from api.queue.sighting import Elsewhere, Seen, Sighting, fresh_sighting, job_of_record, matches, no_such_job, seen_by
from api.settings import GatewaySettings
from api.targets import Targets
from serinette.batch import BATCH_LABEL
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.credentials import Limits
from serinette.errors import (
    ConfigurationError,
    Conflict,
    IdempotencyConflict,
    NotFinished,
    NotFound,
    QueueUnavailable,
)
from serinette.job import Job, JobOptions, JobStatus, Record, now
from serinette.ledger import Ledger, Outcome
from serinette.names import Lane, record_key, song_prefix
from serinette.spec import GenerationSpec
from serinette.store import Store

_ADVICE = "try again, and send a submit with an Idempotency-Key to be sure of one job"


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first. With a cursor there may be more, even if this page is short."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


class JobQueue:
    """Jobs of all tenants on one Redis.

    Every method raises QueueUnavailable when Redis does not answer, and those that need the store StoreUnavailable.
    """

    def __init__(
        self,
        redis: Redis,
        store: Store,
        ledger: Ledger,
        settings: GatewaySettings,
        declared: Callable[[str], Limits | None] = lambda _: None,
    ) -> None:
        """`declared` tells what a tenant may use, where something else than Redis says so."""
        if settings.redis_prefix != defaults.RQ_KEY_PREFIX:
            raise ConfigurationError(
                f"RQ_KEY_PREFIX is {settings.redis_prefix} in the settings but was {defaults.RQ_KEY_PREFIX} when rq "
                "was imported: set it in the environment of the whole process"
            )
        self._redis = redis
        self._store = store
        self._ledger = ledger
        self._settings = settings
        self._reader = Reader(redis, ledger, settings.pools)
        self._bounds = Bounds(redis, settings.keys, settings.max_waiting, declared)
        self._targets = Targets(settings.webhook_networks)
        self._disk = Disk(redis, settings.redis_timeout_s) if settings.durability == "fsync" else None

    def submit(
        self,
        tenant: str,
        spec: GenerationSpec,
        options: JobOptions,
        *,
        idempotency_key: str | None = None,
        dialect: Mapping[str, str] | None = None,
    ) -> tuple[Job, bool]:
        """Put a job into its lane, its seed drawn; True if it is new, False if the key named one that exists.

        Raises:
            InvalidSpec: the model or the audio it names is not there, its timeout is longer than its pool's workers may
                take, or its webhook leads where it may not.
            Unsupported: it names a webhook, and this deployment delivers none.
            IdempotencyConflict: the key was used with another spec.
            LaneNotAllowed, Limited: its lane or its tenant has no room; nothing was stored.
        """

        def song() -> tuple[str, int]:
            pool = pool_for(spec.model, self._settings, self._reader.workers)
            timeout_s = timeout_for(options.timeout_s, pool, self._settings)
            check_spec(spec, pool, self._settings, self._reader.workers)
            check_audio(tenant, spec, self._store, lambda job_id: self._load(tenant, job_id))
            return pool, timeout_s

        return self._submitted(tenant, Work(spec, options, idempotency_key, dialect or {}), song)

    def submit_container(
        self, tenant: str, spec: ContainerSpec, options: JobOptions, *, idempotency_key: str | None = None
    ) -> tuple[Job, bool]:
        """As `submit`, of a container.

        Raises:
            Unsupported: none are taken here.
            InvalidSpec: the operator does not allow it, or an input is not the tenant's.
        """
        check_taken(self._settings)

        def container() -> tuple[str, int]:
            check_container(tenant, spec, options, self._settings)
            check_inputs(tenant, spec, self._store, lambda job_id: self._load(tenant, job_id))
            ceiling_s = self._settings.ceilings_of(tenant).timeout_s
            return CONTAINERS_POOL, options.timeout_s or min(self._settings.job_timeout_s, ceiling_s)

        return self._submitted(tenant, Work(spec, options, idempotency_key), container)

    def _submitted(self, tenant: str, work: Work, check: Callable[[], tuple[str, int]]) -> tuple[Job, bool]:
        """`check` answers the pool and the timeout in seconds, or raises."""
        options, idempotency_key = work.options, work.idempotency_key
        job_id = str(uuid.uuid4()) if idempotency_key is None else self._keyed(tenant, idempotency_key)
        with answering(_ADVICE):
            if self._disk:
                self._disk.require()
            if idempotency_key is not None and (known := self._reader.see([job_id])[0]):
                return self._replayed(known, work.what.digest()), False
            check_webhook(tenant, options.webhook, self._settings, self._targets)
            pool, timeout_s = check()
            meta = meta_of(tenant, pool, work.what, options, work.dialect)
            meta["timeout_s"] = timeout_s
            what = work.what.seeded() if isinstance(work.what, GenerationSpec) else work.what
            terms = terms_of(options)
            # The books first: a submit that is cut short here is found by the sweep of the live set.
            self._admit(tenant, job_id, pool, options.lane)
            self._ledger.open(job_id, tenant, now(), pool, terms)
            try:
                enqueue(self._redis, job_id, what, meta, self._settings)
            except DuplicateJobError:
                # Without a key it can only be ourselves: Redis did as told, its answer was lost, the client sent again.
                return self._replayed(self._reader.see([job_id])[0], meta["digest"]), idempotency_key is None
            finally:
                self._bounds.entered(job_id, pool, options.lane)
            if self._disk:
                self._disk.wait(self._settings.keys.ledger(job_id))
            fresh = fresh_sighting(job_id, meta, what, terms)
            return self._reader.explained([fresh.job()])[0], True

    def get(self, tenant: str, job_id: str) -> Job:
        """One job, from Redis or, when that has forgotten it, from the store.

        Raises:
            NotFound: this tenant has no such job.
        """
        with answering(_ADVICE):
            return self._reader.explained([self._load(tenant, job_id)])[0]

    def glance(self, tenant: str, job_ids: Sequence[str]) -> list[Seen]:
        """Each of many jobs, as far as Redis alone can tell."""
        with answering(_ADVICE):
            found = [seen_by(tenant, sighting) for sighting in self._reader.see(job_ids)]
            explained = iter(self._reader.explained([job for job in found if isinstance(job, Job)]))
            return [next(explained) if isinstance(job, Job) else job for job in found]

    def find(self, tenant: str, job_ids: Sequence[str]) -> Sequence[Job | None]:
        """Each of many jobs; None for those that this tenant does not have."""
        with answering(_ADVICE):
            found = [self._known(tenant, *each) for each in zip(job_ids, self._reader.see(job_ids), strict=True)]
            explained = iter(self._reader.explained([job for job in found if job]))
            return [job and next(explained) for job in found]

    def list(
        self,
        tenant: str,
        *,
        status: JobStatus | None = None,
        label: tuple[str, str] | None = None,
        cursor: str | None = None,
        limit: int = 20,
    ) -> Page:
        """A page of the tenant's jobs, newest first. A filter looks at no more than SCAN_LIMIT jobs.

        Raises:
            InvalidSpec: the cursor is not one of ours.
        """
        last = after = Cursor.decode(cursor) if cursor else None
        found: list[Job] = []
        with answering(_ADVICE):
            for last, sighting in self._reader.scan(tenant, after, limit):  # noqa: B007  # where the page ended
                if sighting and matches(sighting, tenant, status, label):
                    found.append(sighting.job())
                if len(found) == limit:
                    break
            more = last is not None and self._reader.more(tenant, last)
            return Page(self._reader.explained(found), last.encode() if last and more else None)

    def cancel(self, tenant: str, job_id: str) -> Job:
        """Ask for the job's end: a queued one is canceled at once, a running one stops within a step.

        Raises:
            NotFound: this tenant has no such job.
            Conflict: it has succeeded or failed already. One that is canceled already is simply answered.
        """
        with answering(_ADVICE):
            job = self._load(tenant, job_id)
            # Without an owner once the flag is set, nobody will begin it: the ledger refuses every later claim.
            if not job.status.ended and self._ledger.request_cancel(job_id) and not self._ledger.read(job_id).owner:
                self._ledger.settle(job_id, Outcome(JobStatus.CANCELED))
                drop_from_lane(self._redis, job_id, self._settings.retention_s)
            job = self._load(tenant, job_id)
            if job.status.ended and job.status is not JobStatus.CANCELED:
                raise Conflict(f"job {job_id} has {job.status} already: there is nothing left to cancel")
            return self._reader.explained([job])[0]

    def erase(self, tenant: str, job_id: str) -> None:
        """Erase an ended job, its songs and every trace.

        Raises:
            NotFound: this tenant has no such job.
            NotFinished: it, or its batch, has not ended; cancel it first.
        """
        with answering(_ADVICE):
            job = self._load(tenant, job_id)
            if not job.status.ended:
                raise NotFinished(f"job {job_id} is {job.status}: cancel it, or wait for its end, then erase it")
            batch_id = job.labels.get(BATCH_LABEL, "")
            if self._redis.zscore(self._settings.keys.batches, batch_id) is not None:
                raise NotFinished(f"job {job_id} is a line of batch {batch_id}: erase it when that has ended")
            # The store first, RQ last: what fails half way is still there, and can be erased again.
            self._store.delete_prefix(song_prefix(tenant, job_id))
            self._ledger.forget(job_id, tenant)
            if rq_job := fetched(self._redis, job_id):
                rq_job.delete()
            if job.status is not JobStatus.SUCCEEDED:  # maintenance may have recorded its end just now
                self._store.delete_prefix(song_prefix(tenant, job_id))

    def pools(self) -> tuple[Pool, ...]:
        """The default pool, every pool that is told of and every pool that has a worker."""
        with answering(_ADVICE):
            workers = self._reader.workers()
            told = (pool.name for pool in self._settings.pools)
            names = sorted({self._settings.pool, *told, *(worker.pool for worker in workers)})
            return tuple(self._reader.pools(names, workers).values())

    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        with answering(_ADVICE):
            self._redis.ping()

    def _keyed(self, tenant: str, idempotency_key: str) -> str:
        secret = self._settings.idempotency_secret
        return keyed_job_id(tenant, idempotency_key, secret.get_secret_value() if secret else None)

    def _admit(self, tenant: str, job_id: str, pool: str, lane: Lane) -> None:
        if refusal := self._bounds.admit(tenant, job_id, pool, lane):
            seen = self._reader.pools([pool], self._reader.workers())[pool]
            raise error_of(refusal, tenant, lane, seen)

    def _replayed(self, known: Sighting | None, digest: str) -> Job:
        if known is None:
            raise QueueUnavailable("the job of this Idempotency-Key was being erased just now; try again")
        if known.meta["digest"] not in {"", digest}:  # "": restored from a record that an older version wrote
            raise IdempotencyConflict(
                "this Idempotency-Key was used with another spec; use a new key for a new song", field="Idempotency-Key"
            )
        if self._disk and not known.status.ended:
            self._disk.wait(self._settings.keys.ledger(known.job_id))
        if known.status.ended:  # a racing submit may have entered it among the live ones after its end
            for book in (self._settings.keys.live, self._settings.keys.in_flight(known.meta["tenant"])):
                self._redis.zrem(book, known.job_id)
        return self._reader.explained([known.job()])[0]

    def _load(self, tenant: str, job_id: str) -> Job:
        job = self._known(tenant, job_id, self._reader.see([job_id])[0])
        if job is None:
            raise no_such_job(job_id)
        return job

    def _known(self, tenant: str, job_id: str, sighting: Sighting | None) -> Job | None:
        seen = seen_by(tenant, sighting)
        return self._recalled(tenant, job_id) if seen is Elsewhere.STORE else seen

    def _recalled(self, tenant: str, job_id: str) -> Job | None:
        try:
            return job_of_record(Record.model_validate_json(self._store.get(record_key(tenant, job_id))))
        except NotFound:
            return None
