"""POST /v1/chat/completions. What becomes of a request is in table.py, what is answered in answers.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from api.dialects.chat import answers
from api.dialects.chat.request import ChatRequest
from api.dialects.chat.table import convert, record_of
from api.dialects.dialect import JobAccess, JobAccessPart, KeyHeader, example, refusing
from api.problems import Responses
from api.request_checks import prefix_of
from api.turns import HeldResponse
from serinette.errors import SerinetteError
from serinette.job import Job, JobStatus
from serinette.spec import PlainNumber

TAG: Final = "Chat completions dialect"
router = APIRouter(route_class=refusing(answers.refuse), tags=[TAG])

# How often a stream shows that it lives, as ACE-Step 1.5's server does.
HEARTBEAT_S: Final = 2.0
_UNBUFFERED: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_AUDIO: Final = [{"type": "audio_url", "audio_url": {"url": "data:audio/mpeg;base64,SUQzBAAA"}}]
_EXAMPLE: Final = {
    "id": "chatcmpl-2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10",
    "object": "chat.completion",
    "created": 1_760_000_000,
    "model": "acestep-v15-turbo",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "## Metadata\n**Caption:** a waltz", "audio": _AUDIO},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "warnings": [],
}
_ANSWERS: Final[Responses] = {
    **example(_EXAMPLE),
    303: {"description": "Not generated yet: ask the URL in `Location`; clients that follow redirects end with it."},
}
_ANSWERS[200]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
_ERASED: Final[Responses] = {410: {"description": "Its file was erased."}}


@router.post("/v1/chat/completions", responses=_ANSWERS, response_class=Response)
async def chat_completions(
    body: ChatRequest, access: JobAccessPart, http: Request, idempotency_key: KeyHeader = None
) -> Response:
    """Generate what the last message of the user asks for; the song comes as a data URL, an mp3 unless asked for."""
    models = await access.models()
    convert(body, ["upload"] * len(body.audio), models).spec()  # before audio is kept that is of no use
    async with AsyncExitStack() as held:
        if body.stream:  # refused before anything is submitted
            await held.enter_async_context(access.parts.events.streams.of(access.tenant))
        uploads = [await access.keep_base64("messages", audio, idempotency_key) for audio in body.audio[:2]]
        conversion = convert(body, uploads, models)
        job = await access.submit(conversion, record_of(conversion), idempotency_key)
        if body.stream:
            stream = StreamingResponse(_events(http, access, job), headers=_UNBUFFERED, media_type="text/event-stream")
            return HeldResponse(stream, held.pop_all())
    return await _answer(http, access, job, access.settings.max_wait_s)


@router.get("/v1/chat/completions/{job_id}", responses=_ANSWERS | _ERASED, response_class=Response)
async def chat_completion(
    job_id: str,
    access: JobAccessPart,
    http: Request,
    wait: Annotated[float, Query(ge=0, allow_inf_nan=False), PlainNumber] = 0,
) -> Response:
    """The same answer once more, or for the first time: where redirects of a call that waits lead to."""
    return await _answer(http, access, await access.get(job_id.removeprefix("chatcmpl-")), wait)


@router.get("/api/v1/models", responses=example(answers.listed(["acestep-v15-turbo"])))
async def models(access: JobAccessPart) -> dict[str, Any]:
    """The models, as at GET /v1/models."""
    return answers.listed(sorted(await access.models()))


async def _answer(http: Request, access: JobAccess, job: Job, wait_s: float) -> Response:
    job = await access.hold(job, wait_s, refuse=http.method != "POST")  # what was submitted is not refused
    if job.status is JobStatus.SUCCEEDED:
        return await access.parts.downloads.in_base64(answers.completion(job, _base_url(http)), "application/json")
    if job.status.ended:
        # OpenAI's SDKs repeat a 500 twice, and each would generate a song.
        return JSONResponse(answers.failure(job), 500, {"x-should-retry": "false"})
    return RedirectResponse(f"/v1/chat/completions/{job.id}?wait={access.settings.max_wait_s:g}", 303)


async def _events(http: Request, access: JobAccess, job: Job) -> AsyncIterator[bytes]:
    yield answers.chunk(job, {"role": "assistant", "content": "Generating music"})
    try:
        while not job.status.ended:
            if access.parts.events.closing:
                yield _last(f"the server restarts; the song goes on: GET /v1/chat/completions/{job.id}?wait=50")
                return
            job = await access.wait(job, HEARTBEAT_S)
            if not job.status.ended:
                yield answers.chunk(job, {"content": "."})
        async for part in access.parts.downloads.texts(list(answers.last_chunks(job, _base_url(http)))):
            yield part
    except SerinetteError as error:  # the status is sent already
        yield _last(error.message, error.code)


def _base_url(http: Request) -> str:
    return str(http.base_url).rstrip("/") + prefix_of(http.scope)


def _last(message: str, code: str = "unavailable") -> bytes:
    return f"data: {json.dumps(answers.error_of(message, 'server_error', code))}\n\ndata: [DONE]\n\n".encode()
