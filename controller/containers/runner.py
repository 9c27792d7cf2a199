"""Runs the jobs of `containers.*` as Kubernetes Jobs: a second runner behind the transitions of serinette/jobs.

plan.py decides; here is what is read for it, and done. A round may be cut short anywhere, and run beside another's.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel
from redis import Redis
from redis.exceptions import RedisError

from controller.cluster import ContainerJobs
from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL, MAIN, MAX_STEP_BYTES, Object, Order, manifest
from controller.containers.plan import (
    CUT,
    Action,
    Held,
    Plan,
    cut,
    label,
    new_lines,
    orphans,
    plan_attempt,
    refused,
    run_s_of,
    stage_of,
    startable,
)
from controller.leader_election import FailureLog
from serinette import logs
from serinette.container import CONTAINERS_POOL, ContainerSpec, Input, Output, Run, is_file_name
from serinette.errors import ClusterUnavailable, InvalidSpec, NotFound, StoreUnavailable
from serinette.job import JobStatus, Progress, Record, Stage, now
from serinette.jobs import Entry, Jobs, Lease, Outcome, calls
from serinette.jobs.finishing import finish_as, put_record, record_of
from serinette.names import (
    Lane,
    log_key,
    manifest_key,
    output_key,
    record_key,
    song_prefix,
    upload_audio_key,
    upload_prefix,
)
from serinette.settings import ContainerSettings
from serinette.store import Store

log = logging.getLogger(__name__)

# Answers of the API server that say that this Job will never be taken.
_REFUSED = frozenset({400, 413, 422})
# No dots: it is no slot of a worker that KEDA counts. A container runs on while the controller is away: no lease ends.
_LEASE = Lease("controller-containers", 0)
# Of what is added to a log, as much is in its event; the whole is in the log.
_EVENT_CHARACTERS = 64 * 1024
_MOST_EVENTS = 100  # as the transitions keep
_MOST_WARNINGS = 21


class Containers:
    """The duty: one round over all containers."""

    def __init__(self, redis: Redis, store: Store, settings: ContainerSettings, cluster: ContainerJobs) -> None:
        """`store` signs URLs for where the pods are."""
        self._settings = settings
        self._keys = settings.keys
        self._store = store
        self._cluster = cluster
        self._jobs = Jobs(redis, settings.keys.prefix)
        self._failures = FailureLog(log, "asking the cluster for containers")
        self._failure: ClusterUnavailable | None = None

    def __call__(self) -> None:
        """Raises RedisError; a cluster that does not answer is logged, and asked again."""
        self._failure = None
        try:
            self._round()
        except ClusterUnavailable as error:
            self._failure = error
        self._failures.note(self._failure)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What happens to one container does not hold up the others; a Redis or an API server that is away does."""
        try:
            yield
        except RedisError:
            raise
        except ClusterUnavailable as error:
            if not error.status:
                raise
            self._failure = error
        except StoreUnavailable as error:
            log.warning("the store is away: %s", error)
        except Exception:  # what cannot be read of one
            log.exception("the container is left as it is")

    def _round(self) -> None:
        # First what the cluster has, then the records: a Job that was seen, and whose job no attempt holds then, goes.
        jobs = {label(job, JOB_LABEL): job for job in self._cluster.jobs()}
        # By attempt: pods of an earlier one may still be there.
        pods = sorted(self._cluster.pods() if jobs else (), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        newest = {label(pod, ATTEMPT_LABEL): pod for pod in pods}
        held, unread = self._held()
        for name in orphans(jobs.values(), {*unread, *(each.entry.id for each in held)}):
            log.info("deleting %s: its job has ended", name)
            with self._apart():
                self._cluster.delete(name)
        for each in held:
            with logs.about(job=each.entry.id), self._apart():
                self._bring_on(each, jobs.get(each.entry.id), newest.get(each.attempt.id))
        most = self._settings.containers_max_jobs
        waiting, max_gpus = self._waiting(most), self._settings.containers_max_gpus
        for job_id in startable(waiting, held, max_gpus, max_jobs=most - len(unread)):
            self._jobs(calls.take(job_id, uuid.uuid4().hex, _LEASE))

    def _held(self) -> tuple[list[Held], list[str]]:
        """All attempts that run, or are about to: the leases without an end. And the jobs of those that cannot be read:
        another version may, so their Kubernetes Jobs stay.
        """
        found: Any = self._jobs.redis.zrange(self._keys.leases, "+inf", "+inf", byscore=True)
        members = [tuple(member.decode().rsplit(":", 1)) for member in found]
        held: list[Held] = []
        unread: list[str] = []
        looked_at = self._jobs.joined(calls.looks([job_id for job_id, _ in members]))
        for (job_id, attempt_id), seen in zip(members, looked_at, strict=True):
            if seen.entry is None or seen.entry.owner != attempt_id:  # it has ended, or was erased by hand
                self._jobs(calls.beat(job_id, attempt_id, _LEASE))
                self._jobs.redis.zrem(self._keys.leases, f"{job_id}:{attempt_id}")
            elif spec := self._spec_of(seen.entry):
                held.append(Held(seen.entry, seen.entry.attempts[-1], spec))
            else:
                unread.append(job_id)
        return held, unread

    def _waiting(self, most: int) -> Iterator[tuple[str, ContainerSpec]]:
        """The heads of the lanes, highest first."""
        for lane in Lane:
            found: Any = self._jobs.redis.zrange(self._keys.waiting(CONTAINERS_POOL, lane), 0, most - 1)
            for seen in self._jobs.joined(calls.looks([job_id.decode() for job_id in found])):
                if seen.entry and (spec := self._spec_of(seen.entry)):
                    yield seen.entry.id, spec

    def _spec_of(self, entry: Entry) -> ContainerSpec | None:
        """None where it cannot be read."""
        with logs.about(job=entry.id), self._apart():
            return entry.container
        return None

    def _bring_on(self, held: Held, job: Object | None, pod: Object | None) -> None:
        plan, stage = plan_attempt(held, job, pod, self._settings, now()), stage_of(pod)
        if pod is not None and stage in {Stage.COMPUTING, Stage.UPLOADING} and plan.status is not JobStatus.CANCELED:
            self._read_log(held, pod, ended=plan.action is not Action.WAIT)
        if pod is not None and held.entry.cancel_requested:  # its pod is gone when the job ends
            self._note(held, "ran_s", run_s_of(pod, now()))
        self._act(held, plan, job, stage)

    def _act(self, held: Held, plan: Plan, job: Object | None, stage: Stage) -> None:
        job_id, attempt_id, ending = held.entry.id, held.attempt.id, plan.ending
        gpu_s = held.spec.gpus * ending.run_s
        if plan.action in {Action.RETRY, Action.RETURN, Action.FINISH}:
            why = ending.error.message if ending.error else ""
            log.info("attempt %d: %s %s", held.attempt.number, plan.status or plan.action, why)
        match plan.action:
            case Action.CREATE:
                self._create(held)
            case Action.ADOPT:
                self._note(held, "placed", attempt_id)
            case Action.DELETE if job is not None:
                self._cluster.delete(job["metadata"]["name"])
            case Action.RETRY | Action.RETURN:
                charged = plan.action is Action.RETRY
                self._jobs(calls.release(job_id, attempt_id, ending.error, charged=charged, gpu_s=gpu_s))
            case Action.FINISH if plan.status is not None:
                self._finish(held, Outcome(plan.status, ending.error, gpu_s=gpu_s), ending.exit_code)
            case _ if held.entry.progress is None or held.entry.progress.stage is not stage:
                progress = Progress(stage=stage, at=now()).model_dump_json()
                self._jobs(calls.beat(job_id, attempt_id, _LEASE, progress))

    def _create(self, held: Held) -> None:
        account = self._settings.containers_service_account
        try:
            order = order_of(held.entry, held.attempt.id, held.spec, self._store, self._settings)
            owner = self._cluster.account(account) if account else None
            made = self._cluster.create(manifest(order, self._settings, owner))
        except InvalidSpec as error:
            self._act(held, refused(error.message), None, Stage.STARTING)
        except ClusterUnavailable as error:
            if error.status not in _REFUSED:
                raise
            why = f"the cluster refuses the container: {error.message[:300]}"
            self._act(held, refused(why), None, Stage.STARTING)
        else:
            if made:
                log.info("created the Kubernetes Job of attempt %d", held.attempt.number)
                self._note(held, "placed", held.attempt.id)  # from now on a Job that is not there was deleted

    def _note(self, held: Held, field: str, value: object, *commands: calls.Command, before: str | None = None) -> None:
        """Set a field of the record, and run `commands`, if this attempt still holds the job and the field is as
        `before`, where that is given.
        """
        record = self._keys.job(held.entry.id)
        guards = [(("HGET", record, "owner"), held.attempt.id)]
        if before is not None:
            guards.append((("HGET", record, field), before))
        self._jobs(calls.guarded(guards, [("HSET", record, field, value), *commands]))

    def _read_log(self, held: Held, pod: Object, *, ended: bool) -> None:
        job_id, after, most = held.entry.id, held.entry.log_at, self._settings.containers_log_bytes
        if after == CUT:
            return
        size_bytes = int(self._jobs.redis.strlen(self._keys.log(job_id)))
        asked = 2 * most + 1024 * 1024  # each line comes with its time
        try:
            read = self._cluster.log(pod["metadata"]["name"], MAIN, after, asked)
        except ClusterUnavailable as error:  # a node that is away must not hold up the other containers
            log.warning("its log cannot be read: %s", error)
            return
        lines = new_lines(read, after, size_bytes, most, ended=ended)
        if lines is None and len(read) >= asked - 4:
            lines = cut(most), CUT
        if lines:
            text, last = lines
            shown = text[-_EVENT_CHARACTERS:]
            start_bytes = size_bytes + len(text.encode()) - len(shown.encode())
            event = json.dumps({"text": shown, "attempt": held.attempt.number, "start_bytes": start_bytes})
            append = ("APPEND", self._keys.log(job_id), text)
            report = ("XADD", self._keys.events(job_id), "MAXLEN", "~", _MOST_EVENTS, "*", "type", "log", "data", event)
            self._note(held, "log_at", last, append, report, before=after)

    def _finish(self, held: Held, outcome: Outcome, exit_code: int | None) -> None:
        """The record in the store first: it decides. A controller that is killed behind it finds it, and goes on."""
        entry, attempt_id = held.entry, held.attempt.id
        try:
            outputs, warnings = outputs_of(entry, attempt_id, self._store, self._settings.containers_output_files)
            text: Any = self._jobs.redis.get(self._keys.log(entry.id)) or b""
            key = log_key(entry.tenant, entry.id, attempt_id) if text else None
            if key:
                self._store.put(key, text, "text/plain; charset=utf-8")
            run = Run(exit_code=exit_code, outputs=outputs, log_key=key, log_size_bytes=len(text), warnings=warnings)
            ended = Outcome(outcome.status, outcome.error, gpu_s=outcome.gpu_s, run=run)
            record = put_record(self._store, record_of(entry, held.attempt, ended), entry)
            self._store.delete(manifest_key(entry.tenant, entry.id, attempt_id))  # its record says all of it
        except StoreUnavailable as error:
            log.warning("the container has ended, and the store is away: %s", error)
            return
        finish_as(self._jobs, record, gpu_s=outcome.gpu_s, by=attempt_id)


# -- the presigned URLs that a pod gets for its inputs and outputs, and what it put by them


class _ListedOutput(BaseModel):
    name: str
    index: int
    sha256: str = ""


class _Manifest(BaseModel):
    """As controller/containers/steps.py writes it."""

    outputs: list[_ListedOutput] = []
    left_out: list[str] = []


def order_of(entry: Entry, attempt_id: str, spec: ContainerSpec, store: Store, settings: ContainerSettings) -> Order:
    """One attempt, its inputs and outputs signed for as long as it may take. `store` signs for where the pods are.

    Raises:
        InvalidSpec: an input is gone, or there are more than a pod's environment holds.
        StoreUnavailable: the store does not answer.
    """
    tenant, job_id = entry.tenant, entry.id
    life_s = entry.timeout_s + settings.containers_start_s + 2 * settings.containers_grace_s

    def signed(url: str | None) -> str:
        if url is None:
            raise InvalidSpec("this store signs no URLs, which containers need: the operator must take another")
        return url

    def put(key: str) -> str:
        return signed(store.sign_put(key, life_s))

    fetch = []
    for each in spec.inputs:
        try:
            files = list(_files_of(store, tenant, each))
        except NotFound as error:
            raise InvalidSpec(f"inputs: {each.path} is not in the store any more", field="inputs") from error
        fetch += [{"path": path, "url": signed(store.sign_get(key, life_s))} for path, key in files]
    if len(json.dumps(fetch)) > MAX_STEP_BYTES:
        raise InvalidSpec(f"inputs: {len(fetch)} files are too many for one container: pack them", field="inputs")
    upload = {
        "urls": [put(output_key(tenant, job_id, attempt_id, n)) for n in range(settings.containers_output_files)],
        "manifest_url": put(manifest_key(tenant, job_id, attempt_id)),
        "max_bytes": settings.containers_output_bytes,
    }
    return Order(job_id, tenant, attempt_id, entry.lane, spec, entry.timeout_s, tuple(fetch), upload)


def _files_of(store: Store, tenant: str, given: Input) -> Iterator[tuple[str, str]]:
    """Path below /inputs and object key of each file of an input. Keys are the tenant's own by how they are made."""
    if given.upload:
        yield given.path, upload_audio_key(tenant, given.upload)
    elif given.artifact:
        job_id, _, index = given.artifact.partition("/")
        keys = {song.index: song.key for song in _record(store, tenant, job_id).artifacts}
        if int(index) not in keys:
            raise NotFound(f"job {job_id} has no song {index}")
        yield given.path, keys[int(index)]
    else:
        root, name, _ = (given.prefix or "").split("/")
        if root == "songs":  # outputs of a container by the names that it gave them
            run = _record(store, tenant, name).run
            yield from ((f"{given.path}/{output.name}", output.key) for output in (run.outputs if run else ()))
        prefix = song_prefix(tenant, name) if root == "songs" else upload_prefix(tenant, name)
        for found in store.list(prefix):
            file = found.key.rpartition("/")[2]
            if "-output-" not in file and (file == "job.json" or not file.endswith(".json")):  # our own books
                yield f"{given.path}/{file}", found.key


def _record(store: Store, tenant: str, job_id: str) -> Record:
    return Record.model_validate_json(store.get(record_key(tenant, job_id)))


def outputs_of(entry: Entry, attempt_id: str, store: Store, most: int) -> tuple[tuple[Output, ...], tuple[str, ...]]:
    """What an attempt left, at most so many files, and in words what was left out.

    Nothing that its manifest says is believed but names that are allowed and sizes that the store confirms.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    tenant, job_id = entry.tenant, entry.id
    try:
        listed = _Manifest.model_validate_json(store.get(manifest_key(tenant, job_id, attempt_id)))
    except NotFound:
        return (), ("its outputs were not put into the store in the time that they had",)
    except ValueError:
        return (), ("the manifest of its outputs cannot be read",)
    found: list[Output] = []
    warnings = [each[:300] for each in listed.left_out[:_MOST_WARNINGS]]
    for each in listed.outputs[:most]:
        if not is_file_name(each.name) or not 0 <= each.index < most:
            warnings.append(f"{ascii(each.name)[:200]} may not be the name of an output")
            continue
        key = output_key(tenant, job_id, attempt_id, each.index)
        try:
            size_bytes = store.head(key).size_bytes
        except NotFound:
            warnings.append(f"{each.name} was not put into the store")
            continue
        found.append(Output(name=each.name, key=key, size_bytes=size_bytes, sha256=each.sha256))
    return tuple(found), tuple(warnings)
