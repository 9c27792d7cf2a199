"""Which webhooks are sent at once: a rolling window, shared by tenants and hosts; a host that is silent gets pauses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any

import httpx

TOGETHER = 64
OF_TENANT = 16
OF_HOST = 8
_SOON_S = 1.0
_LONGEST_DELAY_S = 300.0
_LONGEST_PAUSE_S = 60.0
# For so long after its pause it is known that a host was silent: anyone can name any number of hosts.
_REMEMBERED_S = 600.0


@dataclass(slots=True)
class _Host:
    """How a host did lately. Times are of the monotonic clock."""

    silent: int = 0  # tries in a row that it did not answer
    paused_until_s: float = 0.0
    took_s: float = 1.0
    behind: int = 0  # that asked in this round and did not begin


@dataclass(slots=True)
class Window:
    """The deliveries under way. Safe to use from several threads."""

    total: int = TOGETHER
    of_tenant: int = OF_TENANT
    of_host: int = OF_HOST
    _of_tenant: Counter[str] = field(default_factory=Counter)
    _of_host: Counter[str] = field(default_factory=Counter)
    _hosts: dict[str, _Host] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def begin_round(self, at_s: float) -> None:
        """All that wait ask anew, in their order."""
        with self._lock:
            busy = {
                name: host
                for name, host in self._hosts.items()
                if self._of_host[name] or (host.silent and at_s < host.paused_until_s + _REMEMBERED_S)
            }
            for host in busy.values():
                host.behind = 0
            self._hosts = busy

    def begin(self, tenant: str, host: str, at_s: float) -> float | None:
        """None: a delivery begins, and ends with `end`. Else in how many seconds its turn may come, if the host takes
        as long as it last did.
        """
        with self._lock:
            seen = self._hosts.setdefault(host, _Host())
            paused_s = max(0.0, seen.paused_until_s - at_s)
            most = 1 if seen.silent else self.of_host  # one finds out whether it answers again
            full = (
                self._of_tenant.total() >= self.total
                or self._of_tenant[tenant] >= self.of_tenant
                or self._of_host[host] >= most
            )
            if not full and not paused_s:
                self._of_tenant[tenant] += 1
                self._of_host[host] += 1
                return None
            turns = seen.behind // most
            seen.behind += 1
            return min(_SOON_S + paused_s + turns * seen.took_s, _LONGEST_DELAY_S)

    def end(self, tenant: str, host: str, *, answered: bool, took_s: float, at_s: float) -> None:
        """A delivery ended; `answered`: with any HTTP status."""
        with self._lock:
            self._of_tenant -= Counter([tenant])
            self._of_host -= Counter([host])
            seen = self._hosts.setdefault(host, _Host())
            seen.took_s = took_s
            seen.silent = 0 if answered else seen.silent + 1
            seen.paused_until_s = 0.0 if answered else at_s + min(2.0 ** min(seen.silent, 10), _LONGEST_PAUSE_S)


class Sender:
    """An event loop in a thread of its own, and an HTTP client on it."""

    def __init__(self, client: Callable[[], httpx.AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(TOGETHER, thread_name_prefix="webhook")  # for look-ups and for Redis
        self._loop.set_default_executor(self._threads)
        self._thread = Thread(target=self._loop.run_forever, name="webhooks-sender", daemon=True)
        self._thread.start()
        self._client = client()

    def send(self, act: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> Future[None]:
        """Begin one delivery."""
        return asyncio.run_coroutine_threadsafe(act(self._client), self._loop)

    def close(self) -> None:
        """End it; nothing may be under way."""
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._threads.shutdown(wait=False)
        self._loop.close()
