"""The seed's calls, one function each. What they do is in desk.py, what they say in answers.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.dependencies import QueuePart
from api.dialects.gradio import answers
from api.dialects.gradio.desk import Desk, Manner
from api.dialects.gradio.refusals import SeedRoute
from api.dialects.gradio.request import GenerateMusicRequest, order
from api.queue import JobQueue
from serinette.presence import Presence

router = APIRouter(route_class=SeedRoute, tags=["ACE-Step v1 dialect"])

Responses = dict[int | str, dict[str, Any]]
DeskPart = Annotated[Desk, Depends(Desk)]


def _example(value: dict[str, Any]) -> Responses:
    return {200: {"content": {"application/json": {"example": value}}}}


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


@router.post(
    "/generate_music_async",
    responses=_example({"request_id": _ID, "status": "queued", "message": "Request has been queued for processing"}),
)
async def generate_music_async(body: GenerateMusicRequest, desk: DeskPart) -> dict[str, Any]:
    """Put a song into the queue and answer at once, with the id to ask by."""
    return answers.queued(await desk.submit(order(body)))


@router.post("/generate_music", responses=_SYNC, response_class=Response)
async def generate_music(body: GenerateMusicRequest, desk: DeskPart, http: Request) -> Response:
    """Generate a song, and answer where it is; with `return_file_data` the song itself."""
    format: Literal["file", "json"] = "file" if body.return_file_data else "json"
    job = await desk.submit(order(body))
    return await desk.answer(http, job, Manner(format=format, wait=desk.max_wait_s, sync=True))


@router.post("/generate_music_direct", responses=_SYNC, response_class=Response)
async def generate_music_direct(body: GenerateMusicRequest, desk: DeskPart, http: Request) -> Response:
    """Generate a song, and answer the song itself."""
    job = await desk.submit(order(body))
    return await desk.answer(http, job, Manner(wait=desk.max_wait_s, sync=True))


@router.post(
    "/generate_music_with_audio",
    responses=_example(
        {"success": True, "request_id": _ID, "message": "Audio file uploaded and queued for processing."}
    ),
)
async def generate_music_with_audio(
    body: Annotated[GenerateMusicWithAudio, Form(media_type="multipart/form-data")], desk: DeskPart
) -> dict[str, Any]:
    """Put a cover of the uploaded audio into the queue."""
    upload_id = await desk.keep(body.audio_file)
    return answers.queued_with_audio(await desk.submit(order(body, upload_id)), body.audio_file.filename)


@router.get(
    "/status/{request_id}",
    responses=_BY_ID
    | _example(
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
async def status(request_id: str, desk: DeskPart) -> dict[str, Any]:
    """pending, processing, completed or failed; times are Unix seconds."""
    return answers.status(await desk.find(request_id))


@router.get("/result/{request_id}", responses=_BY_ID | _SYNC | {400: _NO_SONG}, response_class=Response)
async def result(request_id: str, manner: Annotated[Manner, Query()], desk: DeskPart, http: Request) -> Response:
    """The song: the file itself, or JSON with `?format=json`."""
    return await desk.answer(http, await desk.find(request_id), manner)


@router.delete(
    "/request/{request_id}",
    responses=_BY_ID | _example({"message": "Request cancelled"}) | {400: {"description": "It has ended already."}},
)
async def cancel(request_id: str, desk: DeskPart) -> Response:
    """Cancel a request, whether it waits or is being generated."""
    return await desk.cancel(request_id)


@router.get("/queue/status", responses=_example(answers.queue(waiting=1, running=1, completed=5, failed=0)))
async def queue_status(queue: QueuePart) -> dict[str, Any]:
    """How many requests there are, by status."""
    pools = await queue.pools()
    return answers.queue(
        waiting=sum(sum(pool.waiting.values()) for pool in pools),
        running=sum(pool.running for pool in pools),
        completed=sum(pool.succeeded for pool in pools),
        failed=sum(pool.unsuccessful for pool in pools),
    )


@router.get("/sample_data", responses=_example(answers.sample()))
async def sample_data() -> dict[str, Any]:
    """A request to try."""
    return answers.sample()


@router.post("/initialize", responses=_example(answers.initialized([])))
async def initialize(
    queue: QueuePart, query: Annotated[InitializeRequest, Query()], body: InitializeRequest | None = None
) -> dict[str, Any]:
    """Whether a worker has its model. Nothing is loaded by this call."""
    sent = sorted(query.model_fields_set | (body.model_fields_set if body else set()))
    return answers.initialized(await _workers(queue)) | {"ignored": sent}


async def _workers(queue: JobQueue) -> list[Presence]:
    return [worker for pool in await queue.pools() for worker in pool.workers]
