"""Batches: make, look, list, pause, resume, cancel, retry, erase; and the files that an ended one leaves."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path as File
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from api.batches.service import BatchService
from api.batches.validation import options_of, read_json, read_jsonl
from api.batches.zipping import zipped
from api.dependencies import BatchesPart, BatchThreadsPart, SettingsPart, StorePart, TenantPart, idempotency_key_header
from api.problems import problems
from api.v1 import examples
from serinette.batch import MAX_LINES, PART_LINES, Batch, BatchLine, BatchOptions
from serinette.batches.lines import JSONL
from serinette.errors import Gone, InvalidBatch, InvalidSpec, NotFinished, NotFound, TooLarge, UnsupportedMediaType
from serinette.names import batch_errors_key, batch_output_key
from serinette.store import Store

router = APIRouter(prefix="/v1", tags=["batches"])

_BATCH_ID = re.compile(r"batch-[0-9a-f]{32}")
_JSONL = {"application/jsonl", "application/x-ndjson", "application/ndjson", "application/x-jsonlines", "text/plain"}

KeyHeader = Annotated[
    str | None,
    idempotency_key_header("Printable ASCII: the same key with the same batch is the same batch, however often sent."),
]


async def _checked_batch_id(
    batch_id: Annotated[str, Path(description="The `id` that the batch was created with.")],
) -> str:
    if not _BATCH_ID.fullmatch(batch_id):
        raise NotFound(f"there is no batch {batch_id[:80]}")
    return batch_id


BatchId = Annotated[str, Depends(_checked_batch_id)]


async def _found(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> Batch:
    if known := await threads.queue.run(tenant, partial(batches.known, tenant, batch_id)):
        return known
    return await threads.store.run(tenant, partial(batches.get, tenant, batch_id))


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
            "invalid_spec",
            "unsupported",
            "too_large",
            "unsupported_media_type",
            "idempotency_conflict",
            "lane_not_allowed",
            "too_many_in_flight",
            "queue_unavailable",
            "store_unavailable",
        ),
    },
)
async def create(
    request: Request,
    response: Response,
    batches: BatchesPart,
    threads: BatchThreadsPart,
    settings: SettingsPart,
    tenant: TenantPart,
    name: Annotated[str | None, Query(description="JSON Lines only: as `name` of a JSON body.")] = None,
    label: Annotated[
        list[str] | None,
        Query(max_length=14, description="JSON Lines only: `name=value`, as often as there are labels."),
    ] = None,
    timeout_s: Annotated[int | None, Query(description="JSON Lines only: as `timeout_s` of a JSON body.")] = None,
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
    async with threads.bodies.of(tenant):
        with tempfile.TemporaryDirectory(prefix="serinette-batch-") as directory:
            path = File(directory) / "body"
            await _spool(request, path, settings.max_body_bytes if is_json else settings.max_batch_bytes)
            read = partial(_create, batches, tenant, path, options, idempotency_key)
            batch, created = await threads.checks.run(tenant, read)
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


async def _spool(request: Request, path: File, most: int) -> None:
    size = 0
    async with await anyio.open_file(path, "wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise TooLarge(f"the batch is longer than the {most} bytes allowed; JSON Lines may be longer than JSON")
            await file.write(chunk)
    if not size:
        raise InvalidBatch("the body is empty; send a spec a line, or JSON with `specs`")


@router.get("/batches", summary="Batches, newest first", responses=problems("invalid_spec", "queue_unavailable"))
async def list_batches(
    batches: BatchesPart,
    threads: BatchThreadsPart,
    tenant: TenantPart,
    limit: Annotated[int, Query(ge=1, le=100, description="Batches at most.")] = 20,
) -> BatchList:
    """The newest batches, unfinished and ended, as long as they are kept."""
    return BatchList(batches=tuple(await threads.queue.run(tenant, partial(batches.newest, tenant, limit))))


_LOOK = problems("not_found", "queue_unavailable", "store_unavailable")
_MOVE = problems("not_found", "conflict", "queue_unavailable", "store_unavailable")


@router.get("/batches/{batch_id}", summary="One batch", responses=_LOOK)
async def look(batch: BatchPart) -> Batch:
    """Status, counts and share done. While it goes on they are a few seconds old; of an ended batch they are exact."""
    return batch


@router.get(
    "/batches/{batch_id}/lines",
    summary="Lines of a batch",
    responses={**_LOOK, **problems("invalid_spec")},
)
async def lines(
    batch_id: BatchId,
    batches: BatchesPart,
    threads: BatchThreadsPart,
    tenant: TenantPart,
    first: Annotated[int, Query(ge=1, le=MAX_LINES, description="The first line to return, from 1.")] = 1,
    limit: Annotated[int, Query(ge=1, le=PART_LINES, description="Lines at most.")] = 100,
) -> BatchLines:
    """Each line with its job and songs, as they are now. Continue with `first` behind the last line returned."""
    return BatchLines(
        lines=tuple(await threads.store.run(tenant, partial(batches.lines, tenant, batch_id, first - 1, limit)))
    )


@router.post("/batches/{batch_id}/pause", summary="Pause a batch", responses=_MOVE)
async def pause(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> Batch:
    """No more lines are released. What waits in the lane or is being generated goes on."""
    return await threads.queue.run(tenant, partial(batches.pause, tenant, batch_id))


@router.post("/batches/{batch_id}/resume", summary="Resume a paused batch", responses=_MOVE)
async def resume(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> Batch:
    """Lines are released again."""
    return await threads.queue.run(tenant, partial(batches.resume, tenant, batch_id))


@router.post("/batches/{batch_id}/cancel", summary="Cancel a batch", responses=_MOVE)
async def cancel(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> Batch:
    """All of its jobs are canceled; it is `canceling` until the last has ended. What was generated is kept."""
    return await threads.queue.run(tenant, partial(batches.cancel, tenant, batch_id))


@router.post("/batches/{batch_id}/retry", status_code=202, summary="Retry what was not generated", responses=_MOVE)
async def retry(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> Batch:
    """Of an ended batch the failed and the canceled lines are released once more, as new jobs with the same seeds."""
    return await threads.store.run(tenant, partial(batches.retry, tenant, batch_id))


@router.delete(
    "/batches/{batch_id}",
    status_code=204,
    summary="Erase an ended batch",
    responses=problems("not_found", "not_finished", "queue_unavailable", "store_unavailable"),
)
async def erase(batch_id: BatchId, batches: BatchesPart, threads: BatchThreadsPart, tenant: TenantPart) -> None:
    """Its lines and files go; its jobs and their songs stay until they are erased or too old."""
    await threads.store.run(tenant, partial(batches.erase, tenant, batch_id))


async def _ended(batch: BatchPart) -> Batch:
    if not batch.status.ended:
        raise NotFinished(
            f"batch {batch.id} is {batch.status}: its files come with its end; /v1/batches/{batch.id}/lines has "
            "what has become of its lines so far"
        )
    return batch


EndedPart = Annotated[Batch, Depends(_ended)]

_FILE = problems("not_found", "not_finished", "gone", "queue_unavailable", "store_unavailable")
_JSONL_BODY = {"content": {JSONL: {"schema": {"type": "string", "description": "A BatchLine as JSON on each line."}}}}
_ZIP_BODY = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/batches/{batch_id}/output.jsonl",
    response_class=Response,
    summary="The lines that were generated",
    responses={200: {**_JSONL_BODY, "description": "In the order of the lines."}, **_FILE},
)
async def output(batch: EndedPart, store: StorePart, tenant: TenantPart) -> Response:
    """Each line's job, seed and songs. Written when the batch ends, and again when it was retried."""
    return await _file(store, batch_output_key(tenant, batch.id, batch.round), f"{batch.id}-output.jsonl")


@router.get(
    "/batches/{batch_id}/errors.jsonl",
    response_class=Response,
    summary="The lines that were not generated",
    responses={200: {**_JSONL_BODY, "description": "In the order of the lines."}, **_FILE},
)
async def errors(batch: EndedPart, store: StorePart, tenant: TenantPart) -> Response:
    """Each failed line's error, and the canceled ones."""
    return await _file(store, batch_errors_key(tenant, batch.id, batch.round), f"{batch.id}-errors.jsonl")


@router.get(
    "/batches/{batch_id}/songs.zip",
    response_class=Response,
    summary="The songs",
    responses={200: {**_ZIP_BODY, "description": "Named by their lines, e.g. 000017-yourname.mp3."}, **_FILE},
)
async def songs(batch: EndedPart, store: StorePart, tenant: TenantPart) -> Response:
    """All songs in one file, uncompressed, made while it is sent. Those erased meanwhile are named in missing.txt."""
    lines = _lines(await _opened(store, batch_output_key(tenant, batch.id, batch.round)))
    return StreamingResponse(zipped(store, lines), 200, _headers(f"{batch.id}.zip"), "application/zip")


async def _file(store: Store, key: str, name: str) -> Response:
    return StreamingResponse(await _opened(store, key), 200, _headers(name), JSONL)


async def _opened(store: Store, key: str) -> AsyncIterator[bytes]:
    """The file's chunks; whether the store has it is known before an answer begins."""
    chunks = store.stream(key)
    try:
        first = await anext(chunks, b"")
    except NotFound as error:
        raise Gone("the batch's files were erased from the store") from error

    async def all_of_it() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return all_of_it()


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[BatchLine]:
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield BatchLine.model_validate_json(line)


def _headers(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "private, no-cache"}
