"""Calls that have to do with tasks, one function each. What they do is in desk.py, what they say in results.py."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.dependencies import QueuePart, SongsPart, TenantPart
from api.dialects.acestep import documented, results
from api.dialects.acestep.body import BodyPart
from api.dialects.acestep.desk import Desk, song
from api.dialects.acestep.envelope import wrapped
from api.dialects.acestep.inventory import NO_LM
from api.dialects.acestep.refusals import AceStepRoute
from api.dialects.acestep.samples import random_sample
from serinette.errors import Unsupported

router = APIRouter(route_class=AceStepRoute, tags=[documented.TAG])

DeskPart = Annotated[Desk, Depends(Desk)]
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="Ours: the same key with the same task is the same task.",
    ),
]


@router.post(
    "/release_task",
    summary="Release a task",
    openapi_extra=documented.RELEASE_BODY,
    responses=documented.answers(
        {"task_id": documented.TASK_ID, "status": "queued", "queue_position": 1, "warnings": []},
        documented.WRONG,
        documented.NOT_ALLOWED,
        documented.TAKEN,
        documented.NO_LM,
        documented.AWAY,
    ),
)
async def release_task(desk: DeskPart, idempotency_key: KeyHeader = None) -> dict[str, Any]:
    """Put songs into the queue. `warnings` says in sentences what will not be done as asked."""
    return wrapped(results.released(await desk.release(idempotency_key)))


@router.post(
    "/query_result",
    summary="Ask for tasks",
    openapi_extra=documented.QUERY_BODY,
    responses=documented.answers([results.answer(documented.TASK_ID, None)], documented.WRONG),
)
async def query_result(desk: DeskPart) -> dict[str, Any]:
    """0 waits or runs, 1 succeeded, 2 failed; `result` is JSON in a string, a record for each song."""
    return wrapped([results.answer(task_id, job) for task_id, job in await desk.find()])


@router.head("/v1/audio", include_in_schema=False)
@router.get("/v1/audio", summary="A song", response_class=Response, responses=documented.SONG)
async def audio(
    request: Request,
    queue: QueuePart,
    songs: SongsPart,
    tenant: TenantPart,
    path: Annotated[str, Query(description="The token that is `file` in a result; no path.")] = "",
) -> Response:
    """The song's file, whole or in part."""
    return await song(request, path, queue, songs, tenant)


@router.post(
    "/create_random_sample",
    summary="An example to start from",
    openapi_extra=documented.SAMPLE_BODY,
    responses=documented.answers(documented.SAMPLE),
)
async def create_random_sample(body: BodyPart, _: TenantPart) -> dict[str, Any]:
    """One of a handful of examples, drawn."""
    return wrapped(random_sample(str(body.fields.get("sample_type") or "simple_mode")))


@router.post(
    "/format_input",
    summary="Not here: better words",
    openapi_extra=documented.WORDS_BODY,
    responses=documented.NO_LM,
)
async def format_input(_: BodyPart, __: TenantPart) -> dict[str, Any]:
    """Rewriting prompt and lyrics needs the language model."""
    raise Unsupported(f"{NO_LM}; prompt and lyrics are used as they are written")


@router.post(
    "/v1/create_sample",
    summary="Not here: a song from a description",
    openapi_extra=documented.WORDS_BODY,
    responses=documented.NO_LM,
)
async def create_sample(_: BodyPart, __: TenantPart) -> dict[str, Any]:
    """Writing prompt and lyrics from a description needs the language model."""
    raise Unsupported(f"{NO_LM}; POST /create_random_sample has examples")
