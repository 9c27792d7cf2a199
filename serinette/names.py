"""Every name that two processes must agree on: queues, Redis keys, task paths, object keys."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lane(StrEnum):
    """Priority of a job inside its pool, highest first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


DEFAULT_POOL = "default"
DEFAULT_TENANT = "default"


def queue_name(pool: str, lane: Lane) -> str:
    """RQ queue of one lane of one pool, e.g. `default.normal`."""
    return f"{pool}.{lane}"


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis keys of our own, under the prefix that RQ uses too (`RQ_KEY_PREFIX`), so that one prefix parts releases."""

    prefix: str = "rq"

    def _key(self, *parts: str) -> str:
        return ":".join((self.prefix, "serinette", *parts))

    @property
    def live(self) -> str:
        """Sorted set of unfinished job ids by submit time (Unix seconds): what the sweep checks for orphans."""
        return self._key("live")

    def job(self, job_id: str) -> str:
        """Hash: the record of one job (serinette/jobs/entry.py)."""
        return self._key("job", job_id)

    def ended_job(self, job_id: str) -> str:
        """String: what is left of a record some minutes after its end (serinette/jobs/calls.py, Shrunk); expiring."""
        return self._key("ended", job_id)

    def erased_job(self, job_id: str) -> str:
        """String, for hours: the job had attempts and was erased, should one of them be heard of again."""
        return self._key("erased", job_id)

    @property
    def ended(self) -> str:
        """Sorted set of ended jobs whose record is whole, by when they ended (Unix seconds)."""
        return self._key("ended")

    def events(self, job_id: str) -> str:
        """Stream of one job's events."""
        return self._key("events", job_id)

    def jobs(self, tenant: str) -> str:
        """Sorted set of a tenant's job ids by submit time (Unix seconds)."""
        return self._key("jobs", tenant)

    def in_flight(self, tenant: str) -> str:
        """Sorted set of a tenant's unfinished job ids by submit time (Unix seconds): what its quotas count."""
        return self._key("in-flight", tenant)

    def running(self, tenant: str) -> str:
        """Sorted set of those of a tenant's unfinished jobs that an attempt holds, by its start (Unix seconds)."""
        return self._key("running", tenant)

    def usage(self, tenant: str, day: int) -> str:
        """Hash of what a tenant's jobs that ended on a UTC day (days since 1970) took (serinette/usage.py)."""
        return self._key("usage", tenant, str(day))

    @property
    def credentials(self) -> str:
        """Hash of API keys' ids to JSON Credential (serinette/credentials.py): digests, never keys."""
        return self._key("credentials")

    @property
    def tenants(self) -> str:
        """Hash of tenants to JSON Limits (serinette/credentials.py)."""
        return self._key("tenants")

    def rate(self, tenant: str) -> str:
        """String: when a tenant's allowance of requests is full again, Unix milliseconds; expiring."""
        return self._key("rate", tenant)

    def log(self, job_id: str) -> str:
        """String: a container's log, as far as it was seen."""
        return self._key("log", job_id)

    @property
    def link_secret(self) -> str:
        """String: what all gateways sign links with."""
        return self._key("link-secret")

    @property
    def deadlines(self) -> str:
        """Sorted set of jobs that nobody has begun, by the Unix second by which a worker must have."""
        return self._key("deadlines")

    @property
    def webhooks(self) -> str:
        """Sorted set, the outbox: ids of ended jobs by the Unix second at which their end is next told."""
        return self._key("webhooks")

    @property
    def unrecorded(self) -> str:
        """Sorted set of ended jobs that the store may not tell truly of yet, by when they ended (Unix seconds): no
        `job.json` says that there is no song, or songs lie there of attempts that did not win.
        """
        return self._key("unrecorded")

    @property
    def cancels(self) -> str:
        """Pub/sub channel of canceled job ids. It hastens; the record's `cancel` decides."""
        return self._key("cancels")

    @property
    def workers(self) -> str:
        """Sorted set of worker names by the Unix second at which their presence expires."""
        return self._key("workers")

    def worker(self, name: str) -> str:
        """String, JSON of one worker's presence (serinette/presence.py), expiring."""
        return self._key("worker", name)

    def pace(self, pool: str) -> str:
        """Hash of a pool's moving averages (serinette/presence.py), for ETAs."""
        return self._key("pace", pool)

    def waiting(self, pool: str, lane: Lane) -> str:
        """Sorted set of the jobs that wait in a lane, in their order: the first thing that KEDA reads."""
        return self._key("waiting", queue_name(pool, lane))

    def started(self, pool: str, lane: Lane) -> str:
        """RQ's sorted set of the attempts that run, `job:attempt`, of jobs of a lane."""
        return ":".join((self.prefix, "wip", queue_name(pool, lane)))

    @property
    def synced(self) -> str:
        """String that is written where a submit changes nothing and yet waits for the server's disk."""
        return self._key("synced")

    def unknown_jobs(self, queue: str) -> str:
        """List of ids without a record that claims found in a lane: of before an upgrade, or of another program."""
        return self._key("unknown", queue)

    def wake(self, pool: str) -> str:
        """List of tokens, each of which wakes one idle slot of a pool."""
        return self._key("wake", pool)

    @property
    def leases(self) -> str:
        """Sorted set of attempts, `job:attempt`, by when their lease runs out (Unix seconds)."""
        return self._key("leases")

    def busy(self, pool: str) -> str:
        """Set of the names of a pool's workers that hold work: KEDA lets the pool have as many."""
        return self._key("busy", pool)

    def held(self, worker: str) -> str:
        """Set of the attempts that a worker holds: with the last of them it leaves its pool's busy ones."""
        return self._key("held", worker)

    @property
    def suspended(self) -> str:
        """RQ's: there while `rq suspend` holds."""
        return f"{self.prefix}:suspended"

    def brake(self, pool: str) -> str:
        """Set of reasons why starting more of a pool's workers would be waste, expiring: while it has any, KEDA lets
        the pool have its busy workers and no others.
        """
        return self._key("brake", pool)

    def failures(self, pool: str) -> str:
        """List, newest first, of the loads that failed since a worker of the pool last became ready; expiring."""
        return self._key("failures", pool)

    @property
    def holdups(self) -> str:
        """Hash of pools to JSON Holdup (serinette/presence.py), expiring: why workers are not ready."""
        return self._key("holdups")

    @property
    def counters(self) -> str:
        """Hash of what has been counted since Redis began (serinette/counters.py)."""
        return self._key("counters")

    @property
    def batches(self) -> str:
        """Sorted set of unfinished batches' ids by creation (Unix seconds): what the controller works on."""
        return self._key("batches")

    def tenant_batches(self, tenant: str) -> str:
        """Sorted set of a tenant's batch ids by creation (Unix seconds)."""
        return self._key("tenant-batches", tenant)

    def batch(self, batch_id: str) -> str:
        """Hash: status, cursor and counts of one batch (serinette/batches/repository.py). Never its lines."""
        return self._key("batch", batch_id)

    def batch_running(self, batch_id: str) -> str:
        """Set of the ids of a batch's jobs that an attempt holds."""
        return self._key("batch-running", batch_id)

    def batch_live(self, batch_id: str) -> str:
        """Sorted set of the ids of a batch's jobs that have not ended, by their line from 0."""
        return self._key("batch-live", batch_id)

    def batch_open(self, batch_id: str) -> str:
        """Set of the numbers of those of a batch's parts that are released and not yet written to the store."""
        return self._key("batch-open", batch_id)

    @property
    def doctor(self) -> str:
        """String that `serinette doctor` writes, to see that it may, and takes away."""
        return self._key("doctor")

    @property
    def leader(self) -> str:
        """String that the leader among the controller's replicas keeps from expiring."""
        return self._key("leader")


def song_prefix(tenant: str, job_id: str) -> str:
    """Everything that one job leaves in the store."""
    return f"songs/{tenant}/{job_id}/"


def record_key(tenant: str, job_id: str) -> str:
    """The record whose creation ends a job (put if absent)."""
    return f"{song_prefix(tenant, job_id)}job.json"


def artifact_key(tenant: str, job_id: str, attempt_id: str, index: int, extension: str) -> str:
    """One song. The attempt is in the name so that a late attempt never overwrites the winner's bytes."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-{index}.{extension}"


def output_key(tenant: str, job_id: str, attempt_id: str, index: int) -> str:
    """One file that a container left. Its own name is in the record: no key is made of what a container chose."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-output-{index:03}"


def manifest_key(tenant: str, job_id: str, attempt_id: str) -> str:
    """What the step that uploads a container's outputs says of them."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-outputs.json"


def log_key(tenant: str, job_id: str, attempt_id: str) -> str:
    """A container's whole log."""
    return f"{song_prefix(tenant, job_id)}{attempt_id}-log.txt"


def doctor_key(look: str) -> str:
    """What `serinette doctor` writes, to see that it may, and erases."""
    return f"doctor/{look}"


def upload_prefix(tenant: str, upload_id: str) -> str:
    """Everything of one upload."""
    return f"uploads/{tenant}/{upload_id}/"


def upload_audio_key(tenant: str, upload_id: str) -> str:
    """The uploaded bytes as they came."""
    return f"{upload_prefix(tenant, upload_id)}audio"


def upload_record_key(tenant: str, upload_id: str) -> str:
    """What the probe found; an upload without it is not usable."""
    return f"{upload_prefix(tenant, upload_id)}upload.json"


def upload_file_key(tenant: str, upload_id: str) -> str:
    """Of an upload that need not be audio, in place of what the probe found: songs cannot be made from it."""
    return f"{upload_prefix(tenant, upload_id)}file.json"


def batch_prefix(tenant: str, batch_id: str) -> str:
    """Everything that one batch leaves in the store, but the songs of its jobs."""
    return f"batches/{tenant}/{batch_id}/"


def batch_header_key(tenant: str, batch_id: str) -> str:
    """The header whose creation makes a batch (put if absent)."""
    return f"{batch_prefix(tenant, batch_id)}batch.json"


def batch_end_key(tenant: str, batch_id: str) -> str:
    """What the batch ended as, for when Redis has forgotten it."""
    return f"{batch_prefix(tenant, batch_id)}end.json"


def batch_input_key(tenant: str, batch_id: str, digest: str, part: int) -> str:
    """One part of the checked lines. The digest parts two submits that race for one key."""
    return f"{batch_prefix(tenant, batch_id)}input/{digest[:32]}-{part:05}.jsonl"


def batch_results_key(tenant: str, batch_id: str, round: int, part: int) -> str:
    """What became of the lines of one part in one round."""
    return f"{batch_prefix(tenant, batch_id)}results/{round:04}-{part:05}.jsonl"


def batch_output_key(tenant: str, batch_id: str, round: int) -> str:
    """Lines that succeeded, as the round ended."""
    return f"{batch_prefix(tenant, batch_id)}output-{round:04}.jsonl"


def batch_errors_key(tenant: str, batch_id: str, round: int) -> str:
    """The other lines, as the round ended."""
    return f"{batch_prefix(tenant, batch_id)}errors-{round:04}.jsonl"


def worker_of(slot: str) -> str:
    """The worker that a slot belongs to, by the name that its supervisor gave it: `{worker}.{number}.{random}`."""
    return slot.rsplit(".", 2)[0]


def host_of(worker: str) -> str:
    """The host, and so the pod, of a worker: its supervisor's name is `{host}-{random}`, anew at each start."""
    return worker.rpartition("-")[0] or worker
