"""The song's bytes, and signed links to one job for the parts of a browser that send no header."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from pydantic import AwareDatetime, BaseModel, Field
from starlette.responses import Response

from api.dependencies import CallerPart, DownloadsPart, LinksPart, QueuePart, SettingsPart, TenantPart
from api.downloads import FileRequest, song_of
from api.problems import problems
from api.request_checks import prefix_of
from api.v1 import examples
from api.v1.answers import PARTS, REDIRECT, JobId

router = APIRouter(prefix="/v1", tags=["jobs"])


class JobLinks(BaseModel):
    """Signed paths that give access to this job alone, without a key."""

    audio: str = Field(description="For `<audio>`; add `&index=N` for another variation.")
    events: str = Field(description="For EventSource, and with ws: or wss: for a WebSocket.")
    expires_at: AwareDatetime = Field(description="A response that has begun by then is not cut off.")


@router.get(
    "/jobs/{job_id}/audio",
    response_class=Response,
    summary="The song",
    responses={
        200: {"content": examples.AUDIO, "headers": examples.AUDIO_HEADERS, "description": "The song."},
        **PARTS,
        206: {"content": examples.AUDIO, "description": "The bytes asked for by `Range`."},
        307: REDIRECT,
        **problems("not_found", "not_finished", "gone", "invalid_spec", "queue_unavailable", "store_unavailable"),
    },
)
async def audio(
    request: Request,
    job_id: JobId,
    queue: QueuePart,
    downloads: DownloadsPart,
    settings: SettingsPart,
    tenant: TenantPart,
    index: Annotated[int, Query(ge=0, le=7, description="Which variation.")] = 0,
    download: Annotated[bool, Query(description="As an attachment with a name, never as a redirect.")] = False,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The encoded song, whole or in part, or a redirect to the store."""
    song = song_of(await queue.get(tenant, job_id), index)
    file_request = FileRequest(request.scope, range_, if_range, if_none_match)
    name = f"{job_id}-{song.index}.{song.format}"
    if download:
        return await downloads.serve(song, file_request, name, download=True)
    return await downloads.redirect_or_serve(song, file_request, name, settings.presign_s, download=False)


@router.post(
    "/jobs/{job_id}/links",
    summary="Links for a browser",
    responses={200: {"content": examples.LINKS}, **problems("not_found", "queue_unavailable", "store_unavailable")},
)
async def links(
    job_id: JobId, request: Request, queue: QueuePart, caller: CallerPart, signer: LinksPart, settings: SettingsPart
) -> JobLinks:
    """Signed URLs that give access to this job alone until they expire. Revoking the key revokes them too."""
    await queue.get(caller.tenant, job_id)
    token, expires_s = await signer.sign(caller, job_id, settings.link_s)
    path = f"{prefix_of(request.scope)}/v1/jobs/{job_id}"
    return JobLinks(
        audio=f"{path}/audio?token={token}",
        events=f"{path}/events?token={token}",
        expires_at=datetime.fromtimestamp(expires_s, UTC),
    )
