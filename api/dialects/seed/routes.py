"""The seed's calls. What becomes of a request is in table.py, what is answered in answers.py."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Form, Path, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from api.dependencies import QueuePart, context_of
from api.dialects.dialect import JobAccess, JobAccessPart, example, refusing
from api.dialects.seed import answers
from api.dialects.seed.request import GenerateMusicRequest
from api.dialects.seed.table import convert, record_of
from api.problems import Responses
from serinette.job import Job, JobStatus

TAG: Final = "ACE-Step v1 dialect"
router = APIRouter(route_class=refusing(answers.refuse), tags=[TAG])

# In base64 and JSON a file takes several times its size in memory.
_MAX_INLINE_BYTES = 64 * 1024 * 1024
_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"
_SONG = {
    "description": "The song as a file, or as JSON where that was asked for.",
    "content": {"audio/wav": {"schema": {"type": "string", "format": "binary"}}, "application/json": {}},
}
_NOT_YET = {
    "description": "Not generated yet: ask the URL in `Location`. HTTP clients that follow redirects end with the song."
}
_NO_SONG = {"description": "There is no song, or not yet: `Request is pending, not completed`."}
_UNKNOWN = {"description": "`Request not found`."}
_SYNC: Responses = {200: _SONG, 303: _NOT_YET}
_BY_ID: Responses = {404: _UNKNOWN}


class GenerateMusicWithAudio(GenerateMusicRequest):
    """The same as a form, with a file to make a cover of. Blank fields count as left out."""

    audio_file: UploadFile = Field(description="Audio of any common format.")


class InitializeRequest(BaseModel):
    """v1's settings of a model. Here workers have their own: these are checked and otherwise ignored."""

    model_config = ConfigDict(frozen=True)

    checkpoint_path: str = ""
    device_id: int = 0
    bf16: bool = True
    torch_compile: bool = False
    cpu_offload: bool = False
    overlapped_decode: bool = False


class ResultQuery(BaseModel):
    """What to answer where a song is asked for; the query of GET /result/{id}."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal["file", "json"] = Field("file", description="What to answer.")
    wait: float = Field(0, ge=0, description="Seconds to wait for the song, bounded by the server; then 303.")
    sync: bool = Field(False, description="Set by the redirects of calls that wait: how to report a failure.")


async def _submit(body: GenerateMusicRequest, access: JobAccess, upload_id: str | None = None) -> Job:
    conversion = convert(body, upload_id)
    return await access.submit(conversion, record_of(conversion))


@router.post(
    "/generate_music_async",
    response_model=dict[str, Any],
    responses=example({"request_id": _ID, "status": "queued", "message": "Request has been queued for processing"}),
)
async def generate_music_async(body: Annotated[GenerateMusicRequest, Body()], http: Request) -> Response:
    """Put a song into the queue and answer at once, with the id to ask by."""
    return JSONResponse(answers.queued(await _submit(body, JobAccess(context_of(http)))))


@router.post("/generate_music", responses=_SYNC, response_class=Response)
async def generate_music(body: GenerateMusicRequest, access: JobAccessPart, http: Request) -> Response:
    """Generate a song, and answer where it is; with `return_file_data` the song itself."""
    format: Literal["file", "json"] = "file" if body.return_file_data else "json"
    wanted = ResultQuery(format=format, wait=access.max_wait_s, sync=True)
    return await _answer(http, access, await _submit(body, access), wanted)


@router.post("/generate_music_direct", responses=_SYNC, response_class=Response)
async def generate_music_direct(body: GenerateMusicRequest, access: JobAccessPart, http: Request) -> Response:
    """Generate a song, and answer the song itself."""
    wanted = ResultQuery(wait=access.max_wait_s, sync=True)
    return await _answer(http, access, await _submit(body, access), wanted)


@router.post(
    "/generate_music_with_audio",
    responses=example(
        {"success": True, "request_id": _ID, "message": "Audio file uploaded and queued for processing."}
    ),
)
async def generate_music_with_audio(
    body: Annotated[GenerateMusicWithAudio, Form(media_type="multipart/form-data")], access: JobAccessPart
) -> dict[str, Any]:
    """Put a cover of the uploaded audio into the queue."""
    upload_id = await access.keep("audio_file", body.audio_file)
    return answers.queued_with_audio(await _submit(body, access, upload_id), body.audio_file.filename)


@router.get(
    "/status/{request_id}",
    response_model=dict[str, Any],
    responses=_BY_ID
    | example(
        {
            "request_id": _ID,
            "status": "completed",
            "created_at": 1760000000.0,
            "started_at": 1760000001.0,
            "completed_at": 1760000020.0,
            "result": {"success": True, "audio_path": f"/result/{_ID}", "params_json": {"actual_seeds": [42]}},
        }
    ),
)
async def status(request_id: Annotated[str, Path()], http: Request) -> Response:
    """pending, processing, completed or failed; times are Unix seconds."""
    return JSONResponse(answers.status(await JobAccess(context_of(http)).get(request_id)))


@router.get("/result/{request_id}", responses=_BY_ID | _SYNC | {400: _NO_SONG}, response_class=Response)
async def result(
    request_id: str, wanted: Annotated[ResultQuery, Query()], access: JobAccessPart, http: Request
) -> Response:
    """The song: the file itself, or JSON with `?format=json`."""
    return await _answer(http, access, await access.get(request_id), wanted)


@router.delete(
    "/request/{request_id}",
    responses=_BY_ID | example({"message": "Request cancelled"}) | {400: {"description": "It has ended already."}},
)
async def cancel(request_id: str, access: JobAccessPart) -> Response:
    """Cancel a request, whether it waits or is being generated."""
    job, canceled = await access.cancel(request_id)
    return JSONResponse(
        {"message": "Request cancelled"} if canceled else answers.not_cancelable(job), 200 if canceled else 400
    )


@router.get("/queue/status", responses=example(answers.queue(waiting=1, running=1, completed=5, failed=0)))
async def queue_status(queue: QueuePart) -> dict[str, Any]:
    """How many requests there are, by status."""
    pools = await queue.pools()
    return answers.queue(
        waiting=sum(sum(pool.waiting.values()) for pool in pools),
        running=sum(pool.running for pool in pools),
        completed=sum(pool.succeeded for pool in pools),
        failed=sum(pool.unsuccessful for pool in pools),
    )


@router.get("/sample_data", responses=example(answers.sample()))
async def sample_data() -> dict[str, Any]:
    """A request to try."""
    return answers.sample()


@router.post("/initialize", responses=example(answers.initialized([])))
async def initialize(
    queue: QueuePart, query: Annotated[InitializeRequest, Query()], body: InitializeRequest | None = None
) -> dict[str, Any]:
    """Whether a worker has its model. Nothing is loaded by this call."""
    sent = sorted(query.model_fields_set | (body.model_fields_set if body else set()))
    return answers.initialized(await queue.pools()) | {"ignored": sent}


async def _answer(http: Request, access: JobAccess, job: Job, wanted: ResultQuery) -> Response:
    """The song as it is wanted, or why there is none, or where to ask again."""
    as_json = wanted.format == "json"
    job = await access.wait(job, wanted.wait)
    if job.status is JobStatus.SUCCEEDED and as_json:
        return await _song_as_json(access, job)
    if job.status is JobStatus.SUCCEEDED:
        return await access.song(http, answers.artifact(job), answers.file_name(job), download=True)
    if not job.status.ended and wanted.wait:
        query = {"wait": f"{min(wanted.wait, access.max_wait_s):g}"}
        query |= {"format": "json"} if as_json else {}
        query |= {"sync": "true"} if wanted.sync else {}
        path = f"{http.scope.get('root_path', '')}{answers.audio_path(job)}"
        return RedirectResponse(f"{path}?{urlencode(query)}", 303)
    if not (wanted.sync and job.status.ended):
        return JSONResponse(answers.not_completed(job), 400)
    failure = answers.failure(job)
    return JSONResponse(answers.unsuccessful(failure)) if as_json else JSONResponse({"detail": failure}, 500)


async def _song_as_json(access: JobAccess, job: Job) -> Response:
    artifact = answers.artifact(job)
    if not answers.wants_bytes(job) or artifact.size_bytes > _MAX_INLINE_BYTES:
        return JSONResponse(answers.song_with_bytes(job, None))
    audio = await access.audio_of(artifact)
    # Of a long song, base64 and JSON take longer than the event loop may be held up.
    return await run_in_threadpool(lambda: JSONResponse(answers.song_with_bytes(job, audio)))
