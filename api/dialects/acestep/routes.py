"""ACE-Step 1.5's calls. What becomes of a task is in table.py, what is answered in answers.py and inventory.py."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Body as BodyParameter
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from api.dependencies import ContextPart
from api.dialects.acestep import answers, documented, inventory
from api.dialects.acestep.answers import Envelope, wrapped
from api.dialects.acestep.inventory import LORA_REFUSAL, LORA_STATUS, Inventory
from api.dialects.acestep.names import song_named
from api.dialects.acestep.samples import random_sample
from api.dialects.acestep.table import convert, convert_text, record_of
from api.dialects.body import Body, BodyPart, read_json
from api.dialects.dialect import JobAccess, JobAccessPart, KeyHeader, refusing
from api.downloads import song_of
from serinette.errors import InvalidSpec, RequestError
from serinette.job import Job
from serinette.spec import PlainNumber

_Route = refusing(answers.refuse)
tasks = APIRouter(route_class=_Route, tags=[documented.TAG])
server = APIRouter(prefix="/v1", route_class=_Route, tags=[documented.TAG])

# One answer names no more tasks than these.
MAX_TASKS: Final = 256
_FILES: Final = {
    "src_audio_path": ("src_audio", "ctx_audio"),
    "reference_audio_path": ("reference_audio", "ref_audio"),
}


@tasks.post(
    "/release_task",
    summary="Release a task",
    openapi_extra=documented.RELEASE_BODY,
    responses=documented.answers(
        {"task_id": documented.TASK_ID, "status": "queued", "queue_position": 1, "warnings": []},
        documented.NO_ANALYSIS,
    ),
)
async def release_task(body: BodyPart, access: JobAccessPart, idempotency_key: KeyHeader = None) -> dict[str, Any]:
    """Queue songs. `warnings` has a sentence for each field that is not used as sent."""
    return wrapped(answers.released(await _release(body, access, idempotency_key)))


@tasks.post(
    "/query_result",
    summary="Query tasks",
    openapi_extra=documented.QUERY_BODY,
    responses=documented.answers([answers.answer(documented.TASK_ID, None)]),
)
async def query_result(body: BodyPart, access: JobAccessPart) -> dict[str, Any]:
    """`status`: 0 queued or running, 1 succeeded, 2 failed; `result` is JSON in a string, a record for each song."""
    task_ids = task_ids_of(body)
    jobs = await access.find(task_ids)
    return wrapped([answers.answer(task_id, job) for task_id, job in zip(task_ids, jobs, strict=True)])


@tasks.get("/v1/audio", summary="A song", response_class=Response, responses=documented.SONG)
async def audio(
    request: Request,
    access: JobAccessPart,
    path: Annotated[str, Query(description="The token that is `file` in a result; no path.")] = "",
) -> Response:
    """The song's file, whole or in part."""
    job_id, index = song_named(path)
    song = song_of(await access.get(job_id), index)
    return await access.song(request, song, f"{job_id}-{index}.{song.format}", download=False)


@tasks.post(
    "/create_random_sample",
    summary="An example to start from",
    openapi_extra=documented.SAMPLE_BODY,
    responses=documented.answers(documented.SAMPLE),
)
async def create_random_sample(body: BodyPart) -> dict[str, Any]:
    """One of several examples, picked at random."""
    return wrapped(random_sample(str(body.fields.get("sample_type") or "simple_mode")))


@tasks.post(
    "/format_input",
    summary="Prompt and lyrics in order",
    openapi_extra=documented.WORDS_BODY,
    responses=documented.answers(documented.WRITTEN, documented.NO_ANALYSIS),
)
async def format_input(body: BodyPart, access: JobAccessPart) -> dict[str, Any]:
    """A planner puts them in order. Where none is up they come back as they are; `degraded` and `warnings` say so."""
    asked = {name: value for name, value in body.fields.items() if name not in {"sample_query", "sample_mode"}}
    return wrapped(await _written({**asked, "use_format": True}, access))


@tasks.post(
    "/v1/create_sample",
    summary="A song from a description",
    openapi_extra=documented.WORDS_BODY,
    responses=documented.answers(documented.WRITTEN, documented.NO_ANALYSIS),
)
async def create_sample(body: BodyPart, access: JobAccessPart) -> dict[str, Any]:
    """A planner writes it. Where none is up the description comes back as the caption, without lyrics, which `degraded`
    and `warnings` say.
    """
    said = [body.fields.get(name) for name in ("query", "sample_query")]
    query = next((each for each in said if each and str(each).strip()), "")
    asked = {name: value for name, value in body.fields.items() if name not in {"query", "sample_query"}}
    asked |= {"sample_query": query} if query else {"sample_mode": True}
    return wrapped(await _written(asked, access))


async def _held(context: ContextPart) -> Inventory:
    return inventory.inventory(await context.queue.pools(), context.settings.pool)


HeldPart = Annotated[Inventory, Depends(_held)]


class InitModel(BaseModel):
    """A model to load. Here workers do that, each its own."""

    model_config = ConfigDict(frozen=True)

    model: str | None = Field(None, max_length=200)
    slot: Annotated[int, Field(ge=1, le=3), PlainNumber] | None = None
    init_llm: bool = False
    lm_model_path: str | None = Field(None, max_length=1_000)


class ToggleLora(BaseModel):
    """Whether a LoRA should be on for all requests."""

    use_lora: bool


@server.get("/model_inventory", summary="The models")
async def model_inventory(held: HeldPart) -> Envelope[Inventory]:
    """The models that running workers hold."""
    return Envelope(data=held)


@server.get(
    "/stats",
    summary="Task counts",
    responses=documented.answers(inventory.stats([], "default", 10_000)),
)
async def stats(context: ContextPart) -> dict[str, Any]:
    """Tasks by state, of all clients and dialects; `avg_job_seconds` is 0 before the first song."""
    pools, settings = await context.queue.pools(), context.settings
    return wrapped(inventory.stats(pools, settings.pool, settings.max_waiting))


@server.post("/init", summary="Whether a model is held", responses=documented.answers(None))
async def init(held: HeldPart, body: InitModel | None = None) -> dict[str, Any]:
    """Nothing is loaded by this call: 200 in the envelope if a worker holds the model, else why none does."""
    asked = body or InitModel()
    if refusal := inventory.cannot_initialize(held, asked.model, init_llm=asked.init_llm):
        return wrapped(code=500, error=refusal)
    return wrapped(inventory.initialized(held, asked.model, asked.slot or 1))


@server.post("/reinitialize", summary="Nothing to reload", responses=documented.answers(None))
async def reinitialize(held: HeldPart) -> dict[str, Any]:
    """Nothing is reloaded by this call: workers restart by themselves."""
    return wrapped(inventory.reinitialized(held))


@server.get("/lora/status", summary="No LoRA for all requests", responses=documented.answers(LORA_STATUS))
async def lora_status() -> dict[str, Any]:
    """None: a LoRA belongs to a task."""
    return wrapped(LORA_STATUS)


@server.post("/lora/load", summary="Refused: a LoRA belongs to a task")
async def load_lora() -> dict[str, Any]:
    """Send `lora` and `lora_scale` with the task."""
    raise RequestError(LORA_REFUSAL)


@server.post("/lora/unload", summary="Nothing to unload", responses=documented.answers({"message": "..."}))
async def unload_lora() -> dict[str, Any]:
    """No LoRA is ever loaded for all requests."""
    return wrapped({"message": LORA_STATUS["message"]})


@server.post(
    "/lora/toggle", summary="Turn a LoRA on or off for all requests", responses=documented.answers({"message": "..."})
)
async def toggle_lora(body: Annotated[ToggleLora, BodyParameter()]) -> dict[str, Any]:
    """Off succeeds, as no LoRA is loaded for all requests; on is refused with 400 in the envelope."""
    if body.use_lora:
        return wrapped(code=400, error=LORA_REFUSAL)
    return wrapped({"message": LORA_STATUS["message"], "use_lora": False})


@server.post("/lora/scale", summary="Refused: a LoRA belongs to a task", responses=documented.answers(None))
async def scale_lora() -> dict[str, Any]:
    """400 in the envelope: send `lora_scale` with the task."""
    return wrapped(code=400, error=LORA_REFUSAL)


async def _written(fields: dict[str, Any], access: JobAccess) -> dict[str, Any]:
    """What a planner writes of the fields of a task: a job, waited for as long as one request may."""
    sent = {"temperature": "lm_temperature", "top_p": "lm_top_p"}  # as these two calls name them
    conversion = convert_text({sent.get(name, name): value for name, value in fields.items()})
    conversion.spec()
    job: Job | None = None
    if await access.plans():
        job = await access.wait(await access.submit(conversion, record_of(conversion)), access.settings.max_wait_s)
        if not job.status.ended:
            job, _ = await access.cancel(job.id)
    return answers.written(conversion, job)


async def _release(body: Body, access: JobAccess, idempotency_key: str | None) -> Job:
    models = await access.models()
    files = _files(body)
    # Before files are taken in: what is wrong without them is wrong with them, and some are of no use.
    uploads = dict.fromkeys(files, "upload")
    spec = convert(body.fields, uploads, models).spec()
    for field, ours in (("src_audio_path", spec.source_audio), ("reference_audio_path", spec.reference_audio)):
        if field in files and ours is not None:
            uploads[field] = await access.keep(*files[field], idempotency_key)
    conversion = convert(body.fields, uploads, models)
    conversion.ignored += body.files.keys() - {name for name, _ in files.values()}
    return await access.submit(conversion, record_of(conversion), idempotency_key)


def _files(body: Body) -> dict[str, tuple[str, UploadFile]]:
    sent = body.files
    return {field: (name, sent[name]) for field, names in _FILES.items() for name in reversed(names) if name in sent}


def task_ids_of(body: Body) -> list[str]:
    """`task_id_list`, a list or its JSON as text; other text names one task.

    Raises:
        InvalidSpec: it names none, or too many.
    """
    value: Any = next((body.fields[name] for name in ("task_id_list", "taskIdList") if name in body.fields), None)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = read_json(value)
    task_ids = [value] if isinstance(value, str) else value
    if not (
        isinstance(task_ids, list) and task_ids and all(isinstance(each, str) and each.strip() for each in task_ids)
    ):
        raise InvalidSpec('task_id_list: name the tasks to query, like {"task_id_list": ["..."]}', field="task_id_list")
    if len(task_ids) > MAX_TASKS:
        raise InvalidSpec(f"task_id_list: at most {MAX_TASKS} tasks an answer", field="task_id_list")
    return task_ids
