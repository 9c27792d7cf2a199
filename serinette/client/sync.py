"""Client: the methods of AsyncClient, each completed without an event loop, for its network blocks (network.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from serinette.client.asynchronous import AsyncClient
from serinette.client.batches import AsyncBatches
from serinette.client.containers import AsyncContainers
from serinette.client.network import Blocking, completed
from serinette.client.retries import Retry

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


class _Blocked(AsyncClient):
    """Its coroutines never suspend."""

    _kind = Blocking


def _waiting(method: Callable[Concatenate[S, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """The method of `_awaited`, completed."""

    @wraps(method)
    def call(self: Any, /, *given: P.args, **named: P.kwargs) -> T:  # noqa: ANN401  # any class of this file
        return completed(method(self._awaited, *given, **named))

    return call


def _iterating(method: Callable[Concatenate[S, P], AsyncIterator[T]]) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """The same for a method that yields."""

    @wraps(method)
    def call(self: Any, /, *given: P.args, **named: P.kwargs) -> Iterator[T]:  # noqa: ANN401  # likewise
        items: Any = method(self._awaited, *given, **named)
        try:
            while True:
                try:
                    item: T = completed(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            completed(items.aclose())

    return call


class Client:
    """Talks to one gateway, as AsyncClient does, and waits. Safe to share between threads."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        given: Any = transport  # which Blocking takes
        self._awaited = _Blocked(url, api_key=api_key, timeout_s=timeout_s, retry=retry, transport=given)
        self.url = self._awaited.url
        self.batches = Batches(self._awaited.batches)
        self.containers = Containers(self._awaited.containers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    close = _waiting(AsyncClient.close)
    submit = _waiting(AsyncClient.submit)
    get = _waiting(AsyncClient.get)
    list = _waiting(AsyncClient.list)
    iterate = _iterating(AsyncClient.iterate)
    cancel = _waiting(AsyncClient.cancel)
    erase = _waiting(AsyncClient.erase)
    events = _iterating(AsyncClient.events)
    watch = _iterating(AsyncClient.watch)
    wait = _waiting(AsyncClient.wait)
    download = _waiting(AsyncClient.download)
    upload = _waiting(AsyncClient.upload)
    erase_upload = _waiting(AsyncClient.erase_upload)
    usage = _waiting(AsyncClient.usage)
    queue = _waiting(AsyncClient.queue)
    workers = _waiting(AsyncClient.workers)
    models = _waiting(AsyncClient.models)
    perform = _waiting(AsyncClient.perform)


class Batches:
    """`client.batches`: as AsyncBatches."""

    def __init__(self, awaited: AsyncBatches) -> None:
        self._awaited = awaited

    create = _waiting(AsyncBatches.create)
    get = _waiting(AsyncBatches.get)
    list = _waiting(AsyncBatches.list)
    pause = _waiting(AsyncBatches.pause)
    resume = _waiting(AsyncBatches.resume)
    cancel = _waiting(AsyncBatches.cancel)
    retry = _waiting(AsyncBatches.retry)
    erase = _waiting(AsyncBatches.erase)
    wait = _waiting(AsyncBatches.wait)
    lines = _iterating(AsyncBatches.lines)
    results = _iterating(AsyncBatches.results)
    download = _waiting(AsyncBatches.download)


class Containers:
    """`client.containers`: as AsyncContainers."""

    def __init__(self, awaited: AsyncContainers) -> None:
        self._awaited = awaited

    submit = _waiting(AsyncContainers.submit)
    upload = _waiting(AsyncContainers.upload)
    log = _waiting(AsyncContainers.log)
    follow = _iterating(AsyncContainers.follow)
    download = _waiting(AsyncContainers.download)
