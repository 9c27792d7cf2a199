"""Names that processes must agree on: queues, Redis keys, object keys, variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from importlib.resources import files


class Lane(StrEnum):
    """Priority of a job inside its pool, highest first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Right(StrEnum):
    """What a key may do beside what all keys of its tenant may."""

    OPERATOR_READ = "operator:read"  # GET /v1/operator: all pools, and all tenants' usage


DEFAULT_POOL = "default"
DEFAULT_TENANT = "default"


def queue_name(pool: str, lane: Lane) -> str:
    """RQ queue of one lane of one pool, e.g. `default.normal`."""
    return f"{pool}.{lane}"


class _Key:
    """One key of Keys."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, keys: Keys, _: type[Keys]) -> str:
        return keys.named(self.name)


class _KeyOf:
    """A key of Keys for each job, worker, tenant...: called with its id or name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, keys: Keys, _: type[Keys]) -> Callable[[str], str]:
        return partial(keys.named, self.name)


@dataclass(frozen=True, slots=True)
class Keys:
    """Our Redis keys, under RQ's prefix (`RQ_KEY_PREFIX`), so that one prefix separates releases on one Redis."""

    prefix: str = "rq"

    def named(self, *parts: str) -> str:
        """The key of these parts."""
        return ":".join((self.prefix, "serinette", *parts))

    # Sorted set of unfinished job ids by submit time (Unix seconds), which the sweeper checks.
    live = _Key("live")
    # Sorted set of ended jobs that are not yet shrunk, by their end (Unix seconds).
    ended = _Key("ended")
    # Hash of ids of API keys to JSON Credential (serinette/credentials.py): digests, never keys.
    credentials = _Key("credentials")
    # Hash of tenants to JSON Limits (serinette/credentials.py).
    tenants = _Key("tenants")
    # String: the secret that all gateways sign links with.
    link_secret = _Key("link-secret")
    # Sorted set of queued jobs without an attempt, by their start deadline (Unix seconds).
    deadlines = _Key("deadlines")
    # Sorted set, the outbox: ids of ended jobs by the time of their next delivery (Unix seconds).
    webhooks = _Key("webhooks")
    # Sorted set of ended jobs whose objects in the store are not final, by their end (Unix seconds): their
    # `job.json` is missing, or songs of attempts that did not win are left.
    unrecorded = _Key("unrecorded")
    # Pub/sub channel of canceled job ids. It only speeds up the cancel; the record's `cancel` decides.
    cancels = _Key("cancels")
    # Sorted set of worker names by the Unix second at which their presence expires.
    workers = _Key("workers")
    # String that a repeated submit writes, so that WAITAOF has a write to wait for.
    synced = _Key("synced")
    # Sorted set of attempts, `job:attempt`, by the end of their lease (Unix seconds).
    leases = _Key("leases")
    # Hash, expiring, of pools to JSON Holdup (serinette/presence.py): what keeps their pods from starting.
    holdups = _Key("holdups")
    # Hash of all counters since Redis began (serinette/counters.py).
    counters = _Key("counters")
    # Sorted set of ids of unfinished batches by creation (Unix seconds), which the controller works on.
    batches = _Key("batches")
    # String that `serinette doctor` writes and deletes, to check its permissions.
    doctor = _Key("doctor")
    # String, expiring: the leader among the controller's replicas, which renews it.
    leader = _Key("leader")

    # Hash: the record of one job (serinette/jobs/entry.py).
    job = _KeyOf("job")
    # String, expiring: a job's Shrunk form, some minutes after its end (serinette/jobs/calls.py).
    ended_job = _KeyOf("ended")
    # String, expiring after hours: the job was erased, for attempts of it that report later.
    erased_job = _KeyOf("erased")
    # Stream of one job's events.
    events = _KeyOf("events")
    # String: a container's log, as far as it was read.
    log = _KeyOf("log")
    # String, expiring: the token of the link that a job's songs are shared by (api/auth/links.py).
    share = _KeyOf("share")
    # Sorted set of a tenant's job ids by submit time (Unix seconds).
    jobs = _KeyOf("jobs")
    # Sorted set of a tenant's unfinished job ids by submit time (Unix seconds), counted by its limits.
    in_flight = _KeyOf("in-flight")
    # Sorted set of a tenant's running job ids, by the start of the attempt (Unix seconds).
    running = _KeyOf("running")
    # String, expiring: when a tenant's rate limit is fully replenished, Unix milliseconds.
    rate = _KeyOf("rate")
    # Sorted set of a tenant's batch ids by creation (Unix seconds).
    tenant_batches = _KeyOf("tenant-batches")
    # Hash of a pool's moving averages (serinette/presence.py), for ETAs.
    pace = _KeyOf("pace")
    # List of tokens, each of which wakes one idle slot of a pool.
    wake = _KeyOf("wake")
    # Set of the names of a pool's workers that hold jobs; KEDA keeps at least as many workers.
    busy = _KeyOf("busy")
    # Set, expiring: reasons not to start more workers of a pool (serinette/brake.py). While it has any, KEDA keeps
    # only the busy workers.
    brake = _KeyOf("brake")
    # List, expiring, newest first: failed loads since a worker of the pool last became ready.
    failures = _KeyOf("failures")
    # Set of the attempts that a worker holds; when it is empty, the worker leaves its pool's busy set.
    held = _KeyOf("held")
    # String, expiring: JSON of a worker's presence (serinette/presence.py).
    worker = _KeyOf("worker")
    # String, expiring: JSON of what a pod's start took in the cluster, which its worker cannot see.
    pod_start = _KeyOf("pod-start")
    # Hash: status, cursor and counts of one batch (serinette/batches/repository.py), never its lines.
    batch = _KeyOf("batch")
    # Set of ids of a batch's running jobs.
    batch_running = _KeyOf("batch-running")
    # Sorted set of ids of a batch's unfinished jobs, by line from 0.
    batch_live = _KeyOf("batch-live")
    # Set of numbers of a batch's parts that are released and whose results are not yet in the store.
    batch_open = _KeyOf("batch-open")
    # List of ids without a record that claims found in a lane: from before an upgrade, or of another program.
    unknown_jobs = _KeyOf("unknown")

    def usage(self, tenant: str, day: int) -> str:
        """Hash: usage of a tenant's jobs that ended on a UTC day (days since 1970; serinette/usage.py)."""
        return self.named("usage", tenant, str(day))

    def waiting(self, pool: str, lane: Lane) -> str:
        """Sorted set of the queued jobs of a lane, in their order; KEDA reads its size."""
        return self.named("waiting", queue_name(pool, lane))

    def started(self, pool: str, lane: Lane) -> str:
        """RQ's sorted set of running attempts, `job:attempt`, of a lane."""
        return ":".join((self.prefix, "wip", queue_name(pool, lane)))

    @property
    def suspended(self) -> str:
        """RQ's key, present while `rq suspend` is in effect."""
        return f"{self.prefix}:suspended"


def tenant_of(key: str) -> str:
    """The tenant that an object of the store belongs to, by its key."""
    return key.split("/")[1]


def song_prefix(tenant: str, job_id: str) -> str:
    """Prefix of all objects of one job."""
    return f"songs/{tenant}/{job_id}/"


def record_key(tenant: str, job_id: str) -> str:
    """The record, put if absent, which ends a job."""
    return f"{song_prefix(tenant, job_id)}job.json"


def replacement_key(tenant: str, job_id: str, created_at: datetime) -> str:
    """The record that replaces one of an erased job that had the id before, put if absent."""
    return f"{song_prefix(tenant, job_id)}{created_at.timestamp():.6f}.json"


def artifact_key(tenant: str, job_id: str, attempt_id: str, index: int, extension: str) -> str:
    """One song. The attempt is in the key so that a late attempt never overwrites the winner's bytes."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-{index}.{extension}"


def output_key(tenant: str, job_id: str, attempt_id: str, index: int) -> str:
    """One output of a container. Its file name is in the record, because keys never contain names from containers."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-output-{index:03}"


def manifest_key(tenant: str, job_id: str, attempt_id: str) -> str:
    """Manifest by the step that uploads a container's outputs."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-outputs.json"


def log_key(tenant: str, job_id: str, attempt_id: str) -> str:
    """A container's whole log."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-log.txt"


def doctor_key(look: str) -> str:
    """Object that `serinette doctor` writes and deletes, to check its permissions."""
    return f"doctor/{look}"


def upload_prefix(tenant: str, upload_id: str) -> str:
    """Prefix of all objects of one upload."""
    return f"uploads/{tenant}/{upload_id}/"


def upload_audio_key(tenant: str, upload_id: str) -> str:
    """The uploaded bytes."""
    return f"{upload_prefix(tenant, upload_id)}audio"


def upload_record_key(tenant: str, upload_id: str) -> str:
    """The probe's result; an upload without it is not usable as audio."""
    return f"{upload_prefix(tenant, upload_id)}upload.json"


def upload_file_key(tenant: str, upload_id: str) -> str:
    """Record of an upload that need not be audio, in place of the probe's result; only containers can use it."""
    return f"{upload_prefix(tenant, upload_id)}file.json"


def batch_prefix(tenant: str, batch_id: str) -> str:
    """Prefix of all objects of one batch, without the songs of its jobs."""
    return f"batches/{tenant}/{batch_id}/"


def batch_header_key(tenant: str, batch_id: str) -> str:
    """The header, put if absent, which creates a batch."""
    return f"{batch_prefix(tenant, batch_id)}batch.json"


def batch_end_key(tenant: str, batch_id: str) -> str:
    """Final state of a batch, for when Redis has expired it."""
    return f"{batch_prefix(tenant, batch_id)}end.json"


def batch_input_key(tenant: str, batch_id: str, digest: str, part: int) -> str:
    """One part of the validated lines. The digest separates two submits that race for one key."""
    return f"{batch_prefix(tenant, batch_id)}input/{digest[:32]}-{part:05}.jsonl"


def batch_results_key(tenant: str, batch_id: str, round: int, part: int) -> str:
    """Results of the lines of one part in one round."""
    return f"{batch_prefix(tenant, batch_id)}results/{round:04}-{part:05}.jsonl"


def batch_output_key(tenant: str, batch_id: str, round: int) -> str:
    """Lines that succeeded, as the round ended."""
    return f"{batch_prefix(tenant, batch_id)}output-{round:04}.jsonl"


def batch_errors_key(tenant: str, batch_id: str, round: int) -> str:
    """Lines that did not succeed, as the round ended."""
    return f"{batch_prefix(tenant, batch_id)}errors-{round:04}.jsonl"


def host_of(worker: str) -> str:
    """The host, and so the pod, of a worker, whose name is `{host}-{random}` with a new random part at each start."""
    return worker.rpartition("-")[0] or worker


# What Kubernetes sets for a Service that is called as we are, `NAME=value`, and what our tests read.
_OF_OTHERS = re.compile(r"\w+_SERVICE_(HOST|PORT)|\w+_PORT(_\d+_|=\w+://)|SERINETTE_TEST_")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting of ours and is none of any process."""
    known = files("serinette").joinpath("setting_names.txt").read_text().split()
    found = []
    for name in sorted(set(environment) - set(known)):
        if not name.startswith("SERINETTE_") or _OF_OTHERS.match(f"{name}={environment[name]}"):
            continue
        meant = difflib.get_close_matches(name, known, 1, 0.8)
        found.append(f"{name} is no setting, and has no effect" + (f"; did you mean {meant[0]}?" if meant else ""))
    return found
