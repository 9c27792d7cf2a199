"""What an ended batch leaves: its lines as files, its songs as a zip."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response, StreamingResponse

from api.batches.zipping import zipped
from api.dependencies import StorePart, TenantPart
from api.v1.answers import problems
from api.v1.batches import BatchPart
from serinette.batch import Batch, BatchLine
from serinette.batches.files import JSONL
from serinette.errors import Gone, NotFinished, NotFound
from serinette.names import batch_errors_key, batch_output_key
from serinette.store import Store

router = APIRouter(prefix="/v1", tags=["batches"])


async def _ended(batch: BatchPart) -> Batch:
    if not batch.status.ended:
        raise NotFinished(
            f"batch {batch.id} is {batch.status}: its files come with its end; /v1/batches/{batch.id}/lines has "
            "what has become of its lines so far"
        )
    return batch


EndedPart = Annotated[Batch, Depends(_ended)]

_REFUSALS = problems("not_found", "not_finished", "gone", "queue_unavailable", "store_unavailable")
_JSONL = {"content": {JSONL: {"schema": {"type": "string", "description": "A BatchLine as JSON on each line."}}}}
_ZIP = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/batches/{batch_id}/output.jsonl",
    response_class=Response,
    summary="The lines that were generated",
    responses={200: {**_JSONL, "description": "In the order of the lines."}, **_REFUSALS},
)
async def output(batch: EndedPart, store: StorePart, tenant: TenantPart) -> Response:
    """Each line's job, seed and songs. Written when the batch ends, and again when it was retried."""
    return await _file(store, batch_output_key(tenant, batch.id, batch.round), f"{batch.id}-output.jsonl")


@router.get(
    "/batches/{batch_id}/errors.jsonl",
    response_class=Response,
    summary="The lines that were not generated",
    responses={200: {**_JSONL, "description": "In the order of the lines."}, **_REFUSALS},
)
async def errors(batch: EndedPart, store: StorePart, tenant: TenantPart) -> Response:
    """Each failed line's error, and the canceled ones."""
    return await _file(store, batch_errors_key(tenant, batch.id, batch.round), f"{batch.id}-errors.jsonl")


@router.get(
    "/batches/{batch_id}/songs.zip",
    response_class=Response,
    summary="The songs",
    responses={200: {**_ZIP, "description": "Named by their lines, e.g. 000017-yourname.mp3."}, **_REFUSALS},
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
