"""For probes: is the process alive, are the parts that it needs there. For clients of other servers: who can sing."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from api.dependencies import EventsPart, ProbesPart, QueuePart, SettingsPart, StorePart
from api.dialects.acestep import inventory
from api.dialects.acestep.envelope import wrapped
from api.dialects.gradio import answers
from api.lean_route import LeanRoute
from api.queue import Pool
from api.v1.answers import problems
from serinette.errors import QueueUnavailable, Unavailable

router = APIRouter(tags=["health"], route_class=LeanRoute)

READY_WITHIN_S = 3.0


class Health(BaseModel):
    """Sign of life."""

    status: str


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", response_model=Health, summary="Alive")
async def alive() -> Response:
    """The process answers. Says nothing of what it needs: restarting it would fix none of that."""
    return JSONResponse({"status": "alive"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Ready", responses=problems("unavailable", "queue_unavailable", "store_unavailable"))
async def ready(events: EventsPart, store: StorePart, probes: ProbesPart) -> Health:
    """Queue and store answer, within three seconds."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            await events.ping()
            await anyio.to_thread.run_sync(store.ping, abandon_on_cancel=True, limiter=probes)
    except TimeoutError as error:
        raise Unavailable(f"the queue or the store did not answer within {READY_WITHIN_S:g} s") from error
    return Health(status="ready")


def _both(pools: tuple[Pool, ...], default_pool: str) -> dict[str, Any]:
    seed = answers.health([worker for pool in pools for worker in pool.workers])
    return seed | wrapped(inventory.health(inventory.inventory(pools, default_pool)))


@router.get(
    "/health",
    summary="Health, models and counts",
    responses={
        200: {"content": {"application/json": {"example": _both((), "default") | {"timestamp": 1_767_323_045_000}}}},
        503: {"description": "The queue does not answer."},
    },
)
async def health(queue: QueuePart, settings: SettingsPart) -> Response:
    """Both dialects in one answer: ACE-Step v1's keys, and ACE-Step 1.5's envelope beside them."""
    try:
        return JSONResponse(_both(await queue.pools(), settings.pool))
    except QueueUnavailable as error:
        seed = {"status": "unhealthy", "pipeline_loaded": False, "detail": error.message}
        return JSONResponse(seed | wrapped({"status": "unhealthy"}, code=503, error=error.message), 503)
