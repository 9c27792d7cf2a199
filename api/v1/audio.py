"""The song's bytes, and signed links to one job for the parts of a browser that send no header."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import AwareDatetime, BaseModel, Field
from starlette.responses import Response

from api.dependencies import ContextPart
from api.downloads import FileRequest, song_of
from api.problems import problems
from api.request_checks import prefix_of
from api.v1 import examples
from api.v1.answers import PARTS, REDIRECT, JobId
from serinette.errors import NotFound, Unsupported
from serinette.spec import PlainNumber

router = APIRouter(prefix="/v1", tags=["jobs"])


class JobLinks(BaseModel):
    """Signed paths that give access to this job alone, without a key."""

    audio: str = Field(description="For `<audio>`; add `&index=N` for another variation.")
    events: str = Field(description="For EventSource, and with ws: or wss: for a WebSocket.")
    expires_at: AwareDatetime = Field(description="A response that has begun by then is not cut off.")


class JobShare(BaseModel):
    """A link by which anyone can hear the songs of one job."""

    audio: str = Field(description="Path of the first song; add `&index=N` for another variation.")
    expires_at: AwareDatetime = Field(description="A download that has begun by then is not cut off.")


@router.get(
    "/jobs/{job_id}/audio",
    response_class=Response,
    summary="The song",
    responses={
        **PARTS,
        200: {"content": examples.AUDIO, "headers": examples.AUDIO_HEADERS, "description": "The song."},
        206: {"content": examples.AUDIO, "description": "The bytes asked for by `Range`."},
        307: REDIRECT,
        **problems("not_finished", "gone"),
    },
)
async def get_job_audio(
    request: Request,
    job_id: JobId,
    context: ContextPart,
    index: Annotated[int, Query(ge=0, le=7, description="Which variation."), PlainNumber] = 0,
    download: Annotated[bool, Query(description="As an attachment with a name, never as a redirect.")] = False,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The encoded song, whole or in part, or a redirect to the store."""
    song = song_of(await context.queue.get(context.tenant, job_id), index)
    file_request = FileRequest(request.scope, range_, if_range, if_none_match)
    name, downloads = f"{job_id}-{song.index}.{song.format}", context.parts.downloads
    if download:
        return await downloads.serve(song, file_request, name, download=True)
    return await downloads.redirect_or_serve(song, file_request, name, context.settings.presign_s, download=False)


@router.post("/jobs/{job_id}/links", summary="Links for a browser")
async def link_job(job_id: JobId, request: Request, context: ContextPart) -> JobLinks:
    """Signed URLs that give access to this job alone until they expire. Revoking the key revokes them too."""
    await context.queue.get(context.tenant, job_id)
    token, expires_s = await context.parts.callers.links.sign(context.caller, job_id, context.settings.link_s)
    path = f"{prefix_of(request.scope)}/v1/jobs/{job_id}"
    return JobLinks(
        audio=f"{path}/audio?token={token}",
        events=f"{path}/events?token={token}",
        expires_at=datetime.fromtimestamp(expires_s, UTC),
    )


async def _shared_job(job_id: JobId, context: ContextPart) -> str:
    if not context.settings.auth:
        raise Unsupported("this gateway asks for no key: all who reach it can hear every song at its own address")
    await context.queue.get(context.tenant, job_id)
    return job_id


SharedJobId = Annotated[str, Depends(_shared_job)]
_NO_KEYS = problems("unsupported")


@router.post("/jobs/{job_id}/share", summary="Share a job's songs", responses=_NO_KEYS)
async def share_job(job_id: SharedJobId, request: Request, context: ContextPart) -> JobShare:
    """A link that needs no key, for a day; the same one for as long as it is valid. With it anyone can hear and keep
    the songs, whose tags may hold prompt and lyrics. It ends early when it is revoked, or the key that made it.
    """
    shared = await context.parts.callers.links.share(context.caller, job_id, context.settings.share_s)
    return _share(request, job_id, *shared)


@router.get("/jobs/{job_id}/share", summary="The link a job is shared by", responses=_NO_KEYS)
async def get_share(job_id: SharedJobId, request: Request, context: ContextPart) -> JobShare:
    """The link that is valid now; 404 without one."""
    shared = await context.parts.callers.links.shared(job_id)
    if shared is None:
        raise NotFound(f"job {job_id} is not shared; POST to this path to share it")
    return _share(request, job_id, *shared)


@router.delete("/jobs/{job_id}/share", status_code=204, summary="Revoke the link")
async def revoke_share(job_id: JobId, context: ContextPart) -> None:
    """The link opens nothing any more, from now on. A job that is not shared stays so."""
    await context.queue.get(context.tenant, job_id)
    await context.parts.callers.links.revoke(job_id)


def _share(request: Request, job_id: str, token: str, expires_s: int) -> JobShare:
    path = f"{prefix_of(request.scope)}/v1/jobs/{job_id}/audio?token={token}"
    return JobShare(audio=path, expires_at=datetime.fromtimestamp(expires_s, UTC))
