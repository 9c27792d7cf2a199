"""Live progress, as Server-Sent Events and, at the same path, as a WebSocket."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, WebSocket
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from api.auth.keyring import CallerCheck
from api.dependencies import ContextPart, RequestContext
from api.events import JobEvents, checked_event_id
from api.problems import problems
from api.turns import HeldResponse
from api.v1 import examples
from api.v1.answers import JobId
from serinette.errors import SerinetteError
from serinette.job import Job
from serinette.views import JobEvent

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["jobs"])

KEEPALIVE_S = 15
RETRY_MS = 2_000

ResumeQuery = Annotated[
    str | None, Query(description="Resume after this event, as `Last-Event-ID` does.", examples=["1760000000000-0"])
]

ResumeHeader = Annotated[str | None, Header(alias="Last-Event-ID")]


@router.get(
    "/jobs/{job_id}/events",
    response_class=EventSourceResponse,
    summary="Live progress",
    responses={
        200: {"content": examples.EVENTS, "description": "A `status` event with the whole job, then what happens."},
        204: {"description": "The job is over and `Last-Event-ID` is its last event: do not reconnect."},
        **problems("limited"),
    },
)
async def follow_job(
    job_id: JobId,
    request: Request,
    context: ContextPart,
    last_event_id: ResumeQuery = None,
    last_event_id_header: ResumeHeader = None,
) -> Response:
    """Server-Sent Events; closes behind the terminal event. A WebSocket at the same path sends the same messages."""
    seen, events = last_event_id_header or last_event_id, context.parts.events
    job, after = await _snapshot(context, job_id, seen)
    if seen is not None and job.status.ended and (await events.last_ids(job_id))[0] in {after, "0-0"}:
        return Response(status_code=204)
    if request.method == "HEAD":
        return StreamingResponse(iter(()), media_type="text/event-stream")  # its length is not known, and not 0
    response = EventSourceResponse(_sse(events, job, after, context.caller_check), ping=KEEPALIVE_S)
    return HeldResponse(response, events.streams.of(context.tenant))


@router.websocket("/jobs/{job_id}/events")
async def socket(
    websocket: WebSocket,
    job_id: JobId,
    context: ContextPart,
    last_event_id: ResumeQuery = None,
    last_event_id_header: ResumeHeader = None,
) -> None:
    """The same messages, a JSON text each; closes with 1000 behind the terminal one, 1008 as its key ends."""
    events = context.parts.events
    job, after = await _snapshot(context, job_id, last_event_id_header or last_event_id)
    async with events.streams.of(context.tenant):
        await websocket.accept()
        await _send_all(websocket, events, job, after, context.caller_check)


async def _send_all(websocket: WebSocket, events: JobEvents, job: Job, after: str, caller_check: CallerCheck) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(_until_gone, websocket, group.cancel_scope)
        try:
            async with aclosing(messages(events, job, after, caller_check)) as following:
                async for message in following:
                    await websocket.send_text(message.model_dump_json())
            await websocket.close(await _why(events, caller_check))
        except WebSocketDisconnect:
            log.debug("listener to job %s left", job.id)
        group.cancel_scope.cancel()


async def messages(events: JobEvents, job: Job, after: str, caller_check: CallerCheck) -> AsyncGenerator[JobEvent]:
    """The job as it stands, then its events behind `after`; ends early when Redis is lost: the client resumes."""
    yield JobEvent(id=after, type="status", data=job.model_dump(mode="json"))
    last = None
    try:
        async with aclosing(events.follow(job.id, after, caller_check)) as following:
            async for last in following:
                yield last
        if job.status.ended and last is None:  # its stream is forgotten, or was read to the end before
            yield JobEvent(id=after, type=job.status, data={"status": job.status})
    except SerinetteError as error:
        log.warning("the events of job %s break off: %s (%r)", job.id, error.message, error.__cause__)


async def _snapshot(context: RequestContext, job_id: str, last_event_id: str | None) -> tuple[Job, str]:
    """The job, and the event behind which to go on. What happens between the two reads is sent twice, never lost."""
    last, before_last = await context.parts.events.last_ids(job_id)
    job = await context.queue.get(context.tenant, job_id)
    if last_event_id is not None:
        return job, checked_event_id(last_event_id)
    return job, before_last if job.status.ended else last


async def _sse(events: JobEvents, job: Job, after: str, caller_check: CallerCheck) -> AsyncGenerator[ServerSentEvent]:
    async with aclosing(messages(events, job, after, caller_check)) as following:
        async for message in following:
            yield ServerSentEvent(message.model_dump_json(), event=message.type, id=message.id, retry=RETRY_MS)


async def _why(events: JobEvents, caller_check: CallerCheck) -> int:
    """The code to close with: reconnect elsewhere, the key is no longer valid, or the job has ended."""
    if events.closing:
        return 1012
    return 1000 if await caller_check.holds() else 1008


async def _until_gone(websocket: WebSocket, scope: anyio.CancelScope) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass
    scope.cancel()
