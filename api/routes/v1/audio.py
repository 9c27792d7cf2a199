"""The song's bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response, StreamingResponse

from api.dependencies import QueuePart, SettingsPart, StorePart, TenantPart
from api.problems import answer
from api.ranges import Span, Unsatisfiable, names_etag, requested_span
from api.routes.v1 import examples
from api.routes.v1.answers import JobId, problems
from serinette.errors import Gone, NotFinished, NotFound, RequestError
from serinette.job import Artifact, Job, JobStatus
from serinette.store import Store

router = APIRouter(tags=["jobs"])


@router.head("/jobs/{job_id}/audio", include_in_schema=False)
@router.get(
    "/jobs/{job_id}/audio",
    response_class=Response,
    summary="The song",
    responses={
        200: {"content": examples.AUDIO, "headers": examples.AUDIO_HEADERS, "description": "The song."},
        206: {"content": examples.AUDIO, "description": "The bytes asked for by `Range`."},
        304: {"description": "`If-None-Match` names the song's ETag."},
        307: {"description": "The store serves it itself: a presigned URL in `Location`."},
        416: {"description": "No byte of the song is in the `Range`."},
        **problems("not_found", "not_finished", "gone", "invalid_spec", "queue_unavailable", "store_unavailable"),
    },
)
async def audio(
    request: Request,
    job_id: JobId,
    queue: QueuePart,
    store: StorePart,
    settings: SettingsPart,
    tenant: TenantPart,
    index: Annotated[int, Query(ge=0, le=7, description="Which variation.")] = 0,
    download: Annotated[bool, Query(description="As an attachment with a name, never as a redirect.")] = False,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The encoded song, whole or in part, or a redirect to the store."""
    song = song_of(await run_in_threadpool(queue.get, tenant, job_id), index)
    headers = _headers(job_id, song, download)
    if names_etag(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method == "GET" and not download:
        # In a thread: the store's credentials may have to be fetched first.
        url = await run_in_threadpool(store.sign_get, song.key, settings.presign_s)
        if url is not None:
            return RedirectResponse(url, 307, {"Cache-Control": "no-store"})
    try:
        span = requested_span(range_, song.size_bytes) if if_range in (None, headers["ETag"]) else None
    except Unsatisfiable:
        error = RequestError(f"Range: the song has {song.size_bytes} bytes", field="Range")
        return answer(request.url.path, error, 416, {"Content-Range": f"bytes */{song.size_bytes}"})
    return await _song_response(request.method, store, song, span, headers)


def song_of(job: Job, index: int) -> Artifact:
    """One song of a job.

    Raises:
        NotFinished: it is still to be sung.
        Gone: the job ended without songs.
        NotFound: it has fewer songs.
    """
    if not job.status.ended:
        raise NotFinished(f"job {job.id} is {job.status}: its song is not ready; follow /v1/jobs/{job.id}/events")
    if job.status is not JobStatus.SUCCEEDED or job.result is None:
        reason = f": {job.error.message}" if job.error else ""
        raise Gone(f"job {job.id} {'was' if job.status is JobStatus.CANCELED else 'has'} {job.status}{reason}")
    for artifact in job.result.artifacts:
        if artifact.index == index:
            return artifact
    raise NotFound(f"index: job {job.id} has {len(job.result.artifacts)} songs, from 0", field="index")


def _headers(job_id: str, song: Artifact, download: bool) -> dict[str, str]:
    disposition = "attachment" if download else "inline"
    return {
        "ETag": f'"{song.sha256}"',
        "Accept-Ranges": "bytes",
        "Content-Type": song.content_type,
        "Content-Disposition": f'{disposition}; filename="{job_id}-{song.index}.{song.format}"',
        # The song never changes, but it can be erased: a cache asks again, and is answered 304.
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
    }


async def _song_response(
    method: str, store: Store, song: Artifact, span: Span | None, headers: dict[str, str]
) -> Response:
    status, start, end = (206, span.start, span.end) if span else (200, 0, song.size_bytes)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{song.size_bytes}"
    headers["Content-Length"] = str(end - start)
    try:
        if method == "HEAD":
            await run_in_threadpool(store.head, song.key)
            return Response(status_code=status, headers=headers)
        chunks = store.stream(song.key, start, end)
        first = await anext(chunks)  # whether the store has it must be known before the status is sent
    except NotFound as error:
        raise Gone("the song's file was erased from the store") from error
    return StreamingResponse(_with_first(first, chunks), status, headers)


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
