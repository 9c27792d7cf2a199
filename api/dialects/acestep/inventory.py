"""Models, counts and health in this dialect. Pure functions of the pools.

Its server holds the models itself; here workers do, and there may be none just now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, Field

from api.queue import Pool
from serinette import __version__
from serinette.presence import WorkerStage

SERVICE: Final = "ACE-Step API"
NO_LM: Final = "workers load language models, not this call, and none has one"
_LOADED = frozenset({WorkerStage.READY, WorkerStage.DRAINING})


class InventoryModel(BaseModel):
    """A checkpoint that a worker holds."""

    name: str
    is_default: bool
    is_loaded: bool
    supported_task_types: tuple[str, ...]


class Inventory(BaseModel):
    """All models that workers hold."""

    models: tuple[InventoryModel, ...]
    default_model: str | None
    lm_models: tuple[str, ...] = Field((), description="The planners that workers hold.")
    loaded_lm_model: str | None = None
    llm_initialized: bool = False


def inventory(pools: Sequence[Pool], default_pool: str) -> Inventory:
    """What the workers that are up hold."""
    held: dict[str, InventoryModel] = {}
    for worker in (worker for pool in pools for worker in pool.workers):
        if worker.model is None:
            continue
        known = held.get(worker.model.name)
        held[worker.model.name] = InventoryModel(
            name=worker.model.name,
            is_default=worker.pool == default_pool or (known is not None and known.is_default),
            is_loaded=worker.stage in _LOADED or (known is not None and known.is_loaded),
            supported_task_types=worker.model.tasks,
        )
    models = tuple(held[name] for name in sorted(held))
    workers = [worker for pool in pools for worker in pool.workers]
    planners = tuple(sorted({worker.model.planner for worker in workers if worker.model and worker.model.planner}))
    return Inventory(
        models=models,
        default_model=next((model.name for model in models if model.is_default), None),
        lm_models=planners,
        loaded_lm_model=next(iter(planners), None),
        llm_initialized=bool(planners),
    )


def stats(pools: Sequence[Pool], default_pool: str, max_waiting: int) -> dict[str, Any]:
    """GET /v1/stats. `max_waiting` bounds the lane that all tasks wait in; beyond it a release is 429."""
    waiting = sum(sum(pool.waiting.values()) for pool in pools)
    jobs = {
        "queued": waiting,
        "running": sum(pool.running for pool in pools),
        "succeeded": sum(pool.succeeded for pool in pools),
        "failed": sum(pool.unsuccessful for pool in pools),
    }
    pace_s = next((pool.pace_s for pool in pools if pool.name == default_pool), None)
    return {
        "jobs": {"total": sum(jobs.values()), **jobs},
        "queue_size": waiting,
        "queue_maxsize": max_waiting,
        "avg_job_seconds": round(pace_s or 0.0, 2),
    }


def health(held: Inventory) -> dict[str, Any]:
    """GET /health: the gateway answers, and these are the models that it has workers for."""
    loaded = [model.name for model in held.models if model.is_loaded]
    return {
        "status": "ok",
        "service": SERVICE,
        "version": __version__,
        "models_initialized": bool(loaded),
        "llm_initialized": held.llm_initialized,
        "loaded_model": held.default_model if held.default_model in loaded else next(iter(loaded), None),
        "loaded_lm_model": held.loaded_lm_model,
    }


def cannot_initialize(held: Inventory, model: str | None, *, init_llm: bool) -> str | None:
    """Why POST /v1/init cannot be done; None when what it asks for is so already."""
    loaded = [each.name for each in held.models if each.is_loaded]
    if init_llm and not held.llm_initialized:
        return f"Model initialization failed: {NO_LM}"
    if model is not None and model not in loaded:
        here = ", ".join(loaded) or "nothing yet"
        return f"Model initialization failed: workers load models, not this call, and none has {model}; held: {here}"
    if not loaded:
        return "Model initialization failed: workers load models, not this call, and none has one yet; tasks wait"
    return None


def initialized(held: Inventory, model: str | None, slot: int) -> dict[str, Any]:
    """POST /v1/init of what is there."""
    name = model or health(held)["loaded_model"]
    done = {"message": f"{name} is held by a worker", "slot": slot, "loaded_model": name}
    return done | held.model_dump(mode="json", include={"models", "lm_models", "loaded_lm_model", "llm_initialized"})


def reinitialized(held: Inventory) -> dict[str, Any]:
    """POST /v1/reinitialize: what is held instead."""
    loaded = ", ".join(model.name for model in held.models if model.is_loaded) or "none"
    return {"message": f"Nothing was reloaded: workers load models and restart by themselves; held now: {loaded}"}


LORA_STATUS: Final[dict[str, Any]] = {
    "lora_loaded": False,
    "use_lora": False,
    "lora_scale": 1.0,
    "adapter_type": None,
    "scales": {},
    "active_adapter": None,
    "adapters": [],
    "synthetic_default_mode": False,
    "message": "a LoRA belongs to a task here, and the server has none switched on: send lora and lora_scale with it",
}
LORA_REFUSAL: Final = (
    "a LoRA belongs to a task here, so that no other client's songs change: send lora (a published name, no path) and "
    "lora_scale with POST /release_task"
)
