"""What gateway, Redis, store and receiver hold after a run."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import httpx

from serinette.errors import NotFound
from serinette.job import Record
from serinette.names import DEFAULT_POOL, Keys, Lane, queue_name, record_key, song_prefix
from tests.chaos.cluster import Cluster
from tests.chaos.ledger import ENDED, ClientLedger, Promise
from tests.chaos.plan import TENANTS
from tests.chaos.promises import Found
from tests.receivers import Receiver


async def collect(cluster: Cluster, ledger: ClientLedger, receiver: Receiver) -> list[Found]:
    """Every promise with what was found of its job."""
    ids_by_path = webhook_ids(receiver)
    async with httpx.AsyncClient(base_url=cluster.urls[0], timeout=60) as http:
        return [await _found(cluster, promise, http, ids_by_path) for promise in ledger]


def webhook_ids(receiver: Receiver) -> Mapping[str, frozenset[str]]:
    """Distinct `webhook-id`s by request path."""
    found: dict[str, set[str]] = defaultdict(set)
    for came in receiver.came:
        found[came.path].add(came.headers["webhook-id"])
    return {path: frozenset(ids) for path, ids in found.items()}


def residue(cluster: Cluster) -> dict[str, int]:
    """What remains in Redis and the spool of unfinished work; all zero when the cluster is at rest."""
    keys, redis = Keys(), cluster.redis
    counts: dict[str, Any] = {
        "live": redis.zcard(keys.live),
        "outbox": redis.zcard(keys.webhooks),
        "unrecorded": redis.zcard(keys.unrecorded),
        "waiting": sum(int(redis.zcard(keys.waiting(DEFAULT_POOL, lane))) for lane in Lane),
        "leases": redis.zcard(keys.leases),
        "held": sum(int(redis.zcard(f"rq:wip:{queue_name(DEFAULT_POOL, lane)}")) for lane in Lane),
        "in flight": sum(int(redis.zcard(keys.in_flight(tenant))) for tenant in TENANTS),
        "spooled": sum(1 for _ in cluster.directory.glob("work-*/spool/*/*/job.json")),
    }
    return {name: int(count) for name, count in counts.items()}


async def _found(
    cluster: Cluster, promise: Promise, http: httpx.AsyncClient, ids_by_path: Mapping[str, frozenset[str]]
) -> Found:
    order = promise.order
    headers = {"Authorization": f"Bearer {cluster.keys[order.tenant]}"}
    answer = await http.get(f"/v1/jobs/{promise.job_id}", headers=headers)
    job = answer.json() if answer.status_code == 200 else {"status": None}
    result = job.get("result") or {"artifacts": []}
    recorded, stored = await asyncio.to_thread(_in_store, cluster, order.tenant, promise.job_id)
    events: Any = cluster.redis.xrange(Keys().events(promise.job_id))
    types = [fields[b"type"].decode() for _, fields in events]
    if cluster.redis.exists(
        Keys().ended_job(promise.job_id)
    ):  # its record has shrunk, and its events were deleted with it
        types = [str(job["status"])]
    return Found(
        promise,
        status=job["status"],
        answered={artifact["key"]: artifact["sha256"] for artifact in result["artifacts"]},
        recorded=recorded,
        stored=stored,
        terminal_events=[kind for kind in types if kind in ENDED],
        webhook_ids=ids_by_path.get(f"/{order.number}", frozenset()),
    )


def _in_store(cluster: Cluster, tenant: str, job_id: str) -> tuple[dict[str, str] | None, dict[str, str]]:
    recorded = None
    try:
        record = Record.model_validate_json(cluster.songs.get(record_key(tenant, job_id)))
        recorded = {artifact.key: artifact.sha256 for artifact in record.artifacts}
    except NotFound:
        pass
    keys = [found.key for found in cluster.songs.list(song_prefix(tenant, job_id))]
    songs = [key for key in keys if not key.endswith("/job.json")]
    return recorded, {key: hashlib.sha256(cluster.songs.get(key)).hexdigest() for key in songs}
