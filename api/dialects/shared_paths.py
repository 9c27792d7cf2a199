"""Paths that several APIs have: one answer holds what each of them would answer. No dialect is named here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import create_model
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from api.dependencies import QueuePart, SettingsPart
from api.dialects.dialect import Dialect, example
from api.problems import explained, problems
from api.queue import Pool
from api.v1.queue import ModelList, ModelView, model_views
from serinette.errors import NotFound, QueueUnavailable


def routes(dialects: Sequence[Dialect]) -> list[BaseRoute]:
    """GET /health and GET /v1/models, as these dialects and our own API have them."""
    router = APIRouter()
    parts = [dialect.shared for dialect in dialects if dialect.shared]

    def healthy(pools: Sequence[Pool], default_pool: str) -> dict[str, Any]:
        return _merged(part.health(pools, default_pool) for part in parts)

    in_the_document = healthy((), "default") | _merged(part.fixed for part in parts)

    @router.get(
        "/health",
        tags=["health"],
        summary="Health, models and counts",
        responses={**example(in_the_document), 503: {"description": "The queue does not answer."}},
    )
    async def health(request: Request, queue: QueuePart, settings: SettingsPart) -> Response:
        """Whether workers have their models, in the form of each dialect, beside those of the others."""
        try:
            return JSONResponse(healthy(await queue.pools(), settings.pool))
        except QueueUnavailable as error:
            why = await explained(request.app, error)
            return JSONResponse(_merged(part.unhealthy(why) for part in parts), 503)

    bases: Any = (ModelList, *(part.models_schema for part in parts if part.models_schema))
    description = "All models: `models` for our clients; the rest is other servers' form of them at this path."

    @router.get(
        "/v1/models",
        tags=["queue"],
        summary="The models",
        response_model=create_model("ModelList", __base__=bases, __doc__=description),
        responses=problems("queue_unavailable"),
    )
    async def models(queue: QueuePart, settings: SettingsPart) -> dict[str, Any]:
        """What can be asked for: what workers that are up hold, and what pools at zero would.

        Empty where the gateway has no pools configured and no worker is up; jobs without `model` are accepted all the
        same.
        """
        views = model_views(await queue.pools(), settings)
        names = dict.fromkeys(view.name for view in sorted(views, key=lambda view: not view.default))
        return _merged(part.models(list(names)) for part in parts) | {"models": views}

    one: Any = (ModelView, *(part.model for part in parts if part.model))

    @router.get(
        "/v1/models/{name:path}",
        tags=["queue"],
        summary="One model",
        response_model=create_model("OneModel", __base__=one, __doc__="A model, in all APIs' forms."),
        responses=problems("not_found", "queue_unavailable"),
    )
    async def get_model(name: str, queue: QueuePart, settings: SettingsPart) -> dict[str, Any]:
        """One of those that can be asked for; `acestep/NAME`, as ACE-Step's own server spells it, is NAME."""
        held = {view.name: view for view in model_views(await queue.pools(), settings)}
        view = held.get(name) or held.get(name.rpartition("/")[2])
        if view is None:
            raise NotFound(f"there is no model {name[:80]!r}; GET /v1/models lists those that can be asked for")
        return view.model_dump() | {"id": view.name}

    return router.routes


def _merged(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for each in answers for name, value in each.items()}
