"""What each part of `serinette up` still waits for: functions that answer None once it is ready."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
from redis import Redis, RedisError

from serinette.names import Keys
from serinette.presence import WorkerStage, present

Pending = Callable[[], str | None]
# The gateway itself answers within three seconds, whether or not queue and store do.
_GATEWAY_TIMEOUT_S = 5.0


def valkey(socket: Path) -> Pending:
    """Until it answers on its socket."""
    redis = Redis(unix_socket_path=str(socket), socket_timeout=2)

    def pending() -> str | None:
        try:
            redis.ping()
        except RedisError as error:
            return f"answers {error}" if socket.exists() else "starting"
        return None

    return pending


def gateway(url: str) -> Pending:
    """Until it, its queue and its store answer."""
    http = httpx.Client(base_url=url, timeout=_GATEWAY_TIMEOUT_S, trust_env=False)

    def pending() -> str | None:
        try:
            answer = http.get("/readyz")
        except httpx.HTTPError:
            return "starting"
        return None if answer.is_success else _detail(answer)

    return pending


def maintenance(redis: Redis, keys: Keys) -> Pending:
    """Until one works at the queue."""
    lease = keys.leader

    def pending() -> str | None:
        try:
            return None if redis.exists(lease) else "starting"
        except RedisError as error:
            return str(error)

    return pending


def worker(redis: Redis, keys: Keys, since: datetime) -> Pending:
    """Until one that started after `since` has its model."""

    def pending() -> str | None:
        try:
            workers = [worker for worker in present(redis, keys) if worker.started_at >= since]
        except RedisError as error:
            return str(error)
        if any(worker.stage is WorkerStage.READY for worker in workers):
            return None
        return next((worker.message or worker.stage for worker in workers), "starting")

    return pending


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):  # another server than ours
        return f"answers {answer.status_code}"
