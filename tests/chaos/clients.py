"""Persistent clients: they submit with an Idempotency-Key until they are answered, and poll until their job ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import httpx

from tests.chaos.ledger import ENDED, ClientLedger, Promise
from tests.chaos.plan import Cancel, Order

_PAUSE_S = 0.3
_WAIT_S = 5
_TIMEOUT = httpx.Timeout(30, connect=5)
# What a client may be asked to retry; anything else is an answer.
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})


class Client:
    """One client of several tenants. `window`: jobs of it that may be unfinished at a time."""

    def __init__(
        self, gateways: Sequence[str], keys: dict[str, str], ledger: ClientLedger, *, webhook: str, seed: int
    ) -> None:
        self._gateways = gateways
        self._keys = keys
        self._ledger = ledger
        self._webhook = webhook
        self._chance = Random(seed)
        self._http = httpx.AsyncClient(timeout=_TIMEOUT)
        self.open: Counter[str] = Counter()  # requests under way, by gateway
        self.internal_errors = 0

    async def run(self, orders: Sequence[Order], window: int) -> None:
        """Submit all orders and follow each job to its end."""
        room = asyncio.Semaphore(window)

        async def one(order: Order) -> None:
            async with room:
                await self._fulfil(order)

        try:
            await asyncio.gather(*(one(order) for order in orders))
        finally:
            await self._http.aclose()

    async def _fulfil(self, order: Order) -> None:
        promise = await self._ledger.accept(order, await self._submit(order))
        if order.cancel is Cancel.AT_ONCE:
            await self._cancel(promise)
        while not promise.over:
            if order.listens:
                await self._listen(promise)
            await self._look(promise)

    async def _submit(self, order: Order) -> str:
        body = {
            "prompt": order.prompt,
            "seed": order.number,
            "duration_s": 1,
            "lane": order.lane,
            "labels": {"order": str(order.number)},
        }
        if order.webhook:
            body["webhook"] = f"{self._webhook}/{order.number}"
        headers = {"Idempotency-Key": order.key}
        while True:
            answer = await self._ask(order, "POST", "/v1/jobs", json=body, headers=headers)
            if answer is not None and answer.status_code in {200, 202}:
                return str(answer.json()["id"])
            if answer is not None:
                raise AssertionError(f"order {order.number} is refused: {answer.status_code} {answer.text}")

    async def _look(self, promise: Promise) -> None:
        """Read the job's status; a gateway that does not know it gets it again, by the same key."""
        path = f"/v1/jobs/{promise.job_id}"
        canceling = promise.order.cancel is Cancel.RUNNING
        headers = {} if canceling else {"Prefer": f"wait={_WAIT_S}"}
        answer = await self._ask(promise.order, "GET", path, headers=headers)
        if answer is None:
            return
        if answer.status_code == 404:
            await self._ask_again(promise)
            return
        status = answer.json()["status"]
        if status in ENDED:
            self._ledger.end(promise, status)
        elif canceling and status == "running" and not answer.json()["cancel_requested"]:
            await self._cancel(promise)
        elif canceling:
            await asyncio.sleep(_PAUSE_S)

    async def _ask_again(self, promise: Promise) -> None:
        job_id = await self._submit(promise.order)
        assert job_id == promise.job_id, f"order {promise.order.number} is {job_id} now, and was {promise.job_id}"
        self._ledger.accept_again(promise)

    async def _cancel(self, promise: Promise) -> None:
        answer = await self._ask(promise.order, "POST", f"/v1/jobs/{promise.job_id}/cancel")
        if answer is not None and answer.status_code == 200 and answer.json()["status"] in ENDED:
            self._ledger.end(promise, answer.json()["status"])

    async def _listen(self, promise: Promise) -> None:
        """Follow the event stream, behind the last event seen, until it ends or breaks off."""
        last: dict[str, str] = {}
        url = self._pick()
        headers = {**self._bearer(promise.order), "Accept": "text/event-stream"}
        if promise.last_event_id:
            headers["Last-Event-ID"] = promise.last_event_id
        with self._counted(url):
            try:
                async with self._http.stream(
                    "GET", f"{url}/v1/jobs/{promise.job_id}/events", headers=headers
                ) as stream:
                    async for line in stream.aiter_lines():
                        name, _, value = line.partition(": ")
                        last[name] = value
                        if not line and "data" in last:
                            _take(promise, last)
                            last = {}
            except httpx.HTTPError:
                await asyncio.sleep(_PAUSE_S)

    async def _ask(self, order: Order, method: str, path: str, **options: Any) -> httpx.Response | None:
        """One request to any gateway; None where it is to be repeated."""
        url = self._pick()
        headers = {**options.pop("headers", {}), **self._bearer(order)}
        with self._counted(url):
            try:
                answer = await self._http.request(method, f"{url}{path}", headers=headers, **options)
            except httpx.HTTPError:
                await asyncio.sleep(_PAUSE_S)
                return None
        if answer.status_code in _TRY_AGAIN:
            self.internal_errors += answer.status_code == 500
            await asyncio.sleep(min(2.0, float(answer.headers.get("Retry-After", _PAUSE_S))))
            return None
        return answer

    def _pick(self) -> str:
        return self._chance.choice(self._gateways)

    def _bearer(self, order: Order) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._keys[order.tenant]}"}

    @contextmanager
    def _counted(self, url: str) -> Iterator[None]:
        self.open[url] += 1
        try:
            yield
        finally:
            self.open[url] -= 1


def _take(promise: Promise, event: dict[str, str]) -> None:
    """Remember one event. A `status` comes first in each stream, also in one that was resumed: it is no event."""
    promise.last_event_id = event.get("id", promise.last_event_id)
    if event.get("event") in ENDED:
        promise.terminal_events.append((event["event"], time.time()))
    json.loads(event["data"])
