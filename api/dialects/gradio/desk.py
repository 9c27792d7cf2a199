"""Behind every call of this dialect: submit, look up, wait, cancel, and hand the song over."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from fastapi import Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response

from api.dependencies import (
    EventsPart,
    IntakePart,
    QueuePart,
    SettingsPart,
    SongsPart,
    StandingPart,
    StorePart,
    TenantPart,
)
from api.dialects.gradio import answers
from api.dialects.gradio.request import Order
from api.holding import held
from api.songs import Asked
from serinette.errors import Conflict, NotFound
from serinette.job import Job, JobOptions, JobStatus

# A canceled worker stops within a step; a client that asks for the status right after should see the end.
_CANCEL_WAIT_S = 10.0
# In base64 and JSON a file takes several times its size in memory.
_MAX_INLINE_BYTES = 64 * 1024 * 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Manner(BaseModel):
    """How a client wants its song; also the query of GET /result/{id}."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    format: Literal["file", "json"] = Field("file", description="What to answer.")
    wait: float = Field(0, ge=0, description="Seconds to wait for the song, bounded by the server; then 303.")
    sync: bool = Field(False, description="Set by the redirects of calls that wait: how to report a failure.")

    @property
    def as_json(self) -> bool:
        """Whether to answer JSON."""
        return self.format == "json"


@dataclass(frozen=True, slots=True)
class Desk:
    """One tenant's dealings with the queue, for the length of a request."""

    settings: SettingsPart
    store: StorePart
    songs: SongsPart
    queue: QueuePart
    events: EventsPart
    intake: IntakePart
    tenant: TenantPart
    standing: StandingPart

    @property
    def max_wait_s(self) -> float:
        """Longest that one request waits for its song."""
        return self.settings.max_wait_s

    async def submit(self, order: Order) -> Job:
        """Put the song into its lane."""
        job, _ = await self.queue.submit(self.tenant, order.spec, JobOptions(), dialect=order.dialect)
        return job

    async def keep(self, file: UploadFile) -> str:
        """Keep audio that came along; its upload id.

        Raises:
            TooLarge, InvalidAudio: it is not kept.
        """
        upload = await self.intake.take_file(self.tenant, file)
        return upload.id

    async def find(self, request_id: str) -> Job:
        """The job of a request. Raises NotFound."""
        if not _REQUEST_ID.fullmatch(request_id):
            raise NotFound("there is no such request")
        return await self.queue.get(self.tenant, request_id)

    async def cancel(self, request_id: str) -> Response:
        """Cancel, and wait a little for it to be so."""
        job = await self.find(request_id)
        if job.status.ended:
            return JSONResponse(answers.not_cancelable(job), 400)
        try:
            job = await self.queue.cancel(self.tenant, request_id)
        except Conflict:
            return JSONResponse(answers.not_cancelable(await self.find(request_id)), 400)
        job = await self._held(job, _CANCEL_WAIT_S)
        if job.status is JobStatus.SUCCEEDED:  # it was recorded as the flag was set
            return JSONResponse(answers.not_cancelable(job), 400)
        return JSONResponse({"message": "Request cancelled"})

    async def answer(self, http: Request, job: Job, manner: Manner) -> Response:
        """The song in the manner asked for, or why there is none, or where to ask again."""
        job = await self._held(job, manner.wait)
        if job.status is JobStatus.SUCCEEDED:
            return await self._song_json(job) if manner.as_json else await self._song(http, job)
        if not job.status.ended and manner.wait:
            return self._redirect(http, job, manner)
        if not (manner.sync and job.status.ended):
            return JSONResponse(answers.not_completed(job), 400)
        failure = answers.failure(job)
        return JSONResponse(answers.unsuccessful(failure)) if manner.as_json else JSONResponse({"detail": failure}, 500)

    async def _held(self, job: Job, wait_s: float) -> Job:
        return await held(self.queue, self.events, self.standing, job, min(wait_s, self.max_wait_s))

    def _redirect(self, http: Request, job: Job, manner: Manner) -> Response:
        query = {"wait": f"{min(manner.wait, self.max_wait_s):g}"}
        query |= {"format": "json"} if manner.as_json else {}
        query |= {"sync": "true"} if manner.sync else {}
        path = f"{http.scope.get('root_path', '')}{answers.audio_path(job)}"
        return RedirectResponse(f"{path}?{urlencode(query)}", 303)

    async def _song(self, http: Request, job: Job) -> Response:
        song, name = answers.artifact(job), answers.file_name(job)
        return await self.songs.serve(song, Asked.by(http), name, download=True)

    async def _song_json(self, job: Job) -> Response:
        artifact = answers.artifact(job)
        if not answers.wants_bytes(job) or artifact.size_bytes > _MAX_INLINE_BYTES:
            return JSONResponse(answers.song_with_bytes(job, None))
        audio = b"".join([chunk async for chunk in self.store.stream(artifact.key)])
        # Of a long song, base64 and JSON take longer than the event loop may be held up.
        return await run_in_threadpool(lambda: JSONResponse(answers.song_with_bytes(job, audio)))
