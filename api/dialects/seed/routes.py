"""The seed's calls. What becomes of a request is in table.py, what is answered in answers.py."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Body, Form, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, RedirectResponse, Response

from api.dependencies import ContextPart
from api.dialects.dialect import JobAccess, JobAccessPart, KeyHeader, example, job_access_of, refusing
from api.dialects.seed import answers
from api.dialects.seed.request import (
    GenerateMusicForm,
    GenerateMusicRequest,
    GenerateMusicWithAudio,
    GenerateMusicWithBase64,
)
from api.dialects.seed.table import convert, record_of
from api.problems import Responses
from serinette.job import Job, JobStatus
from serinette.spec import AudioFormat, PlainNumber, TextInt

TAG: Final = "ACE-Step v1 dialect"
router = APIRouter(route_class=refusing(answers.refuse), tags=[TAG])

# What a client can be expected to read as one JSON text.
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
_SYNC: Responses = {200: _SONG, 303: _NOT_YET}


class InitializeRequest(BaseModel):
    """v1's settings of a model. Here workers have their own: these are checked and otherwise ignored."""

    model_config = ConfigDict(frozen=True)

    checkpoint_path: str = ""
    device_id: TextInt = 0
    bf16: bool = True
    torch_compile: bool = False
    cpu_offload: bool = False
    overlapped_decode: bool = False


class ResultQuery(BaseModel):
    """What to answer where a song is asked for; the query of GET /result/{id}."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal["file", "json"] = Field("file", description="What to answer.")
    wait: Annotated[float, Field(ge=0), PlainNumber] = Field(
        0, description="Seconds to wait for the song, bounded by the server; then 303."
    )
    sync: bool = Field(False, description="Set by the redirects of calls that wait: how to report a failure.")


async def _submit(
    body: GenerateMusicRequest,
    access: JobAccess,
    idempotency_key: str | None,
    upload_id: str | None = None,
    only: AudioFormat | None = None,
) -> Job:
    # Of the key, if there is one: a request that is sent again asks for the same song.
    draw = random.Random(idempotency_key).randrange  # noqa: S311  # no secret
    conversion = convert(body, upload_id, draw, only=only)
    record = record_of(conversion)
    record |= {} if only is None else {"return_file_data": "true"}
    return await access.submit(conversion, record, idempotency_key)


@router.post(
    "/generate_music_async",
    response_model=dict[str, Any],
    responses=example({"request_id": _ID} | answers.QUEUED),
)
async def generate_music_async(
    body: Annotated[GenerateMusicRequest, Body()], http: Request, idempotency_key: KeyHeader = None
) -> Response:
    """Put a song into the queue and answer at once, with the id to ask by."""
    job = await _submit(body, job_access_of(http), idempotency_key)
    return JSONResponse({"request_id": job.id} | answers.QUEUED)


@router.post("/generate_music", responses=_SYNC, response_class=Response)
async def generate_music(
    body: GenerateMusicRequest, access: JobAccessPart, http: Request, idempotency_key: KeyHeader = None
) -> Response:
    """Generate a song, and answer where it is; with `return_file_data` the song itself. Where the operator set
    `SERINETTE_GENERATE_MUSIC_WAITS=false`: answer the request's id at once.
    """
    job = await _submit(body, access, idempotency_key)
    if not access.settings.generate_music_waits:
        return JSONResponse({"success": True, "request_id": job.id})
    format: Literal["file", "json"] = "file" if body.return_file_data else "json"
    wanted = ResultQuery(format=format, wait=access.settings.max_wait_s, sync=True)
    return await _answer(http, access, job, wanted)


_Form = Annotated[GenerateMusicForm, Form()]
_FileForm = Annotated[GenerateMusicWithAudio, Form(media_type="multipart/form-data")]
_Base64Form = Annotated[GenerateMusicWithBase64, Form()]

# Calls with one shape of answer: the body, the one format that they answer, and whether they wait for the song.
_GENERATING: Final[tuple[tuple[str, Any, AudioFormat | None, bool], ...]] = (
    ("/generate_music_direct", GenerateMusicRequest, None, True),
    ("/generate_music_form", _Form, None, True),
    ("/generate_music_with_audio", _FileForm, None, False),
    ("/generate_music_with_audio_base64", _Base64Form, None, False),
    ("/generate_music_with_audio_json", GenerateMusicWithBase64, None, False),
    ("/generate_music_with_audio_mp3", _FileForm, AudioFormat.MP3, False),
    ("/generate_music_with_audio_json_mp3", GenerateMusicWithBase64, AudioFormat.MP3, False),
    ("/generate_music_with_audio_direct_mp3", _FileForm, AudioFormat.MP3, True),
)
BASE64_PATHS: Final = tuple(path for path, kind, _, _ in _GENERATING if kind in (_Base64Form, GenerateMusicWithBase64))


def _generating(kind: object, only: AudioFormat | None, *, waits: bool) -> Callable[..., Awaitable[Response]]:
    async def generate_music(
        body: GenerateMusicRequest, access: JobAccessPart, http: Request, idempotency_key: KeyHeader = None
    ) -> Response:
        """A cover, where audio comes with the request."""
        file_name = upload_id = None
        if isinstance(body, GenerateMusicWithAudio):
            file_name = body.audio_file.filename
            upload_id = await access.keep("audio_file", body.audio_file, idempotency_key)
        elif isinstance(body, GenerateMusicWithBase64):
            upload_id = await access.keep_base64("audio_base64", body.audio_base64, idempotency_key)
        job = await _submit(body, access, idempotency_key, upload_id, only)
        if waits:
            return await _answer(http, access, job, ResultQuery(wait=access.settings.max_wait_s, sync=True))
        in_base64 = isinstance(body, GenerateMusicWithBase64)
        return JSONResponse(answers.queued_with_audio(job, file_name, base64=in_base64))

    generate_music.__annotations__["body"] = kind
    return generate_music


for path, kind, only, waits in _GENERATING:
    queued = example({"success": True, "request_id": _ID, "message": "Audio file uploaded and queued for processing."})
    router.add_api_route(
        path,
        _generating(kind, only, waits=waits),
        methods=["POST"],
        name=path.removeprefix("/"),
        summary=f"{'Cover of a file' if 'audio' in path else 'A song'}{', as mp3' if only else ''}"
        f"{', and wait for it' if waits else ''}",
        responses=_SYNC if waits else queued,
        response_class=Response,
    )


@router.get(
    "/status/{request_id}",
    response_model=dict[str, Any],
    responses=example(
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
    return JSONResponse(answers.status(await job_access_of(http).get(request_id)))


@router.get("/result/{request_id}", responses=_SYNC | {400: _NO_SONG}, response_class=Response)
async def result(
    request_id: str, wanted: Annotated[ResultQuery, Query()], access: JobAccessPart, http: Request
) -> Response:
    """The song: the file itself, or JSON with `?format=json`."""
    return await _answer(http, access, await access.get(request_id), wanted)


@router.delete(
    "/request/{request_id}",
    responses=example({"message": "Request cancelled"}) | {400: {"description": "It has ended already."}},
)
async def cancel(request_id: str, access: JobAccessPart) -> Response:
    """Cancel a request, whether it waits or is being generated."""
    job, canceled = await access.cancel(request_id)
    if canceled:
        return JSONResponse({"message": "Request cancelled"})
    return JSONResponse({"detail": f"Cannot cancel request in {answers.status_word(job)} status"}, 400)


@router.get("/queue/status", responses=example(answers.queue([])))
async def queue_status(context: ContextPart) -> dict[str, Any]:
    """How many requests there are, by status."""
    return answers.queue(await context.queue.pools())


@router.get("/sample_data", responses=example(answers.sample()))
async def sample_data() -> dict[str, Any]:
    """A request to try."""
    return answers.sample()


@router.post("/initialize", responses=example(answers.initialized([])))
async def initialize(
    context: ContextPart, query: Annotated[InitializeRequest, Query()], body: InitializeRequest | None = None
) -> dict[str, Any]:
    """Whether a worker has its model. Nothing is loaded by this call."""
    sent = sorted(query.model_fields_set | (body.model_fields_set if body else set()))
    return answers.initialized(await context.queue.pools()) | {"ignored": sent}


async def _answer(http: Request, access: JobAccess, job: Job, wanted: ResultQuery) -> Response:
    """The song as it is wanted, or why there is none, or where to ask again."""
    as_json = wanted.format == "json"
    job = await access.hold(job, wanted.wait, refuse=http.method != "POST")  # what was submitted is not refused
    if job.status is JobStatus.SUCCEEDED and as_json:
        return await _song_as_json(access, job)
    if job.status is JobStatus.SUCCEEDED:
        return await access.song(http, answers.artifact(job), answers.file_name(job), download=True)
    if not job.status.ended and wanted.wait:
        query = {"wait": f"{min(wanted.wait, access.settings.max_wait_s):g}"}
        query |= {"format": "json"} if as_json else {}
        query |= {"sync": "true"} if wanted.sync else {}
        return RedirectResponse(f"{answers.audio_path(job)}?{urlencode(query)}", 303)
    if not (wanted.sync and job.status.ended):
        return JSONResponse(answers.not_completed(job), 400)
    if as_json:
        return JSONResponse(answers.failed(job))
    return JSONResponse({"detail": answers.failure(job)}, 500)


async def _song_as_json(access: JobAccess, job: Job) -> Response:
    artifact, answer = answers.artifact(job), answers.song_with_facts(job)
    if not answers.wants_bytes(job) or artifact.size_bytes > _MAX_INLINE_BYTES:
        return JSONResponse(answer)
    before, after = json.dumps(answer | {"audio": ""}).encode()[:-2], b'"}'
    return await access.parts.downloads.in_base64([before, artifact, after], "application/json")
