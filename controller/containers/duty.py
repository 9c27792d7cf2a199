"""One round over all containers: what the plan says, done. It may be cut short anywhere, and run beside another."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from controller.containers.carrying import Carrying
from controller.containers.cluster import Jobs as KubernetesJobs
from controller.containers.judging import Ending, How, Patience, has_log, run_s_of, stage_of
from controller.containers.logs import CUT, EVENT_CHARACTERS, Chunk, cut_words, fresh
from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL, Object, Order, manifest, with_secrets
from controller.containers.plan import Action, Held, Verdict, Waiting, decide, startable, strays, verdict_of
from controller.lease import FailureLog
from serinette import logs
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.container_settings import ContainerSettings
from serinette.errors import ClusterUnavailable, ContainerFailed, InvalidSpec, StoreUnavailable
from serinette.job import Attempt, JobError, JobStatus, Progress, Stage, now
from serinette.jobs import Entry, Jobs, Lease, Outcome, Seen, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import Lane
from serinette.store import Store

log = logging.getLogger(__name__)

# Answers of the API server that say that this Job will never be taken.
_REFUSED = frozenset({400, 413, 422})


# No dots: it is no slot of a worker that KEDA counts. A container lives on while the controller is away: no lease ends.
_LEASE = Lease("maintenance-containers", 0)
# Records in one answer of Redis.
_CHUNK = 100


@dataclass(frozen=True, slots=True)
class Case:
    """A held job with all that is known of it."""

    held: Held
    entry: Entry
    attempt: Attempt
    spec: ContainerSpec


class Containers:
    """Runs the jobs of `containers.*` as Kubernetes Jobs: a second runner behind the transitions of serinette/jobs."""

    def __init__(self, redis: Redis, store: Store, settings: ContainerSettings, cluster: KubernetesJobs) -> None:
        """`store` signs URLs for where the pods are."""
        self._settings = settings
        self._keys = settings.keys
        self._store = store
        self._cluster = cluster
        self._jobs = Jobs(redis, settings.keys.prefix)
        self._carrying = Carrying(store, settings)
        self._failures = FailureLog(log, "asking the cluster for containers")
        self._met: ClusterUnavailable | None = None

    def __call__(self) -> None:
        """Raises RedisError; a cluster that does not answer is reported in the log, and asked again."""
        self._met = None
        try:
            self._round()
        except ClusterUnavailable as error:
            self._met = error
        self._failures.note(self._met)

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
        # First what the cluster has, then the records: a Job that was seen, and whose job no attempt holds then, goes.
        jobs = {_label(job, JOB_LABEL): job for job in self._cluster.jobs()}
        pods = _newest(self._cluster.pods()) if jobs else {}
        cases = self._held()
        for name in strays(jobs.values(), [case.held for case in cases]):
            log.info("deleting %s: its job has ended", name)
            with self._apart():
                self._cluster.delete(name)
        for case in cases:
            with logs.about(job=case.entry.id), self._apart():
                self._step(case, jobs.get(case.entry.id), pods.get(case.held.attempt_id))
        self._begin(cases)

    def _held(self) -> list[Case]:
        """All attempts that run, or are about to: the leases without an end."""
        found: Any = self._jobs.redis.zrange(self._keys.leases, "+inf", "+inf", byscore=True)
        members = [tuple(member.decode().rsplit(":", 1)) for member in found]
        cases = []
        for (job_id, attempt_id), seen in zip(members, self._look([job_id for job_id, _ in members]), strict=True):
            if seen.entry is None or seen.entry.owner != attempt_id:  # it has ended, or was erased by hand
                self._jobs(calls.beat(job_id, attempt_id, _LEASE))
                self._jobs.redis.zrem(self._keys.leases, f"{job_id}:{attempt_id}")
            elif case := self._case(seen.entry):
                cases.append(case)
        return cases

    def _case(self, entry: Entry) -> Case | None:
        spec, attempt = entry.container, entry.attempts[-1]
        if spec is None:
            return None
        held = Held(
            job_id=entry.id,
            attempt_id=attempt.id,
            attempt=attempt.number,
            gpus=spec.gpus,
            retries_left=entry.retries_left,
            placed=entry.placed == attempt.id,
            canceled=entry.cancel_requested,
            patience=Patience(entry.timeout_s, self._settings.containers_start_s, self._settings.containers_grace_s),
        )
        return Case(held, entry, attempt, spec)

    def _look(self, job_ids: Sequence[str]) -> Iterator[Seen]:
        for first in range(0, len(job_ids), _CHUNK):
            yield from self._jobs(calls.look(job_ids[first : first + _CHUNK]))

    def _waiting(self, most: int) -> Iterator[Waiting]:
        """The heads of the lanes, highest first."""
        for lane in Lane:
            found: Any = self._jobs.redis.zrange(self._keys.waiting(CONTAINERS_POOL, lane), 0, most - 1)
            for seen in self._look([job_id.decode() for job_id in found]):
                if seen.entry and (spec := seen.entry.container):
                    yield Waiting(seen.entry.id, spec.gpus)

    def _begin(self, cases: list[Case]) -> None:
        most = self._settings.containers_max_jobs
        held = [case.held for case in cases]
        for job_id in startable(self._waiting(most), held, self._settings.containers_max_gpus, most):
            self._jobs(calls.take(job_id, uuid.uuid4().hex, _LEASE))

    def _step(self, case: Case, job: Object | None, pod: Object | None) -> None:
        step = decide(case.held, job, pod, now())
        if pod is not None and has_log(pod) and step.action in {Action.WAIT, Action.END, Action.DELETE}:
            self._read_log(case, pod, ended=step.action is not Action.WAIT)
        if pod is not None and case.held.canceled:
            # Its pod is gone when the job ends.
            self._jobs(calls.note(case.entry.id, case.held.attempt_id, "ran_s", run_s_of(pod, now())))
        match step.action:
            case Action.CREATE:
                self._create(case)
            case Action.ADOPT:
                self._placed(case)
            case Action.DELETE if job is not None:
                self._cluster.delete(job["metadata"]["name"])
            case Action.CANCEL:
                gpu_s = case.held.gpus * (run_s_of(pod, now()) if pod is not None else case.entry.ran_s)
                self._settle(case, Outcome(JobStatus.CANCELED, gpu_s=gpu_s), None)
            case Action.END if step.ending:
                self._end(case, step.ending)
            case _:
                self._report(case, stage_of(pod))

    def _placed(self, case: Case) -> None:
        """Its Kubernetes Job was made: from now on one that is not there was deleted."""
        self._jobs(calls.note(case.entry.id, case.held.attempt_id, "placed", case.held.attempt_id))

    def _report(self, case: Case, stage: Stage) -> None:
        """Where it is, if that is news."""
        if case.entry.progress is None or case.entry.progress.stage is not stage:
            progress = Progress(stage=stage, at=now()).model_dump_json()
            self._jobs(calls.beat(case.entry.id, case.held.attempt_id, _LEASE, progress))

    def _create(self, case: Case) -> None:
        try:
            order = self._carrying.order(case.entry, case.held.attempt_id, case.spec)
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
                self._placed(case)

    def _manifest(self, order: Order) -> Object:
        account = self._settings.containers_service_account
        owner = self._cluster.account(account) if account else None
        return with_secrets(manifest(order, self._settings, owner), order, self._settings)

    def _read_log(self, case: Case, pod: Object, *, ended: bool) -> None:
        job_id, after = case.entry.id, case.entry.log_at
        if after == CUT:
            return
        size_bytes = int(self._jobs.redis.strlen(self._keys.log(job_id)))
        most = self._settings.containers_log_bytes
        asked = 2 * most + 1024 * 1024  # each line comes with its time
        try:
            read = self._cluster.log(pod["metadata"]["name"], after, asked)
        except ClusterUnavailable as error:  # a node that is away must not hold up the other containers
            log.warning("its log cannot be read: %s", error)
            return
        chunk = fresh(read, after, size_bytes, most, ended=ended)
        if chunk is None and len(read) >= asked - 4:
            chunk = Chunk(cut_words(most), CUT)
        if chunk:
            event = json.dumps({"text": chunk.text[-EVENT_CHARACTERS:]})
            self._jobs(calls.log(job_id, case.held.attempt_id, after, (chunk.text, chunk.last), event))

    def _end(self, case: Case, ending: Ending) -> None:
        gpu_s = case.held.gpus * ending.run_s
        verdict = verdict_of(case.held, ending)
        log.info("attempt %d: %s %s", case.held.attempt, verdict, ending.error.message if ending.error else "")
        match verdict:
            case Verdict.RETRY | Verdict.RETURN:
                charged = verdict is Verdict.RETRY
                attempt_id = case.held.attempt_id
                self._jobs(calls.release(case.entry.id, attempt_id, ending.error, charged=charged, gpu_s=gpu_s))
            case _:
                status = JobStatus.SUCCEEDED if ending.how is How.SUCCEEDED else JobStatus.FAILED
                self._settle(case, Outcome(status, ending.error, gpu_s=gpu_s), ending.exit_code)

    def _settle(self, case: Case, outcome: Outcome, exit_code: int | None) -> None:
        """The record in the store first: it decides. A controller that is killed behind it finds it, and goes on."""
        entry, attempt_id = case.entry, case.held.attempt_id
        try:
            kept: Any = self._jobs.redis.get(self._keys.log(entry.id))
            run = self._carrying.collect((entry.tenant, entry.id, attempt_id), exit_code, kept or b"")
            outcome = Outcome(outcome.status, outcome.error, gpu_s=outcome.gpu_s, run=run)
            record = put_record(self._store, record_of(entry, case.attempt, outcome))
            self._carrying.forget_manifest(entry.tenant, entry.id, attempt_id)
        except StoreUnavailable as error:
            log.warning("the container has ended, and the store is away: %s", error)
            return
        finish_as(self._jobs, record, gpu_s=outcome.gpu_s, by=attempt_id)


def _refused(why: str) -> Ending:
    return Ending(How.FAILED, JobError(code=ContainerFailed.code, message=why, retryable=False))


def _label(found: Mapping[str, object], label: str) -> str:
    metadata: Mapping[str, Mapping[str, str]] = found["metadata"]  # type: ignore[assignment]  # plain JSON
    return (metadata.get("labels") or {}).get(label, "")


def _newest(pods: list[Object]) -> dict[str, Object]:
    """By attempt: pods of an earlier one may still be there."""
    ordered = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    return {_label(pod, ATTEMPT_LABEL): pod for pod in ordered}
