"""Source and reference audio."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.datastructures import UploadFile

from api.dependencies import ContextPart, containers_only
from api.forms import FormRequest
from api.problems import problems
from api.uploads import PresignedUpload
from api.v1 import examples
from api.v1.answers import UploadId
from serinette.errors import InvalidSpec
from serinette.job import Upload, UploadedFile

router = APIRouter(prefix="/v1", tags=["uploads"])


@router.post(
    "/uploads",
    status_code=201,
    response_model=Upload | PresignedUpload,
    summary="Upload audio",
    openapi_extra={"requestBody": examples.UPLOAD_BODY},
    responses={
        201: {
            "content": examples.UPLOAD,
            "description": "The stored upload; with `presign`, the URL to PUT the audio to.",
        },
        **problems("invalid_audio", "unsupported", "limited", "store_unavailable"),
    },
)
async def upload_audio(
    request: Request,
    response: Response,
    context: ContextPart,
    presign: Annotated[
        bool, Query(description="Return a URL of the object store to PUT the bytes to, instead of taking a body.")
    ] = False,
) -> Upload | PresignedUpload:
    """Audio as the body, whatever its Content-Type, or as the field `file` of a form. Decoded once to verify it."""
    uploads, tenant = context.parts.uploads, context.tenant
    if presign:
        return await uploads.presign(tenant)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        kept = await uploads.take(tenant, request.stream())
    else:
        whole = FormRequest(request.scope, request.receive, context.settings.max_body_bytes)
        async with whole.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise InvalidSpec("file: the form must hold the audio in a field of this name", field="file")
            kept = await uploads.take_file(tenant, file)
    response.headers["Location"] = f"/v1/uploads/{kept.id}"
    return kept


@router.post(
    "/files",
    status_code=201,
    summary="Upload a file for a container",
    dependencies=[Depends(containers_only)],
    openapi_extra={"requestBody": {"content": {"application/octet-stream": examples.BINARY}, "required": True}},
    responses=problems("unsupported", "limited", "store_unavailable"),
)
async def upload_file(request: Request, response: Response, context: ContextPart) -> UploadedFile:
    """Any bytes as the body, for a container's `inputs` alone, not for songs. 501 if no cluster is configured."""
    kept = await context.parts.uploads.take_any(context.tenant, request.stream())
    response.headers["Location"] = f"/v1/uploads/{kept.id}"
    return kept


@router.post(
    "/uploads/{upload_id}/complete",
    summary="Verify a presigned upload",
    responses=problems("invalid_audio", "too_large"),
)
async def complete_upload(upload_id: UploadId, context: ContextPart) -> Upload:
    """Call it after the PUT to `put_url`. An upload that is not audio, or is too long, is erased."""
    return await context.parts.uploads.complete(context.tenant, upload_id)


@router.get("/uploads/{upload_id}", summary="One upload")
async def get_upload(upload_id: UploadId, context: ContextPart) -> Upload | UploadedFile:
    """What is known of the upload: size, and of audio its format and duration."""
    return await context.parts.uploads.look(context.tenant, upload_id)


@router.delete("/uploads/{upload_id}", status_code=204, summary="Erase an upload")
async def erase_upload(upload_id: UploadId, context: ContextPart) -> None:
    """Queued jobs that refer to it will fail."""
    await context.parts.uploads.erase(context.tenant, upload_id)
