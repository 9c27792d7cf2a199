"""What a dialect is made of: its paths, its error shape, and its way to jobs, which is the same for all dialects."""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import Depends
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from api.dependencies import RequestContext, caller_of, context_of, idempotency_key_header, parts_of
from api.dialects.fields import Conversion
from api.downloads import FileRequest
from api.forms import FormRequest
from api.lean_route import REFUSALS, LeanRoute, Refuse
from api.problems import Responses, explained, headers_of, invalid, status_of
from api.queue import Pool
from serinette.errors import Conflict, InvalidAudio, InvalidSpec, NotFound, RequestError, SerinetteError
from serinette.job import Artifact, Job, JobOptions, JobStatus

log = logging.getLogger(__name__)

# Longest body with audio in its text. All of it is held in memory several times over.
MAX_BASE64_BODY_BYTES: Final = 8 * 1024 * 1024

# A canceled worker stops within a step; a client that asks for the status right after should see the end.
_CANCEL_WAIT_S: Final = 10.0
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedAnswers:
    """What a dialect adds to paths that several APIs have: `health` of the pools and the default pool's name, `models`
    of their names, the default first; `model` is its form of one, made of `id` and `name`.
    """

    health: Callable[[Sequence[Pool], str], dict[str, Any]] = lambda _, __: {}
    unhealthy: Callable[[SerinetteError], dict[str, Any]] = lambda _: {}
    models: Callable[[Sequence[str]], dict[str, Any]] = lambda _: {}
    models_schema: type[BaseModel] | None = None
    model: type[BaseModel] | None = None
    # What stands in the document's examples for values that change with time.
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """Another server's API.

    `tag` heads it in the OpenAPI document, with `about` below; its own is /openapi/NAME.json. On `file_paths`
    (prefixes) a body may be as long as an upload, on `base64_paths` it may hold audio within its text
    (MAX_BASE64_BODY_BYTES), on `key_paths` the key as `ai_token`. `answers_422`: a wrong parameter is 422, as
    FastAPI documents it.
    """

    name: str
    tag: str
    about: str
    routes: Sequence[BaseRoute]
    file_paths: tuple[str, ...] = ()
    base64_paths: tuple[str, ...] = ()
    key_paths: frozenset[str] = frozenset()
    answers_422: bool = False
    shared: SharedAnswers | None = None

    @property
    def paths(self) -> list[str]:
        """Those of its routes."""
        return [route.path for route in self.routes if isinstance(route, APIRoute)]


def refusals(shape: Callable[[int, str, str], dict[str, Any]], theirs: Callable[[str], str]) -> Refuse:
    """Errors in a dialect's `shape`, made of status, message and code; `theirs` puts a message into its names. What the
    client can correct is 400, where our own paths answer 422.
    """

    def refuse(error: Exception) -> Response | None:
        match error:
            case RequestValidationError():
                status, message, code = 400, invalid(error.errors()[0]).message, "invalid"
            case HTTPException():
                status, message, code = error.status_code, str(error.detail), "http"
            case SerinetteError():
                status = 400 if isinstance(error, InvalidSpec | InvalidAudio) else status_of(error)
                message, code = theirs(error.message), error.code
            case _:
                return None
        headers = headers_of(error) if isinstance(error, SerinetteError) else getattr(error, "headers", None)
        return JSONResponse(shape(status, message, code), status, headers)

    return refuse


def refusing(refuse: Refuse) -> type[APIRoute]:
    """A class of routes whose errors are answered in the dialect's shape."""

    class DialectRoute(LeanRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  # FastAPI's
            # The servers that clients were written for read JSON without a Content-Type.
            super().__init__(path, endpoint, **options | {"strict_content_type": False})

        def refuse(self, error: Exception) -> Response | None:
            refusal = refuse(error)
            if refusal is not None and isinstance(error, SerinetteError) and not isinstance(error, RequestError):
                log.warning("%s: %s (%r)", self.path, error, error.__cause__)
            return refusal

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                context = context_of(request)
                form = FormRequest(request.scope, request.receive, context.parts.settings.max_body_bytes)
                try:
                    return await handle(form)
                except REFUSALS as error:
                    if (refusal := self.refuse(await explained(request.app, error))) is None:
                        raise
                    return refusal

            return handler

    return DialectRoute


def example(value: object) -> Responses:
    """An example of the answer, for the OpenAPI document."""
    return {200: {"content": {"application/json": {"example": value}}}}


KeyHeader = Annotated[
    str | None, idempotency_key_header("Ours: the same key with the same request is the same song, not another one.")
]


class JobAccess(RequestContext):
    """One request's way to jobs: submit, find, wait, cancel, and what its parts offer for sending the song."""

    async def models(self) -> frozenset[str]:
        """Names of the models that workers hold, or that pools at zero would."""
        pools = await self.queue.pools()
        held_now = {worker.model.name for pool in pools for worker in pool.workers if worker.model}
        return frozenset(held_now | {pool.published for pool in self.settings.pools})

    async def plans(self) -> bool:
        """Whether a worker with a planner is up."""
        pools = await self.queue.pools()
        return any(worker.model and worker.model.planner for pool in pools for worker in pool.workers)

    async def keep(self, name: str, file: UploadFile, idempotency_key: str | None = None) -> str:
        """Keep audio that came along as the form's field `name`; its upload id, of the same key and audio the same.

        Raises:
            TooLarge, InvalidAudio, InvalidSpec: it is not kept.
        """
        try:
            return (await self.parts.uploads.take_file(self.tenant, file, idempotency_key)).id
        except (InvalidAudio, InvalidSpec) as error:  # it knows no field but its own
            raise type(error)(f"{name}: {error.message.removeprefix('file: ')}", field=name) from error

    async def keep_base64(self, name: str, text: str, idempotency_key: str | None = None) -> str:
        """Keep audio that came along in base64, or as a data URL, as the body's field `name`; see `keep`.

        Raises:
            TooLarge, InvalidAudio, InvalidSpec: it is not kept.
        """
        try:
            audio = await to_thread.run_sync(_from_base64, text)
        except ValueError as error:
            raise InvalidAudio(f"{name}: it is no base64 ({error})", field=name) from error
        return await self.keep(name, UploadFile(io.BytesIO(audio)), idempotency_key)

    async def submit(
        self, conversion: Conversion[Any], dialect: Mapping[str, str], idempotency_key: str | None = None
    ) -> Job:
        """Put a converted request into its lane. `dialect` comes back with the job, for its answers.

        Raises:
            SerinetteError: nothing was submitted.
        """
        job, _ = await self.queue.submit(
            self.tenant, conversion.spec(), JobOptions(), idempotency_key=idempotency_key, dialect=dialect
        )
        return job

    async def find(self, job_ids: Sequence[str]) -> list[Job | None]:
        """Each of many jobs; None where there is none."""
        sound = [job_id for job_id in job_ids if _JOB_ID.fullmatch(job_id)]
        jobs = dict(zip(sound, await self.queue.find(self.tenant, sound), strict=True))
        return [jobs.get(job_id) for job_id in job_ids]

    async def get(self, job_id: str) -> Job:
        """One job. Raises NotFound."""
        if not _JOB_ID.fullmatch(job_id):
            raise NotFound("there is no such job")
        return await self.queue.get(self.tenant, job_id)

    async def cancel(self, job_id: str) -> tuple[Job, bool]:
        """The job after a short wait for its end, and whether it was canceled by this call."""
        job = await self.get(job_id)
        if job.status.ended:
            return job, False
        try:
            job = await self.queue.cancel(self.tenant, job_id)
        except Conflict:
            return await self.get(job_id), False
        job = await self.hold(job, _CANCEL_WAIT_S, refuse=False)
        return job, job.status is not JobStatus.SUCCEEDED  # its song may have been recorded as the flag was set

    async def song(self, http: Request, song: Artifact, file_name: str, *, download: bool) -> Response:
        """The song's file or the part of it that is asked for, never as a redirect. Raises Gone."""
        return await self.parts.downloads.serve(song, FileRequest.of(http), file_name, download=download)


def _from_base64(text: str) -> bytes:
    data = text.partition(",")[2] if text[:5] == "data:" else text
    return base64.b64decode("".join(data.split()), validate=True)


def job_access_of(connection: HTTPConnection) -> JobAccess:
    """One request's access, for routes that are called without FastAPI's dependencies."""
    return JobAccess(parts_of(connection), caller_of(connection))


async def _job_access(connection: HTTPConnection) -> JobAccess:
    return job_access_of(connection)


JobAccessPart = Annotated[JobAccess, Depends(_job_access)]
