"""Signed links to one job, for the parts of a browser that send no header."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, Field

from api.dependencies import CallerPart, LinksPart, QueuePart, SettingsPart
from api.v1 import examples
from api.v1.answers import JobId, problems

router = APIRouter(prefix="/v1", tags=["jobs"])


class JobLinks(BaseModel):
    """Paths that open this job alone, without a key."""

    audio: str = Field(description="For `<audio>`; add `&index=N` for another variation.")
    events: str = Field(description="For EventSource, and with ws: or wss: for a WebSocket.")
    expires_at: AwareDatetime = Field(description="What is open by then stays open.")


@router.post(
    "/jobs/{job_id}/links",
    summary="Links for a browser",
    responses={200: {"content": examples.LINKS}, **problems("not_found", "queue_unavailable", "store_unavailable")},
)
async def links(
    job_id: JobId, queue: QueuePart, caller: CallerPart, signer: LinksPart, settings: SettingsPart
) -> JobLinks:
    """Signed for a short while: whoever has one may hear this job. Revoking the key ends them too."""
    await queue.get(caller.tenant, job_id)
    token, expires_s = await signer.sign(caller, job_id, settings.link_s)
    path = f"/v1/jobs/{job_id}"
    return JobLinks(
        audio=f"{path}/audio?token={token}",
        events=f"{path}/events?token={token}",
        expires_at=datetime.fromtimestamp(expires_s, UTC),
    )
