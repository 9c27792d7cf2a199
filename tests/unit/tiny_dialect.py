"""A dialect of three calls, as a folder below api/dialects would have it: a table, an error shape and routes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, Response

from api.dialects.dialect import Dialect, JobAccessPart, SharedAnswers, refusing
from api.dialects.fields import Conversion, To, convert, renamer
from api.problems import status_of
from serinette.errors import SerinetteError


class Tune(BaseModel):
    """The request of its clients."""

    model_config = ConfigDict(extra="allow")

    text: str = ""
    seconds: float | None = None
    tempo: float | None = None
    reverb: bool | None = None
    describe: bool = False


def _bpm(tempo: float, conversion: Conversion[Tune]) -> int:
    if tempo != round(tempo):
        conversion.adjust("whole beats only", round(tempo))
    return round(tempo)


TABLE = {
    "text": To("prompt"),
    "seconds": To("duration_s"),
    "tempo": To("bpm", _bpm),
    "reverb": To(neutral=(False,)),
    "describe": To(refused="nothing here describes songs"),
}
_theirs = renamer(TABLE)


def _refuse(error: Exception) -> Response | None:
    match error:
        case RequestValidationError():
            return JSONResponse({"wrong": error.errors()[0]["msg"]}, 400)
        case SerinetteError():
            return JSONResponse({"wrong": _theirs(error.message)}, status_of(error))
    return None


router = APIRouter(route_class=refusing(_refuse), tags=["Tiny"])


@router.post("/v1/tunes/new")
async def new(tune: Tune, access: JobAccessPart) -> dict[str, Any]:
    """Submit a tune."""
    conversion = convert(TABLE, tune, models=await access.models())
    job = await access.submit(conversion, {"tiny": "yes"})
    changed = [(each.field, each.sent, each.used, each.reason) for each in conversion.adjusted]
    return {"tune": job.id, "changed": changed, "unused": conversion.ignored}


@router.get("/v1/tunes/{tune_id}")
async def look(tune_id: str, access: JobAccessPart) -> dict[str, Any]:
    """One tune."""
    return {"state": (await access.get(tune_id)).status}


@router.delete("/v1/tunes/{tune_id}")
async def stop(tune_id: str, access: JobAccessPart) -> dict[str, Any]:
    """Cancel it."""
    _, canceled = await access.cancel(tune_id)
    return {"stopped": canceled}


class Names(BaseModel):
    """Its form of GET /v1/models."""

    names: list[str] = []


DIALECT = Dialect(
    name="tiny",
    tag="Tiny",
    about="The tests' own.",
    routes=router.routes,
    file_paths=("/v1/tunes/new",),
    key_paths=frozenset({"/v1/tunes/new"}),
    shared=SharedAnswers(
        health=lambda pools, _: {"tiny": len(pools)},
        unhealthy=lambda error: {"tiny": error.code},
        models=lambda names: {"names": list(names)},
        models_schema=Names,
    ),
)
