"""Refusals in the words that the seed's clients know; api/problems.py gives all others its `{"detail": ...}`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serinette.errors import InvalidAudio, InvalidSpec, NotFound

# What the rest of the gateway calls otherwise than the seed; only a file that came along is decoded here.
_SEED_NAMES = {"source_audio": "ref_audio_input", "file": "audio_file", None: "audio_file"}


class SeedRoute(APIRoute):
    """A route that refuses as FastAPI did for the seed: fields by `loc`, and an unknown id always by one sentence."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, those errors caught."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return invalid([{name: each[name] for name in ("loc", "msg", "type")} for each in error.errors()])
            except (InvalidSpec, InvalidAudio) as error:
                field = _SEED_NAMES.get(error.field, error.field)
                message = error.message.removeprefix(f"{error.field}: ")
                return invalid([{"loc": ["body", field], "msg": message, "type": error.code}])
            except NotFound:
                return JSONResponse({"detail": "Request not found"}, 404)

        return handler


def invalid(complaints: list[dict[str, Any]]) -> JSONResponse:
    """422, FastAPI's way."""
    return JSONResponse({"detail": complaints}, 422)
