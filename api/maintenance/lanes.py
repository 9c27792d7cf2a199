"""The lanes that exist, as RQ's queues."""

from __future__ import annotations

from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from serinette.names import Lane

_LANES = frozenset(Lane)


def is_lane(queue_name: str) -> bool:
    """Whether a queue is one of ours, `{pool}.{lane}`."""
    pool, _, lane = queue_name.rpartition(".")
    return bool(pool) and lane in _LANES


def lane_queue(name: str, redis: Redis) -> Queue:
    """One lane. Makes no round trip."""
    return Queue(name, connection=redis, serializer=JSONSerializer)


def lanes(redis: Redis) -> list[Queue]:
    """All lanes of all pools that ever got a job. Reads RQ's set of queues and touches nothing else."""
    queues = Queue.all(redis, serializer=JSONSerializer)
    return sorted((queue for queue in queues if is_lane(queue.name)), key=lambda queue: queue.name)
