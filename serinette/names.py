"""Names that processes must agree on: queues, Redis keys, object keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


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


@dataclass(frozen=True, slots=True)
class Keys:
    """Our Redis keys, under RQ's prefix (`RQ_KEY_PREFIX`), so that one prefix separates releases on one Redis."""

    prefix: str = "rq"

    def _key(self, *parts: str) -> str:
        return ":".join((self.prefix, "serinette", *parts))

    @property
    def live(self) -> str:
        """Sorted set of unfinished job ids by submit time (Unix seconds), which the sweeper checks."""
        return self._key("live")

    def job(self, job_id: str) -> str:
        """Hash: the record of one job (serinette/jobs/entry.py)."""
        return self._key("job", job_id)

    def ended_job(self, job_id: str) -> str:
        """String, expiring: a job's Shrunk form, some minutes after its end (serinette/jobs/calls.py)."""
        return self._key("ended", job_id)

    def erased_job(self, job_id: str) -> str:
        """String, expiring after hours: the job was erased, for attempts of it that report later."""
        return self._key("erased", job_id)

    @property
    def ended(self) -> str:
        """Sorted set of ended jobs that are not yet shrunk, by their end (Unix seconds)."""
        return self._key("ended")

    def events(self, job_id: str) -> str:
        """Stream of one job's events."""
        return self._key("events", job_id)

    def jobs(self, tenant: str) -> str:
        """Sorted set of a tenant's job ids by submit time (Unix seconds)."""
        return self._key("jobs", tenant)

    def in_flight(self, tenant: str) -> str:
        """Sorted set of a tenant's unfinished job ids by submit time (Unix seconds), counted by its limits."""
        return self._key("in-flight", tenant)

    def running(self, tenant: str) -> str:
        """Sorted set of a tenant's running job ids, by the start of the attempt (Unix seconds)."""
        return self._key("running", tenant)

    def usage(self, tenant: str, day: int) -> str:
        """Hash: usage of a tenant's jobs that ended on a UTC day (days since 1970; serinette/usage.py)."""
        return self._key("usage", tenant, str(day))

    @property
    def credentials(self) -> str:
        """Hash of ids of API keys to JSON Credential (serinette/credentials.py): digests, never keys."""
        return self._key("credentials")

    @property
    def tenants(self) -> str:
        """Hash of tenants to JSON Limits (serinette/credentials.py)."""
        return self._key("tenants")

    def rate(self, tenant: str) -> str:
        """String, expiring: when a tenant's rate limit is fully replenished, Unix milliseconds."""
        return self._key("rate", tenant)

    def log(self, job_id: str) -> str:
        """String: a container's log, as far as it was read."""
        return self._key("log", job_id)

    @property
    def link_secret(self) -> str:
        """String: the secret that all gateways sign links with."""
        return self._key("link-secret")

    def share(self, job_id: str) -> str:
        """String, expiring: the token of the link that a job's songs are shared by (api/auth/links.py)."""
        return self._key("share", job_id)

    @property
    def deadlines(self) -> str:
        """Sorted set of queued jobs without an attempt, by their start deadline (Unix seconds)."""
        return self._key("deadlines")

    @property
    def webhooks(self) -> str:
        """Sorted set, the outbox: ids of ended jobs by the time of their next delivery (Unix seconds)."""
        return self._key("webhooks")

    @property
    def unrecorded(self) -> str:
        """Sorted set of ended jobs whose objects in the store are not final, by their end (Unix seconds): their
        `job.json` is missing, or songs of attempts that did not win are left.
        """
        return self._key("unrecorded")

    @property
    def cancels(self) -> str:
        """Pub/sub channel of canceled job ids. It only speeds up the cancel; the record's `cancel` decides."""
        return self._key("cancels")

    @property
    def workers(self) -> str:
        """Sorted set of worker names by the Unix second at which their presence expires."""
        return self._key("workers")

    def worker(self, name: str) -> str:
        """String, expiring: JSON of a worker's presence (serinette/presence.py)."""
        return self._key("worker", name)

    def pace(self, pool: str) -> str:
        """Hash of a pool's moving averages (serinette/presence.py), for ETAs."""
        return self._key("pace", pool)

    def waiting(self, pool: str, lane: Lane) -> str:
        """Sorted set of the queued jobs of a lane, in their order; KEDA reads its size."""
        return self._key("waiting", queue_name(pool, lane))

    def started(self, pool: str, lane: Lane) -> str:
        """RQ's sorted set of running attempts, `job:attempt`, of a lane."""
        return ":".join((self.prefix, "wip", queue_name(pool, lane)))

    @property
    def synced(self) -> str:
        """String that a repeated submit writes, so that WAITAOF has a write to wait for."""
        return self._key("synced")

    def unknown_jobs(self, queue: str) -> str:
        """List of ids without a record that claims found in a lane: from before an upgrade, or of another program."""
        return self._key("unknown", queue)

    def wake(self, pool: str) -> str:
        """List of tokens, each of which wakes one idle slot of a pool."""
        return self._key("wake", pool)

    @property
    def leases(self) -> str:
        """Sorted set of attempts, `job:attempt`, by the end of their lease (Unix seconds)."""
        return self._key("leases")

    def busy(self, pool: str) -> str:
        """Set of the names of a pool's workers that hold jobs; KEDA keeps at least as many workers."""
        return self._key("busy", pool)

    def held(self, worker: str) -> str:
        """Set of the attempts that a worker holds; when it is empty, the worker leaves its pool's busy set."""
        return self._key("held", worker)

    @property
    def suspended(self) -> str:
        """RQ's key, present while `rq suspend` is in effect."""
        return f"{self.prefix}:suspended"

    def brake(self, pool: str) -> str:
        """Set, expiring: reasons not to start more workers of a pool (serinette/brake.py). While it has any, KEDA keeps
        only the busy workers.
        """
        return self._key("brake", pool)

    def failures(self, pool: str) -> str:
        """List, expiring, newest first: failed loads since a worker of the pool last became ready."""
        return self._key("failures", pool)

    def pod_start(self, pod: str) -> str:
        """String, expiring: JSON of what a pod's start took in the cluster, which its worker cannot see."""
        return self._key("pod-start", pod)

    @property
    def holdups(self) -> str:
        """Hash, expiring, of pools to JSON Holdup (serinette/presence.py): what keeps their pods from starting."""
        return self._key("holdups")

    @property
    def counters(self) -> str:
        """Hash of all counters since Redis began (serinette/counters.py)."""
        return self._key("counters")

    @property
    def batches(self) -> str:
        """Sorted set of ids of unfinished batches by creation (Unix seconds), which the controller works on."""
        return self._key("batches")

    def tenant_batches(self, tenant: str) -> str:
        """Sorted set of a tenant's batch ids by creation (Unix seconds)."""
        return self._key("tenant-batches", tenant)

    def batch(self, batch_id: str) -> str:
        """Hash: status, cursor and counts of one batch (serinette/batches/repository.py), never its lines."""
        return self._key("batch", batch_id)

    def batch_running(self, batch_id: str) -> str:
        """Set of ids of a batch's running jobs."""
        return self._key("batch-running", batch_id)

    def batch_live(self, batch_id: str) -> str:
        """Sorted set of ids of a batch's unfinished jobs, by line from 0."""
        return self._key("batch-live", batch_id)

    def batch_open(self, batch_id: str) -> str:
        """Set of numbers of a batch's parts that are released and whose results are not yet in the store."""
        return self._key("batch-open", batch_id)

    @property
    def doctor(self) -> str:
        """String that `serinette doctor` writes and deletes, to check its permissions."""
        return self._key("doctor")

    @property
    def leader(self) -> str:
        """String, expiring: the leader among the controller's replicas, which renews it."""
        return self._key("leader")


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


def worker_of(slot: str) -> str:
    """The worker that a slot belongs to, by the name that its supervisor gave it: `{worker}.{number}.{random}`."""
    return slot.rsplit(".", 2)[0]


def host_of(worker: str) -> str:
    """The host, and so the pod, of a worker, whose name is `{host}-{random}` with a new random part at each start."""
    return worker.rpartition("-")[0] or worker
