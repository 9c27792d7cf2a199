"""A gateway, the controller and a cluster's nodes, each a few hand-made moves, over a fake API server and a real S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from controller.cluster import ContainerJobs, connect
from controller.containers.manifest import ATTEMPT_LABEL, JOB_LABEL, job_name, selector
from controller.containers.runner import Containers
from controller.settings import ControllerSettings
from serinette.container import CONTAINERS_POOL, ContainerSpec
from serinette.job import JobStatus, Record
from serinette.jobs import Entry
from serinette.names import Keys, Lane, artifact_key, manifest_key, output_key, record_key
from serinette.store import Store
from tests.jobs import Board, assert_ended
from tests.kube import Kube

NAMESPACE = "jobs"
TENANT = "default"
ACCOUNT = "studio-container"
IMAGE = "registry.example/audio/stems:1"
RETENTION_S = 3600
ON: dict[str, Any] = {
    "containers": True,
    "containers_images": ["registry.example/audio/"],
    "containers_max_gpus": 2,
    "containers_namespace": NAMESPACE,
    "containers_instance": "studio",
    "containers_service_account": ACCOUNT,
    "containers_steps_image": "registry.example/serinette/gateway:1",
    "containers_output_files": 2,
    "containers_log_bytes": 1024,
    "retention_s": RETENTION_S,
    "max_attempts": 3,
}


def ago(seconds: float) -> str:
    """A time as Kubernetes writes it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def terminated(code: int, reason: str = "Completed", **more: object) -> dict[str, Any]:
    """State of a container that ran for ten seconds."""
    return {"terminated": {"exitCode": code, "reason": reason, "startedAt": ago(12), "finishedAt": ago(2), **more}}


def pod_of(phase: str, main: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A pod whose command is in this state."""
    states = [{"name": "main", "state": main}] if main else []
    metadata = {"name": "p", "creationTimestamp": ago(status.pop("age_s", 20))}
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": states, **status}}


def duty(
    settings: ControllerSettings,
    redis: Redis,
    kubeconfig: Path,
    step: Callable[[], None] | None = None,
    store: Store | None = None,
) -> Containers:
    """The controller's part; `step` happens before each request to the API server."""
    connection = connect(kubeconfig)
    assert connection
    if step:
        asked = connection.call_api

        def counted(*given: Any, **options: Any) -> Any:
            step()
            return asked(*given, **options)

        connection.call_api = counted
    jobs = ContainerJobs(connection, NAMESPACE, selector(settings.containers_instance))
    return Containers(redis, store or Store.open(settings), settings, jobs)


def keep_song(store: Store, tenant: str, job_id: str, song: bytes) -> None:
    """A job that generated a song, as the store alone still knows it."""
    key = artifact_key(tenant, job_id, "attempt", 0, "mp3")
    store.put(key, song)
    at = "2026-01-01T00:00:00Z"
    artifact = {
        "index": 0,
        "key": key,
        "seed": 1,
        "format": "mp3",
        "content_type": "audio/mpeg",
        "size_bytes": len(song),
    }
    artifact |= {"sha256": "0" * 64, "duration_s": 1, "sample_rate": 1, "channels": 1}
    timings = dict.fromkeys(("queue_s", "generate_s", "encode_s", "upload_s", "run_s"), 0)
    sampling = {"steps": 1, "guidance_scale": 1, "shift": 1, "turbo": False}
    result = {"artifacts": [artifact], "model": "m", "model_revision": "r", "sampling": sampling, "timings": timings}
    attempt = {"number": 1, "id": "attempt", "worker": "w", "started_at": at, "outcome": "succeeded"}
    times = dict.fromkeys(("created_at", "started_at", "ended_at"), at)
    fields = {"job_id": job_id, "tenant": tenant, "spec": {"prompt": "jazz"}, "attempt": attempt, "result": result}
    record = Record.model_validate({**fields, **times})
    store.put(record_key(tenant, job_id), record.model_dump_json().encode())


@dataclass
class ContainerBench:
    """Moves and what is seen."""

    redis: Redis
    kube: Kube
    settings: ControllerSettings
    kubeconfig: Path
    store: Store = field(init=False)
    board: Board = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store.open(self.settings)
        self.board = Board(self.redis, Keys())
        metadata = {"name": ACCOUNT, "namespace": NAMESPACE}
        self.kube.add({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})

    def submit(self, *, lane: Lane = Lane.NORMAL, **spec: Any) -> str:
        container = ContainerSpec.model_validate({"image": IMAGE, **spec})
        terms = {"timeout_s": 600, "max_attempts": 1 + container.retries, "ttl_s": RETENTION_S}
        return self.board.submit(None, container, pool=CONTAINERS_POOL, lane=lane, **terms)

    def round(self, times: int = 1) -> None:
        controller = duty(self.settings, self.redis, self.kubeconfig, store=self.store)
        for _ in range(times):
            controller()

    # -- the cluster

    def job(self, job_id: str) -> dict[str, Any] | None:
        return self.kube.get("batch/v1", "Job", job_name(job_id), NAMESPACE)

    def pod(self, job_id: str, phase: str = "Running", main: dict[str, Any] | None = None, **status: Any) -> None:
        """The pod of the job's Kubernetes Job, in this state."""
        job = self.job(job_id)
        assert job
        found = pod_of(phase, main or {"running": {"startedAt": ago(10)}}, **status)
        labels = job["spec"]["template"]["metadata"]["labels"]
        found["metadata"] |= {"name": f"{job_name(job_id)}-x", "namespace": NAMESPACE, "labels": labels}
        self.kube.add({"apiVersion": "v1", "kind": "Pod", **found})

    def no_pod(self, job_id: str) -> None:
        self.kube.remove("v1", "Pod", f"{job_name(job_id)}-x", NAMESPACE)

    def log(self, job_id: str, text: str) -> None:
        self.kube.logs[f"{job_name(job_id)}-x"] = text

    def attempt_id(self, job_id: str) -> str:
        job = self.job(job_id)
        assert job
        return str(job["metadata"]["labels"][ATTEMPT_LABEL])

    def put_output(self, job_id: str, name: str, data: bytes, **manifest: Any) -> None:
        """What the pod's last step does."""
        attempt_id = self.attempt_id(job_id)
        self.store.put(output_key(TENANT, job_id, attempt_id, 0), data)
        outputs = [{"name": name, "index": 0, "size_bytes": len(data), "sha256": "0" * 64}]
        written = {"outputs": outputs, "left_out": [], **manifest}
        self.store.put(manifest_key(TENANT, job_id, attempt_id), json.dumps(written).encode())

    # -- what is seen

    def entry(self, job_id: str) -> Entry:
        return self.board.entry(job_id)

    def record(self, job_id: str) -> Record:
        return Record.model_validate_json(self.store.get(record_key(TENANT, job_id)))

    def created(self, job_id: str) -> int:
        """How often a Job was asked for and made."""
        posts = [asked for asked in self.kube.requests if asked.method == "POST"]
        return sum(asked.body["metadata"]["labels"][JOB_LABEL] == job_id for asked in posts)

    def assert_over(self, job_id: str, outcome: JobStatus) -> Record:
        """Redis, RQ and the store agree, it was reported once, and nothing is left in the cluster."""
        assert_ended(self.board, job_id, outcome, RETENTION_S)
        record = self.record(job_id)
        assert (record.status, record.run) == (outcome, self.entry(job_id).run)
        assert self.job(job_id) is None, "an orphan"
        for key in record.keys:
            assert self.store.head(key).size_bytes >= 0
        return record
