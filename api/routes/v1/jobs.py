"""Submit, look, list, cancel, erase."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import DoorPart, EventsPart, QueuePart, SettingsPart, StandingPart, TenantPart
from api.holding import held, preferred_wait_s
from api.routes.v1 import examples
from api.routes.v1.answers import JobId, Responses, problems
from serinette.errors import InvalidSpec, UnsupportedMediaType
from serinette.job import Job, JobOptions, JobStatus
from serinette.spec import GenerationSpec

router = APIRouter(tags=["jobs"])

_SPEC_FIELDS = GenerationSpec.model_fields.keys()

PreferHeader = Annotated[
    str | None,
    Header(description="`wait=N`: hold the answer until the job ends, N seconds at most.", examples=["wait=30"]),
]
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="Printable ASCII: the same key with the same song is the same job, however often sent.",
    ),
]


async def json_only(request: Request) -> None:
    """Refuse a body that is not JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType("Content-Type: send Content-Type: application/json", field="Content-Type")


class JobRequest(GenerationSpec, JobOptions):
    """A song to generate, and how to treat its job. Leave out what you do not care for."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": examples.REQUESTS})

    def spec(self) -> GenerationSpec:
        """The song alone, with only those fields set that the client wrote."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _SPEC_FIELDS}
        return GenerationSpec.model_construct(_fields_set=self.model_fields_set & _SPEC_FIELDS, **values)

    def options(self) -> JobOptions:
        """All but the song."""
        return JobOptions(**{name: getattr(self, name) for name in JobOptions.model_fields})


SUBMITTED: Responses = {
    200: {"model": Job, "description": "The job has ended (only with `Prefer: wait`, or a repeated key)."},
    202: {"description": "The job waits or runs.", "headers": examples.SUBMIT_HEADERS},
}
# Why a submit may be refused.
REFUSALS = (
    "bad_request",
    "invalid_spec",
    "too_large",
    "unsupported_media_type",
    "idempotency_conflict",
    "lane_not_allowed",
    "lane_full",
    "too_many_queued",
    "too_many_in_flight",
    "gpu_time_spent",
    "queue_unavailable",
    "store_unavailable",
)


class JobList(BaseModel):
    """A page of jobs, newest first."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null: there is none.")


@router.post(
    "/jobs",
    status_code=202,
    response_model=Job,
    summary="Submit a song",
    dependencies=[Depends(json_only)],
    responses={**SUBMITTED, **problems(*REFUSALS)},
)
async def submit(
    request: Annotated[JobRequest, Body(openapi_examples=examples.SUBMIT)],
    response: Response,
    door: DoorPart,
    events: EventsPart,
    settings: SettingsPart,
    tenant: TenantPart,
    standing: StandingPart,
    prefer: PreferHeader = None,
    idempotency_key: KeyHeader = None,
) -> Job:
    """Put a song into its lane. The answer's `Location` is where to look; the seed is drawn and reported."""
    job, created = await door.submit(tenant, request.spec(), request.options(), idempotency_key=idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if not created:
        response.headers["Idempotency-Replayed"] = "true"
    wait_s = preferred_wait_s(prefer, settings.max_wait_s)
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    job = await held(door, events, standing, job, wait_s)
    response.status_code = 200 if job.status.ended else 202
    return job


@router.get(
    "/jobs/{job_id}",
    summary="One job",
    responses={200: {"content": examples.JOB}, **problems("not_found", "queue_unavailable", "store_unavailable")},
)
async def look(
    job_id: JobId,
    response: Response,
    door: DoorPart,
    events: EventsPart,
    settings: SettingsPart,
    tenant: TenantPart,
    standing: StandingPart,
    prefer: PreferHeader = None,
) -> Job:
    """Status, stage, step k of n, place in its lane, ETA, attempts, timings, and in words what it waits for."""
    wait_s = preferred_wait_s(prefer, settings.max_wait_s)
    if wait_s is not None:
        response.headers["Preference-Applied"] = f"wait={wait_s:g}"
    job = await door.get(tenant, job_id)
    return await held(door, events, standing, job, wait_s)


@router.get(
    "/jobs",
    response_model=JobList,
    summary="Jobs, newest first",
    responses=problems("invalid_spec", "queue_unavailable"),
)
def list_jobs(
    queue: QueuePart,
    tenant: TenantPart,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[
        str | None,
        Query(max_length=127, description="Only jobs with this label: `name=value`.", examples=["album=blue"]),
    ] = None,
    cursor: Annotated[str | None, Query(max_length=300, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs on a page.")] = 20,
) -> JobList:
    """A page of jobs. With a filter a page may be short and still have a next one."""
    name, equals, value = (label or "").partition("=")
    if label is not None and not (name and equals):
        raise InvalidSpec("label: must be name=value", field="label")
    page = queue.list(tenant, status=status, label=(name, value) if label else None, cursor=cursor, limit=limit)
    return JobList(jobs=page.jobs, next_cursor=page.next_cursor)


@router.post(
    "/jobs/{job_id}/cancel",
    summary="Cancel a job",
    responses={200: {"content": examples.JOB}, **problems("not_found", "conflict", "queue_unavailable")},
)
async def cancel(job_id: JobId, door: DoorPart, tenant: TenantPart) -> Job:
    """A queued job ends at once, a running one within a step: then `cancel_requested` is true meanwhile."""
    return await door.cancel(tenant, job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Erase an ended job",
    responses=problems("not_found", "not_finished", "queue_unavailable", "store_unavailable"),
)
async def erase(job_id: JobId, door: DoorPart, tenant: TenantPart) -> None:
    """Its songs and every trace of it go. Cancel it first if it has not ended."""
    await door.erase(tenant, job_id)
