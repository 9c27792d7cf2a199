"""Paths that several APIs have: one answer holds what each of them would answer. No dialect is named here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import APIRouter
from pydantic import create_model
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from api.dependencies import ContextPart, PartsPart
from api.dialects.dialect import Dialect, example
from api.problems import explained
from api.queue import Pool
from api.v1.queue import model_views
from serinette.errors import NotFound, QueueUnavailable
from serinette.views import ModelList, ModelView


def routes(dialects: Sequence[Dialect]) -> list[BaseRoute]:
    """GET /health and GET /v1/models, as these dialects and our own API have them."""
    router = APIRouter()
    shared = [dialect.shared for dialect in dialects if dialect.shared]

    def healthy(pools: Sequence[Pool], default_pool: str) -> dict[str, Any]:
        return _merged(each.health(pools, default_pool) for each in shared)

    in_the_document = healthy((), "default") | _merged(each.fixed for each in shared)

    @router.get(
        "/health",
        tags=["health"],
        summary="Health, models and counts",
        responses={**example(in_the_document), 503: {"description": "The queue does not answer."}},
    )
    async def get_health(request: Request, parts: PartsPart) -> Response:
        """Whether workers have their models, in the form of each dialect, beside those of the others."""
        try:
            return JSONResponse(healthy(await parts.queue.pools(), parts.settings.pool))
        except QueueUnavailable as error:
            why = await explained(request.app, error)
            return JSONResponse(_merged(each.unhealthy(why) for each in shared), 503)

    bases: Any = (ModelList, *(each.models_schema for each in shared if each.models_schema))
    description = "All models: `models` for our clients; the rest is other servers' form of them at this path."

    @router.get(
        "/v1/models",
        tags=["queue"],
        summary="The models",
        response_model=create_model("ModelList", __base__=bases, __doc__=description),
    )
    async def list_models(context: ContextPart) -> dict[str, Any]:
        """What can be asked for: what workers that are up hold, and what pools at zero would.

        Empty where the gateway has no pools configured and no worker is up; jobs without `model` are accepted all the
        same.
        """
        views = model_views(await context.queue.pools(), context.settings)
        names = dict.fromkeys(view.name for view in sorted(views, key=lambda view: not view.default))
        return _merged(each.models(list(names)) for each in shared) | {"models": views}

    one: Any = (ModelView, *(each.model for each in shared if each.model))

    @router.get(
        "/v1/models/{name:path}",
        tags=["queue"],
        summary="One model",
        response_model=create_model("OneModel", __base__=one, __doc__="A model, in all APIs' forms."),
    )
    async def get_model(name: str, context: ContextPart) -> dict[str, Any]:
        """One of those that can be asked for; `acestep/NAME`, as ACE-Step's own server spells it, is NAME."""
        held = {view.name: view for view in model_views(await context.queue.pools(), context.settings)}
        view = held.get(name) or held.get(name.rpartition("/")[2])
        if view is None:
            raise NotFound(f"there is no model {name[:80]!r}; GET /v1/models lists those that can be asked for")
        return view.model_dump() | {"id": view.name}

    return router.routes


def _merged(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for each in answers for name, value in each.items()}
