"""Containers as jobs: submit one, and fetch its outputs and log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Request, Response
from pydantic import ConfigDict

from api.dependencies import ContextPart, containers_only, context_of
from api.downloads import FileRequest, OtherFile
from api.lean_route import LeanRoute
from api.problems import Responses, problems
from api.v1 import examples
from api.v1.answers import PARTS, REDIRECT, JobId
from api.v1.jobs import REFUSALS, SUBMITTED, KeyHeader, PreferHeader, submit_answer
from serinette.container import ContainerSpec
from serinette.errors import NotFinished, NotFound
from serinette.job import Job, JobOptions

router = APIRouter(prefix="/v1", tags=["containers"], route_class=LeanRoute)


class ContainerRequest(ContainerSpec, JobOptions):
    """A container to run, and how to treat its job."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": examples.CONTAINERS})


@router.post(
    "/containers",
    status_code=202,
    response_model=Job,
    summary="Submit a container",
    dependencies=[Depends(containers_only)],
    responses={**SUBMITTED, **problems(*REFUSALS, "unsupported")},
)
async def submit_container(
    request: Annotated[ContainerRequest, Body()],
    http: Request,
    prefer: PreferHeader = None,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Queue a container in its lane, as a job like any other. 501 if no cluster is configured."""
    context = context_of(http)
    submitted = await context.queue.submit(
        context.tenant, request.only(ContainerSpec), request.only(JobOptions), idempotency_key=idempotency_key
    )
    return await submit_answer(context, submitted, prefer)


_FILE: Responses = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file."},
    307: REDIRECT,
    **PARTS,
    **problems("not_finished", "gone"),
}


@router.get("/jobs/{job_id}/outputs/{name:path}", response_class=Response, summary="One output", responses=_FILE)
async def get_job_output(
    job_id: JobId,
    name: Annotated[str, Path(max_length=1_100, description="As in the job's `run.outputs`.")],
    request: Request,
    context: ContextPart,
) -> Response:
    """A file that the container wrote below /outputs, or a redirect to the store."""
    found = _output_of(await context.queue.get(context.tenant, job_id), name)
    file_name, presign_s = name.rpartition("/")[2], context.settings.presign_s
    return await context.parts.downloads.redirect_or_serve(
        found, FileRequest.of(request), file_name, presign_s, download=True
    )


def _output_of(job: Job, name: str) -> OtherFile:
    if job.container is None:
        raise NotFound(f"job {job.id} is a song and has no outputs; fetch /v1/jobs/{job.id}/audio")
    if not job.status.ended:
        raise NotFinished(f"job {job.id} is {job.status}: its outputs are kept when it ends")
    outputs = job.run.outputs if job.run else ()
    for each in outputs:
        if each.name == name:  # untrusted bytes, whose type is not guessed
            return OtherFile(each.key, each.size_bytes, each.sha256, "application/octet-stream")
    raise NotFound(f"job {job.id} left {len(outputs)} outputs, none of this name; they are in its run.outputs")


_LOG: Responses = {
    **PARTS,
    200: {"content": {"text/plain": {}}, "description": "All of it so far; its ETag is attempt and bytes, `1-2048`."},
    206: {"description": "Once the job has ended: the bytes asked for by `Range`."},
    **problems("gone"),
}


@router.get("/jobs/{job_id}/log", response_class=Response, summary="A container's log", responses=_LOG)
async def get_job_log(job_id: JobId, request: Request, context: ContextPart) -> Response:
    """Plain text: what was logged so far while the container runs, all of it once it has ended. One log per attempt. To
    follow it, take the `log` events of the job.
    """
    job = await context.queue.get(context.tenant, job_id)
    return await context.parts.logs.serve(job, FileRequest.of(request))
