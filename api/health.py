"""Liveness and readiness probes. GET /health is in dialects/shared_paths.py."""

from __future__ import annotations

import asyncio

import anyio
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from api.dependencies import PartsPart
from api.lean_route import LeanRoute
from api.problems import problems
from serinette.errors import Unavailable

router = APIRouter(tags=["health"], route_class=LeanRoute)

READY_WITHIN_S = 3.0


class Health(BaseModel):
    """Answer of a probe."""

    status: str


@router.get("/healthz", response_model=Health, summary="Alive")
async def is_alive() -> Response:
    """The process answers. Queue and store are not checked, because a restart would not repair them."""
    return JSONResponse({"status": "alive"})


@router.get(
    "/readyz",
    summary="Ready",
    responses=problems("unavailable", "queue_unavailable", "queue_full", "store_unavailable", "internal"),
)
async def is_ready(parts: PartsPart) -> Health:
    """A job would be taken: queue and store answer within three seconds, and have room."""
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            await parts.queue.require_room()
            await anyio.to_thread.run_sync(parts.store.ping, abandon_on_cancel=True, limiter=parts.probes)
    except TimeoutError as error:
        raise Unavailable(f"the queue or the store did not answer within {READY_WITHIN_S:g} s") from error
    return Health(status="ready")
