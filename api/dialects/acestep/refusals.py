"""Refusals as this dialect's clients read them: `detail` as its server tells it, and the envelope's `error` beside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from api.dialects.acestep.envelope import wrapped
from api.dialects.acestep.fields import theirs
from api.problems import headers_of, invalid, status_of
from serinette.errors import InvalidAudio, InvalidSpec, RequestError, SerinetteError

log = logging.getLogger(__name__)


class AceStepRoute(APIRoute):
    """A route that refuses in the dialect's shape and codes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, its errors caught."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return refused(400, invalid(error.errors()[0]).message)
            except HTTPException as error:
                return refused(error.status_code, str(error.detail), dict(error.headers or {}))
            except SerinetteError as error:
                return told(error)

        return handler


def told(error: SerinetteError) -> Response:
    """The refusal that tells an error. What the client can mend is 400 there, where our own paths say 422."""
    if not isinstance(error, RequestError):
        log.warning("%s: %s", error.code, error.message)
    status = 400 if isinstance(error, InvalidSpec | InvalidAudio) else status_of(error)
    return refused(status, theirs(error.message), headers_of(error))


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal, both for clients that read `detail` and for those that read `error`."""
    return JSONResponse(wrapped(code=status, error=message) | {"detail": message}, status, headers)
