"""What others would write in front of a queue: `python -m benchmarks.peers.app noop|celery|rq PORT REDIS_URL`.

Each has the same three routes: submit a job, poll its state, and a bare `/healthz`. `noop` queues nothing: it is what
FastAPI itself costs. Celery's and RQ's clients block, so that their routes are plain functions on FastAPI's threads, as
FastAPI's documentation asks for. There are no workers.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import TypeAlias

import uvicorn
from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

QUEUE = "peer"  # of Celery a list of this name, of RQ rq:queue:peer
Submit: TypeAlias = Callable[[dict[str, object]], str]
State: TypeAlias = Callable[[str], str]


class Song(BaseModel):
    """A job's body, as small as it can be."""

    prompt: str
    duration_s: float


def celery(redis_url: str) -> tuple[Submit, State]:
    """Celery with Redis as broker and result backend, its defaults otherwise."""
    queue = Celery("peer", broker=redis_url, backend=redis_url)
    return (
        lambda song: str(queue.send_task("peer.generate", kwargs=song, queue=QUEUE).id),
        lambda job_id: str(queue.AsyncResult(job_id).state),
    )


def plain_rq(redis_url: str) -> tuple[Submit, State]:
    """RQ by itself; JSON, as this project takes no pickles."""
    redis = Redis.from_url(redis_url)
    queue = Queue(QUEUE, connection=redis, serializer=JSONSerializer)
    return (
        lambda song: queue.enqueue("peer.generate", kwargs=song).id,
        lambda job_id: Job.fetch(job_id, redis, JSONSerializer).get_status(refresh=False).value,
    )


def create(peer: str, redis_url: str) -> FastAPI:
    """The application of one peer."""
    app = FastAPI()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    if peer == "noop":

        @app.post("/jobs", status_code=202)
        async def do_nothing(song: Song) -> dict[str, str]:
            return {"id": str(uuid.uuid4())}

        @app.get("/jobs/{job_id}")
        async def know_nothing(job_id: str) -> dict[str, str]:
            return {"id": job_id, "status": "queued"}

        return app

    put, look = {"celery": celery, "rq": plain_rq}[peer](redis_url)

    @app.post("/jobs", status_code=202)
    def submit(song: Song) -> dict[str, str]:
        return {"id": put(song.model_dump())}

    @app.get("/jobs/{job_id}")
    def poll(job_id: str) -> dict[str, str]:
        return {"id": job_id, "status": look(job_id)}

    return app


if __name__ == "__main__":
    uvicorn.run(
        create(sys.argv[1], sys.argv[3]),
        port=int(sys.argv[2]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
