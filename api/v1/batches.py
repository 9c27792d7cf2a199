"""Batches: make, look, list, pause, resume, cancel, retry, erase; and the files that an ended one leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path as File
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from api.batches.service import BatchService
from api.batches.validation import options_of, read_json, read_jsonl
from api.batches.zipping import (
    MOST_MEASURED,
    ZIP,
    Archive,
    Member,
    archive_held,
    members_of_file,
    zipped,
)
from api.dependencies import ContextPart, RequestContext, idempotency_key_header
from api.downloads import FileRequest, OtherFile
from api.problems import problems
from api.turns import HeldResponse
from api.v1 import examples
from api.v1.answers import PARTS, BatchId
from serinette.batch import MAX_LINES, PART_LINES, Batch, BatchLine, BatchOptions
from serinette.batches.lines import JSONL
from serinette.errors import Gone, InvalidBatch, InvalidSpec, NotFinished, NotFound, UnsupportedMediaType
from serinette.names import batch_errors_key, batch_output_key, tenant_of
from serinette.spec import PlainNumber

router = APIRouter(prefix="/v1", tags=["batches"])
_T = TypeVar("_T")
_ADVICE = "JSON Lines may be longer than JSON"

_JSONL = {"application/jsonl", "application/x-ndjson", "application/ndjson", "application/x-jsonlines", "text/plain"}

KeyHeader = Annotated[
    str | None,
    idempotency_key_header("Printable ASCII: the same key with the same batch is the same batch, however often sent."),
]


async def _ask_queue(context: RequestContext, act: Callable[..., _T], *given: object) -> _T:
    """Call a method of BatchService that needs Redis alone."""
    threads, batches = context.parts.batch_threads.queue, context.parts.batches
    return await threads.run(context.tenant, partial(act, batches, context.tenant, *given))


async def _ask_store(context: RequestContext, act: Callable[..., _T], *given: object) -> _T:
    """Call a method of BatchService that needs the store too."""
    threads, batches = context.parts.batch_threads.store, context.parts.batches
    return await threads.run(context.tenant, partial(act, batches, context.tenant, *given))


async def _found(batch_id: BatchId, context: ContextPart) -> Batch:
    if known := await _ask_queue(context, BatchService.known, batch_id):
        return known
    return await _ask_store(context, BatchService.get, batch_id)


BatchPart = Annotated[Batch, Depends(_found)]


class BatchList(BaseModel):
    """Batches, newest first."""

    batches: tuple[Batch, ...]


class BatchLines(BaseModel):
    """Lines of a batch, in their order. Fewer than asked for may come; of a line after the last, none."""

    lines: tuple[BatchLine, ...]


@router.post(
    "/batches",
    status_code=202,
    response_model=Batch,
    summary="Submit many songs",
    openapi_extra={"requestBody": examples.BATCH_BODY},
    responses={
        202: {
            "description": "The batch is stored; its songs are queued bit by bit.",
            "headers": examples.BATCH_HEADERS,
        },
        **problems(
            "invalid_batch",
            "unsupported",
            "idempotency_conflict",
            "lane_not_allowed",
            "too_many_in_flight",
            "store_unavailable",
        ),
    },
)
async def submit_batch(
    request: Request,
    response: Response,
    context: ContextPart,
    name: Annotated[str | None, Query(description="JSON Lines only: as `name` of a JSON body.")] = None,
    label: Annotated[
        list[str] | None,
        Query(max_length=14, description="JSON Lines only: `name=value`, as often as there are labels."),
    ] = None,
    timeout_s: Annotated[
        int | None, Query(description="JSON Lines only: as `timeout_s` of a JSON body."), PlainNumber
    ] = None,
    webhook: Annotated[str | None, Query(description="JSON Lines only: as `webhook` of a JSON body.")] = None,
    idempotency_key: KeyHeader = None,
) -> Batch:
    """JSON Lines, a spec a line, or JSON with `specs` and a `sweep` over their fields: up to 100,000 songs. Every line
    is checked before anything is kept; the problem says what is wrong in which line.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json"
    if not is_json and kind not in _JSONL:
        raise UnsupportedMediaType(
            "Content-Type: send JSON Lines as application/jsonl, or JSON as application/json", field="Content-Type"
        )
    options = None if is_json else _options(name, label or [], timeout_s, webhook)
    tenant, settings = context.tenant, context.settings
    most_bytes = settings.max_body_bytes if is_json else settings.max_batch_bytes
    async with context.parts.bodies.received(tenant, request.stream(), most_bytes, _ADVICE) as body:
        if not body.size_bytes:
            raise InvalidBatch("the body is empty; send a spec a line, or JSON with `specs`")
        read = partial(_create, context.parts.batches, tenant, body.path, options, idempotency_key)
        batch, created = await context.parts.batch_threads.checks.run(tenant, read)
    response.headers["Location"] = f"/v1/batches/{batch.id}"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    return batch


def _create(
    batches: BatchService, tenant: str, path: File, options: BatchOptions | None, idempotency_key: str | None
) -> tuple[Batch, bool]:
    if options is not None:
        return batches.create(tenant, read_jsonl(path), options, idempotency_key)
    options, lines = read_json(path)
    return batches.create(tenant, lines, options, idempotency_key)


def _options(name: str | None, labels: list[str], timeout_s: int | None, webhook: str | None) -> BatchOptions:
    pairs = [label.partition("=") for label in labels]
    if not all(key and equals for key, equals, _ in pairs):
        raise InvalidSpec("label: must be name=value", field="label")
    given = {"name": name, "timeout_s": timeout_s, "webhook": webhook}
    return options_of({**given, "labels": {key: value for key, _, value in pairs}})


@router.get("/batches", summary="Batches, newest first")
async def list_batches(
    context: ContextPart,
    limit: Annotated[int, Query(ge=1, le=100, description="Batches at most."), PlainNumber] = 20,
) -> BatchList:
    """The newest batches, unfinished and ended, as long as they are kept."""
    return BatchList(batches=tuple(await _ask_queue(context, BatchService.newest, limit)))


@router.get("/batches/{batch_id}", summary="One batch")
async def get_batch(batch: BatchPart) -> Batch:
    """Status, counts and share done. While it goes on they are a few seconds old; of an ended batch they are exact."""
    return batch


@router.get("/batches/{batch_id}/lines", summary="Lines of a batch")
async def list_batch_lines(
    batch_id: BatchId,
    context: ContextPart,
    first: Annotated[int, Query(ge=1, le=MAX_LINES, description="The first line to return, from 1."), PlainNumber] = 1,
    limit: Annotated[int, Query(ge=1, le=PART_LINES, description="Lines at most."), PlainNumber] = 100,
) -> BatchLines:
    """Each line with its job and songs, as they are now. Continue with `first` behind the last line returned."""
    return BatchLines(lines=tuple(await _ask_store(context, BatchService.lines, batch_id, first - 1, limit)))


_MOVE = problems("conflict")


@router.post("/batches/{batch_id}/pause", summary="Pause a batch", responses=_MOVE)
async def pause_batch(batch_id: BatchId, context: ContextPart) -> Batch:
    """No more lines are released. What waits in the lane or is being generated goes on."""
    return await _ask_queue(context, BatchService.pause, batch_id)


@router.post("/batches/{batch_id}/resume", summary="Resume a paused batch", responses=_MOVE)
async def resume_batch(batch_id: BatchId, context: ContextPart) -> Batch:
    """Lines are released again."""
    return await _ask_queue(context, BatchService.resume, batch_id)


@router.post("/batches/{batch_id}/cancel", summary="Cancel a batch", responses=_MOVE)
async def cancel_batch(batch_id: BatchId, context: ContextPart) -> Batch:
    """All of its jobs are canceled; it is `canceling` until the last has ended. What was generated is kept."""
    return await _ask_queue(context, BatchService.cancel, batch_id)


@router.post("/batches/{batch_id}/retry", status_code=202, summary="Retry what was not generated", responses=_MOVE)
async def retry_batch(batch_id: BatchId, context: ContextPart) -> Batch:
    """Of an ended batch the failed and the canceled lines are released once more, as new jobs with the same seeds."""
    return await _ask_store(context, BatchService.retry, batch_id)


@router.delete(
    "/batches/{batch_id}", status_code=204, summary="Erase an ended batch", responses=problems("not_finished")
)
async def erase_batch(batch_id: BatchId, context: ContextPart) -> None:
    """Its lines and files go; its jobs and their songs stay until they are erased or too old."""
    await _ask_store(context, BatchService.erase, batch_id)


async def _ended(batch: BatchPart) -> Batch:
    if not batch.status.ended:
        raise NotFinished(
            f"batch {batch.id} is {batch.status}: its files come with its end; /v1/batches/{batch.id}/lines has "
            "what has become of its lines so far"
        )
    return batch


EndedPart = Annotated[Batch, Depends(_ended)]

_FILE = {**PARTS, **problems("not_finished", "gone")}
_LINES = {"type": "string", "description": "A BatchLine as JSON on each line."}
_JSONL_FILE = {200: {"content": {JSONL: {"schema": _LINES}}, "description": "In the order of the lines."}, **_FILE}
_NAMES = "Named by their lines, e.g. 000017-yourname.mp3."
_ZIP_FILE = {200: {"content": {ZIP: examples.BINARY}, "description": _NAMES}, **_FILE}


@router.get(
    "/batches/{batch_id}/output.jsonl",
    response_class=Response,
    summary="The lines that were generated",
    responses=_JSONL_FILE,
)
async def get_batch_output(batch: EndedPart, request: Request, context: ContextPart) -> Response:
    """Each line's job, seed and songs. Written when the batch ends, and again when it was retried."""
    return await _file(context, request, batch_output_key(context.tenant, batch.id, batch.round), f"{batch.id}-output")


@router.get(
    "/batches/{batch_id}/errors.jsonl",
    response_class=Response,
    summary="The lines that were not generated",
    responses=_JSONL_FILE,
)
async def get_batch_errors(batch: EndedPart, request: Request, context: ContextPart) -> Response:
    """Each failed line's error, and the canceled ones."""
    return await _file(context, request, batch_errors_key(context.tenant, batch.id, batch.round), f"{batch.id}-errors")


@router.get(
    "/batches/{batch_id}/songs.zip",
    response_class=Response,
    summary="The songs",
    responses=_ZIP_FILE,
)
async def get_batch_songs(batch: EndedPart, request: Request, context: ContextPart) -> Response:
    """All songs in one file, uncompressed, made while it is sent. Those erased meanwhile are named in missing.txt. Of
    more than 2,000 songs it has no length and no ranges.
    """
    downloads, store, file_request = context.parts.downloads, context.parts.store, FileRequest.of(request)
    output = await _found_file(context, batch_output_key(context.tenant, batch.id, batch.round))
    name, members = f"{batch.id}.zip", partial(members_of_file, store, output.key)
    if known := archive_held(output, file_request.if_none_match):
        return Response(status_code=304, headers={"ETag": known, "Cache-Control": "private, no-cache"})
    few: list[Member] = []
    async for member in members():
        few.append(member)
        if len(few) > MOST_MEASURED:
            break
    else:
        archive = await downloads.threads.run(context.tenant, partial(Archive.of, store, few, output))
        return await downloads.serve(archive, file_request, name, download=True, made=archive.between)
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "private, no-cache"}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=ZIP)
    whole = StreamingResponse(zipped(store, members()), 200, headers, ZIP)
    return HeldResponse(whole, downloads.sending.of(context.tenant))


async def _file(context: RequestContext, request: Request, key: str, name: str) -> Response:
    found, asked = await _found_file(context, key), FileRequest.of(request)
    return await context.parts.downloads.serve(found, asked, f"{name}.jsonl", download=True)


async def _found_file(context: RequestContext, key: str) -> OtherFile:
    try:
        found = await context.parts.downloads.threads.run(tenant_of(key), partial(context.parts.store.head, key))
    except NotFound as error:
        raise Gone("the batch's files were erased from the store") from error
    return OtherFile(key, found.size_bytes, (found.etag or str(found.size_bytes)).strip('"'), JSONL)
