"""What our routes share: ids in the path, the job as the answer, and how answers with files are documented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, BeforeValidator
from starlette.responses import Response

from api.problems import Responses
from serinette.errors import NotFound
from serinette.job import Job
from serinette.spec import GenerationSpec

JOB_ID = "2f1b6c1e-6d0a-4f5e-9c55-0f6f5b1d7a10"


# Answers where a file is asked for: a part of it, none of it, or where to fetch it.
PARTS: Responses = {
    206: {"description": "The bytes asked for by `Range`."},
    304: {"description": "`If-None-Match` names its ETag."},
    416: {"description": "No byte of it is in the `Range`."},
}
REDIRECT = {"description": "The store serves it itself: a presigned URL in `Location`."}


def _checked(kind: str, form: str, advice: str = "") -> AfterValidator:
    """Of what is named in a path, what has not the form of ours is not there."""

    def check(name: str) -> str:
        if not re.fullmatch(form, name):
            raise NotFound(f"there is no {kind} {name[:80]}{advice}")
        return name

    return AfterValidator(check)


JobId = Annotated[
    str,
    Path(description="As submit answered it.", examples=[JOB_ID]),
    _checked("job", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", f": a job id looks like {JOB_ID}"),
]
BatchId = Annotated[
    str, Path(description="The `id` that the batch was created with."), _checked("batch", "batch-[0-9a-f]{32}")
]
UploadId = Annotated[
    str, Path(description="The `id` that the upload returned."), _checked("upload", "upload-[0-9a-f]{32}")
]


def written_as(form: str, example: str) -> BeforeValidator:
    """Of a time in a query: pydantic would read a number as seconds since 1970."""

    def check(text: object) -> object:
        if isinstance(text, str) and not re.match(form, text):
            raise ValueError(f"must be {example}")
        return text

    return BeforeValidator(check)


def job_answer(job: Job, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A job as the body: written once, where FastAPI would check it against the model that it is of first."""
    return Response(job.model_dump_json(exclude=unknown_fields(job)), status, headers, "application/json")


def unknown_fields(job: Job) -> dict[str, Any] | None:
    """What to leave out of a job's answer, as its defaults would look like facts: what is left to a planner, and all
    that is not known of a job in brief.
    """
    # A job in brief (api/queue/lookup.py) has ended, and says nothing of attempts.
    if not job.status.ended or "attempts" in job.model_fields_set:
        return {"spec": set(job.spec.left_to_text)} if job.spec.left_to_text else None
    unset = dict.fromkeys(Job.model_fields.keys() - job.model_fields_set, True)
    return {**unset, "spec": set(GenerationSpec.model_fields) - job.spec.model_fields_set}
