"""An AsyncClient under Client's methods, so that one test speaks to both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from serinette.client import AsyncClient, Retry

_DONE = object()


class Awaited:
    """Waits for what is a coroutine, iterates over what is an async iterator."""

    def __init__(self, portal: BlockingPortal, client: Any) -> None:
        self._portal = portal
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if name in {"batches", "containers"}:
            return Awaited(self._portal, method)

        def call(*given: Any, **named: Any) -> Any:
            answer = method(*given, **named)
            return self._iterate(answer) if hasattr(answer, "__anext__") else self._portal.call(_result, answer)

        return call

    def _iterate(self, items: Any) -> Iterator[Any]:
        while (item := self._portal.call(_next, items)) is not _DONE:
            yield item


@contextmanager
def awaited(url: str, retry: Retry) -> Iterator[Awaited]:
    """One on an event loop of its own."""
    with start_blocking_portal() as portal:
        client = Awaited(portal, AsyncClient(url, retry=retry))
        yield client
        client.close()


async def _result(coroutine: Any) -> Any:
    return await coroutine


async def _next(items: Any) -> Any:
    return await anext(items, _DONE)
