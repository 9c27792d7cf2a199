"""One round over all containers: what the plan says, done. It may be cut short anywhere, and run beside another."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from api.containers.manifest import ATTEMPT_LABEL, JOB_LABEL, Object, Order, manifest, with_secrets
from api.containers.settings import ContainerSettings
from api.maintenance.closing import without_song
from api.maintenance.containers.books import Books, Case
from api.maintenance.containers.carrying import Carrying
from api.maintenance.containers.cluster import Jobs
from api.maintenance.containers.judging import Ending, How, has_log, run_s_of, stage_of
from api.maintenance.containers.logs import CUT, EVENT_CHARACTERS, Chunk, cut_words, fresh
from api.maintenance.containers.plan import Action, Verdict, decide, startable, strays, verdict_of
from api.maintenance.trouble import Trouble
from serinette import logs
from serinette.errors import ClusterUnavailable, ContainerFailed, InvalidSpec, StoreUnavailable
from serinette.job import AttemptOutcome, JobError, JobStatus, Record, now
from serinette.ledger import Ledger, Outcome
from serinette.names import record_key
from serinette.store import Store

log = logging.getLogger(__name__)

# Answers of the API server that say that this Job will never be taken.
_REFUSED = frozenset({400, 413, 422})


class Containers:
    """Runs the jobs of `containers.*` as Kubernetes Jobs."""

    def __init__(self, redis: Redis, store: Store, settings: ContainerSettings, cluster: Jobs) -> None:
        """`store` signs URLs for where the pods are."""
        self._settings = settings
        self._store = store
        self._cluster = cluster
        self._books = Books(redis, Ledger(redis, settings.keys, settings.retention_s), settings)
        self._carrying = Carrying(store, settings)
        self._trouble = Trouble(log, "asking the cluster for containers")
        self._met: ClusterUnavailable | None = None

    def __call__(self) -> None:
        """Raises RedisError; a cluster that does not answer is told of in the log, and asked again."""
        self._met = None
        try:
            self._round()
        except ClusterUnavailable as error:
            self._met = error
        self._trouble.note(self._met)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What one container meets does not hold up the others; a Redis or an API server that is away does."""
        try:
            yield
        except RedisError:
            raise
        except ClusterUnavailable as error:
            if not error.status:
                raise
            self._met = error
        except StoreUnavailable as error:
            log.warning("the store is away: %s", error)
        except Exception:  # what cannot be read of one
            log.exception("the container is left as it is")

    def _round(self) -> None:
        # First what the cluster has, then the books: a Job that was seen and is held by nobody then is nobody's.
        jobs = {_label(job, JOB_LABEL): job for job in self._cluster.jobs()}
        pods = _newest(self._cluster.pods()) if jobs else {}
        cases = self._books.held()
        for name in strays(jobs.values(), [case.held for case in cases]):
            log.info("deleting %s: its job has ended", name)
            with self._apart():
                self._cluster.delete(name)
        for case in cases:
            with logs.about(job=case.job.id), self._apart():
                self._step(case, jobs.get(case.job.id), pods.get(case.held.attempt_id))
        self._begin(cases)

    def _begin(self, cases: list[Case]) -> None:
        most = self._settings.containers_max_jobs
        waiting = self._books.waiting(most)
        held = [case.held for case in cases]
        for job_id in startable(waiting, held, self._settings.containers_max_gpus, most):
            self._books.claim(job_id)

    def _step(self, case: Case, job: Object | None, pod: Object | None) -> None:
        step = decide(case.held, job, pod, now())
        if pod is not None and has_log(pod) and step.action in {Action.WAIT, Action.END, Action.DELETE}:
            self._read_log(case, pod, ended=step.action is not Action.WAIT)
        if pod is not None and case.held.canceled:
            self._books.note_run(case, run_s_of(pod, now()))
        match step.action:
            case Action.CREATE:
                self._create(case)
            case Action.ADOPT:
                self._books.placed(case)
            case Action.DELETE if job is not None:
                self._cluster.delete(job["metadata"]["name"])
            case Action.CANCEL:
                gpu_s = case.held.gpus * self._books.run_s(case)
                self._settle(case, Outcome(JobStatus.CANCELED, gpu_s=gpu_s), None)
            case Action.END if step.ending:
                self._end(case, step.ending)
            case _:
                self._books.tell(case, stage_of(pod))

    def _create(self, case: Case) -> None:
        spec, meta = case.spec, case.job.meta
        try:
            order = self._carrying.order(case.job.id, case.held.attempt_id, spec, meta)
            made = self._cluster.create(self._manifest(order))
        except InvalidSpec as error:
            self._end(case, _refused(error.message))
        except ClusterUnavailable as error:
            if error.status not in _REFUSED:
                raise
            self._end(case, _refused(f"the cluster refuses the container: {error.message[:300]}"))
        else:
            if made:
                log.info("created the Kubernetes Job of attempt %d", case.held.attempt)
                self._books.placed(case)

    def _manifest(self, order: Order) -> Object:
        account = self._settings.containers_service_account
        owner = self._cluster.account(account) if account else None
        return with_secrets(manifest(order, self._settings, owner), order, self._settings)

    def _read_log(self, case: Case, pod: Object, *, ended: bool) -> None:
        after, size_bytes = self._books.log_place(case.job.id)
        if after == CUT:
            return
        most = self._settings.containers_log_bytes
        asked = 2 * most + 1024 * 1024  # each line comes with its time
        try:
            told = self._cluster.log(pod["metadata"]["name"], after, asked)
        except ClusterUnavailable as error:  # a node that is away must not hold up the other containers
            log.warning("its log cannot be read: %s", error)
            return
        chunk = fresh(told, after, size_bytes, most, ended=ended)
        if chunk is None and len(told) >= asked - 4:
            chunk = Chunk(cut_words(most), CUT)
        if chunk:
            event = json.dumps({"text": chunk.text[-EVENT_CHARACTERS:]})
            self._books.append_log(case.job.id, after, chunk.text, chunk.last, event)

    def _end(self, case: Case, ending: Ending) -> None:
        gpu_s = case.held.gpus * ending.run_s
        verdict = verdict_of(case.held, ending)
        log.info("attempt %d: %s %s", case.held.attempt, verdict, ending.error.message if ending.error else "")
        match verdict:
            case Verdict.RETRY:
                self._books.again(case, AttemptOutcome.FAILED, ending.error, gpu_s)
            case Verdict.RETURN:
                self._books.again(case, AttemptOutcome.RETURNED, ending.error, gpu_s)
            case _:
                status = JobStatus.SUCCEEDED if ending.how is How.SUCCEEDED else JobStatus.FAILED
                self._settle(case, Outcome(status, ending.error, gpu_s=gpu_s), ending.exit_code)

    def _settle(self, case: Case, outcome: Outcome, exit_code: int | None) -> None:
        """The record first: it decides. Whoever is killed behind it finds it again, and goes on."""
        meta = case.job.meta
        try:
            attempt = (meta["tenant"], case.job.id, case.held.attempt_id)
            run = self._carrying.collect(attempt, exit_code, self._books.log(case.job.id))
            outcome = Outcome(outcome.status, outcome.error, gpu_s=outcome.gpu_s, run=run)
            record = self._recorded(without_song(case.job, meta["tenant"], case.attempt, outcome))
            self._carrying.forget_manifest(*attempt)
        except StoreUnavailable as error:
            log.warning("the container has ended, and the store is away: %s", error)
            return
        self._books.settle(case, Outcome(record.status, record.error, gpu_s=outcome.gpu_s, run=record.run))

    def _recorded(self, record: Record) -> Record:
        key = record_key(record.tenant, record.job_id)
        if self._store.put_if_absent(key, record.model_dump_json().encode()):
            return record
        return Record.model_validate_json(self._store.get(key))


def _refused(why: str) -> Ending:
    return Ending(How.FAILED, JobError(code=ContainerFailed.code, message=why, retryable=False))


def _label(found: Mapping[str, object], label: str) -> str:
    metadata: Mapping[str, Mapping[str, str]] = found["metadata"]  # type: ignore[assignment]  # plain JSON
    return (metadata.get("labels") or {}).get(label, "")


def _newest(pods: list[Object]) -> dict[str, Object]:
    """By attempt: pods of an earlier one may still be there."""
    ordered = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return {_label(pod, ATTEMPT_LABEL): pod for pod in ordered}
