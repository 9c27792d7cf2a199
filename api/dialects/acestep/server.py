"""Calls about the server itself: what it holds, how much it does, and the state that it has not."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.dependencies import QueuePart, SettingsPart, tenant
from api.dialects.acestep import documented, inventory
from api.dialects.acestep.envelope import Envelope, wrapped
from api.dialects.acestep.inventory import LORA_REFUSAL, LORA_STATUS, Inventory
from api.dialects.acestep.refusals import AceStepRoute
from serinette.errors import RequestError

router = APIRouter(prefix="/v1", route_class=AceStepRoute, tags=[documented.TAG], dependencies=[Depends(tenant)])


async def _held(queue: QueuePart, settings: SettingsPart) -> Inventory:
    return inventory.inventory(await queue.pools(), settings.pool)


HeldPart = Annotated[Inventory, Depends(_held)]


class InitModel(BaseModel):
    """A model to load. Here workers do that, each its own."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str | None = Field(None, max_length=200)
    slot: int | None = Field(None, ge=1, le=3)
    init_llm: bool = False
    lm_model_path: str | None = Field(None, max_length=1_000)


class ToggleLora(BaseModel):
    """Whether a LoRA should be on for all requests."""

    use_lora: bool


@router.get("/model_inventory", summary="The models", responses=documented.AWAY)
async def model_inventory(held: HeldPart) -> Envelope[Inventory]:
    """What the workers that are up hold."""
    return Envelope(data=held)


@router.get(
    "/stats",
    summary="Counts",
    responses=documented.answers(inventory.stats([], "default", 10_000), documented.AWAY),
)
async def stats(queue: QueuePart, settings: SettingsPart) -> dict[str, Any]:
    """Tasks by state, of all clients and dialects; `avg_job_seconds` is 0 before the first song."""
    return wrapped(inventory.stats(await queue.pools(), settings.pool, settings.max_waiting))


@router.post("/init", summary="Whether a model is held", responses=documented.answers(None, documented.AWAY))
async def init(held: HeldPart, body: InitModel | None = None) -> dict[str, Any]:
    """Nothing is loaded by this call: 200 in the envelope if a worker holds the model, else why none does."""
    asked = body or InitModel()
    if refusal := inventory.cannot_initialize(held, asked.model, init_llm=asked.init_llm):
        return wrapped(code=500, error=refusal)
    return wrapped(inventory.initialized(held, asked.model, asked.slot or 1))


@router.post("/reinitialize", summary="Nothing to reload", responses=documented.answers(None, documented.AWAY))
async def reinitialize(held: HeldPart) -> dict[str, Any]:
    """Nothing is reloaded by this call: workers mend themselves."""
    return wrapped(inventory.reinitialized(held))


@router.get("/lora/status", summary="No LoRA for all requests", responses=documented.answers(LORA_STATUS))
async def lora_status() -> dict[str, Any]:
    """None: a LoRA belongs to a task."""
    return wrapped(LORA_STATUS)


@router.post("/lora/load", summary="Refused: a LoRA belongs to a task", responses=documented.WRONG)
async def load_lora() -> dict[str, Any]:
    """Send `lora` and `lora_scale` with the task."""
    raise RequestError(LORA_REFUSAL)


@router.post("/lora/unload", summary="Nothing to unload", responses=documented.answers({"message": "..."}))
async def unload_lora() -> dict[str, Any]:
    """No LoRA is ever loaded for all requests."""
    return wrapped({"message": LORA_STATUS["message"]})


@router.post("/lora/toggle", summary="Off is as it is", responses=documented.answers({"message": "..."}))
async def toggle_lora(body: Annotated[ToggleLora, Body()]) -> dict[str, Any]:
    """Off is answered as done; on with 400 in the envelope."""
    if body.use_lora:
        return wrapped(code=400, error=LORA_REFUSAL)
    return wrapped({"message": LORA_STATUS["message"], "use_lora": False})


@router.post("/lora/scale", summary="Refused: a LoRA belongs to a task", responses=documented.answers(None))
async def scale_lora() -> dict[str, Any]:
    """400 in the envelope: send `lora_scale` with the task."""
    return wrapped(code=400, error=LORA_REFUSAL)
