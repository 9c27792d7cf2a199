"""Submit, look, list, cancel, erase."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request, Response
from pydantic import AwareDatetime, ConfigDict

from api.dependencies import ContextPart, RequestContext, context_of, idempotency_key_header
from api.events import preferred_wait_s
from api.lean_route import LeanRoute
from api.problems import Responses, problems
from api.queue.lookup import JobFilter
from api.v1 import examples
from api.v1.answers import JobId, job_answer, unknown_fields, written_as
from serinette.errors import InvalidSpec
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec, PlainNumber
from serinette.views import JobList

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=LeanRoute)

PreferHeader = Annotated[
    str | None,
    Header(
        description="`wait=N`: hold the answer until the job ends, N seconds at most; it was not held if it is without "
        "`Preference-Applied`.",
        examples=["wait=30"],
    ),
]
KeyHeader = Annotated[
    str | None,
    idempotency_key_header("Printable ASCII: the same key with the same song is the same job, however often sent."),
]


QueryTime = Annotated[
    AwareDatetime | None, written_as(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T", "a time like 2026-01-31T12:00:00Z")
]


class JobRequest(GenerationSpec, JobOptions):
    """A song to generate, and options of its job. All but a few fields are optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": examples.REQUESTS})


SUBMITTED: Responses = {
    200: {"model": Job, "description": "The job has ended (only with `Prefer: wait`, or a repeated key)."},
    202: {"description": "The job waits or runs.", "headers": examples.SUBMIT_HEADERS},
}
# Why a submit may be refused.
REFUSALS = (
    "idempotency_conflict",
    "lane_not_allowed",
    "lane_full",
    "too_many_queued",
    "too_many_in_flight",
    "gpu_time_spent",
    "queue_full",
    "store_unavailable",
)


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    summary="Submit a song",
    responses={**SUBMITTED, **problems(*REFUSALS)},
)
async def submit_job(
    request: Annotated[JobRequest, Body(openapi_examples=examples.SUBMIT)],
    http: Request,
    prefer: PreferHeader = None,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Queue a song in its lane. `Location` is the job's URL; a seed that is left out is drawn and reported."""
    context = context_of(http)
    submitted = await context.queue.submit(
        context.tenant, request.only(GenerationSpec), request.only(JobOptions), idempotency_key=idempotency_key
    )
    return await submit_answer(context, submitted, prefer)


async def submit_answer(context: RequestContext, submitted: tuple[Job, bool], prefer: str | None) -> Response:
    """The job that was submitted, or is so again; at its end, if the client would wait for that."""
    job, created = submitted
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    job = await _held(context, job, prefer, headers)
    return job_answer(job, 200 if job.status.ended else 202, headers)


async def _held(context: RequestContext, job: Job, prefer: str | None, headers: dict[str, str]) -> Job:
    wait_s = preferred_wait_s(prefer, context.settings.max_wait_s)
    if wait_s is not None and context.parts.events.waits.has_turn(context.tenant):
        headers["Preference-Applied"] = f"wait={wait_s:g}"
    return await context.hold(job, wait_s, refuse=False)


@router.get("/jobs/{job_id}", response_model=Job, summary="One job", responses={200: {"content": examples.JOB}})
async def get_job(job_id: JobId, http: Request, prefer: PreferHeader = None) -> Response:
    """Status, stage, step k of n, place in its lane, ETA, attempts, timings, and why it waits."""
    context, headers = context_of(http), dict[str, str]()
    job = await _held(context, await context.queue.get(context.tenant, job_id), prefer, headers)
    return job_answer(job, headers=headers)


@router.get("/jobs", response_model=JobList, summary="Jobs, newest first")
async def list_jobs(
    context: ContextPart,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[
        str | None,
        Query(max_length=127, description="Only jobs with this label: `name=value`.", examples=["album=blue"]),
    ] = None,
    created_after: Annotated[QueryTime, Query(description="Only jobs submitted then or later.")] = None,
    created_before: Annotated[QueryTime, Query(description="Only jobs submitted before then.")] = None,
    cursor: Annotated[str | None, Query(max_length=300, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page."), PlainNumber] = 20,
) -> Response:
    """A page of jobs. With a filter a page may be short and still have a next one. Of jobs that ended more than ten
    minutes ago it has the state, times, pool, lane, labels and error code, and of `spec` the first 60 bytes of the
    prompt (nothing, of a container); the other fields are left out. `GET /v1/jobs/{id}` has all of them.
    """
    name, equals, value = (label or "").partition("=")
    if label is not None and not (name and equals):
        raise InvalidSpec("label: must be name=value", field="label")
    wanted = JobFilter(status, (name, value) if label else None, created_after, created_before)
    page = await context.queue.list(context.tenant, wanted, cursor=cursor, limit=limit)
    left_out = {place: unknown for place, job in enumerate(page.jobs) if (unknown := unknown_fields(job))}
    return Response(
        page.model_dump_json(exclude={"jobs": left_out} if left_out else None), media_type="application/json"
    )


@router.post(
    "/jobs/{job_id}/cancel",
    response_model=Job,
    summary="Cancel a job",
    responses={200: {"content": examples.JOB}, **problems("conflict")},
)
async def cancel_job(job_id: JobId, context: ContextPart) -> Response:
    """A queued job ends at once, a running one within a step: then `cancel_requested` is true meanwhile."""
    return job_answer(await context.queue.cancel(context.tenant, job_id))


@router.delete("/jobs/{job_id}", status_code=204, summary="Erase an ended job", responses=problems("not_finished"))
async def erase_job(job_id: JobId, context: ContextPart) -> None:
    """Erases its songs and its record. A job that has not ended must be canceled first."""
    await context.queue.erase(context.tenant, job_id)
