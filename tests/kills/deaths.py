"""A process that dies by SIGKILL before its n-th round trip to Redis or to the store. Others stay alive."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Concatenate, ParamSpec

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.connection import Connection, ConnectionPool

import serinette.store

Parameters = ParamSpec("Parameters")

# A forked copy of a process that has imported everything and done nothing costs milliseconds, where a new one costs
# seconds; and no thread of the test's own is lost in it.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "pytest",
        "tests.unit.slot_bench",
        "tests.kills.ends",
        "api.queue",
        "tests.unit.batch_bench",
        "controller.webhooks",
        "controller.restore",
        "kubernetes.client.api.batch_v1_api",  # loaded at first use: seconds
        "kubernetes.client.api.core_v1_api",
        "tests.unit.container_bench",
    ]
)


class Fate:
    """Counts all round trips of this process and ends it before the one too many."""

    def __init__(self, round_trips: int) -> None:
        self._left = round_trips
        self._lock = threading.Lock()
        names = vars(serinette.store)
        names["obstore"] = _Counted(names["obstore"], self)

    def step(self) -> None:
        """To die after an answer is to die before the next request."""
        with self._lock:
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def redis(self, url: str) -> Redis:
        """A client whose every sending is a step."""
        return interrupted(url, self.step)

    def redis_async(self, url: str) -> redis_asyncio.Redis:
        """The same for the event loop; text in and out."""
        step = self.step

        class Interrupted(AsyncConnection):
            async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                step()
                await super().send_packed_command(command, check_health)

        pool = AsyncConnectionPool.from_url(url, connection_class=Interrupted, decode_responses=True)
        return redis_asyncio.Redis.from_pool(pool)


class _Counted:
    """obstore, each of whose calls is a step."""

    def __init__(self, module: Any, fate: Fate) -> None:
        self._module = module
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found):
            return found

        def counted(*arguments: Any, **named: Any) -> Any:
            self._fate.step()
            return found(*arguments, **named)

        return counted


def interrupted(url: str, event: Callable[[], object]) -> Redis:
    """A client to which something happens whenever it is about to send."""

    class Interrupted(Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            event()
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]  # redis-py's

    return Redis(connection_pool=ConnectionPool.from_url(url, connection_class=Interrupted))


Life = Callable[Concatenate[Fate, Parameters], object]


def lives(round_trips: int, life: Life[Parameters], *arguments: Parameters.args, **named: Parameters.kwargs) -> bool:
    """Run that life in a process of its own; False if it ended early."""
    process = _processes.Process(target=_live, args=(dict(os.environ), round_trips, life, arguments, named))
    process.start()
    process.join(120)
    assert process.exitcode in {0, -signal.SIGKILL}, f"it neither lived nor was killed: {process.exitcode}"
    return process.exitcode == 0


def _live(
    environment: dict[str, str], round_trips: int, life: Life[...], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    os.environ.update(environment)  # the fork server's is of the day it was started: another test's, without its keys
    life(Fate(round_trips), *arguments, **named)


@dataclass
class Once:
    """Does a thing the first time that it is asked to, after so many times."""

    act: Callable[[], object]
    after: int
    called: bool = False

    def __call__(self) -> None:
        self.after -= 1
        if self.after < 0 and not self.called:
            self.called = True
            self.act()


class Deaths:
    """Every death of one life: iterate over the round trips it dies before, and report how each went."""

    def __init__(self, fewest: int) -> None:
        """`fewest`: round trips that such a life takes at least; less, and the death was never in the midst of it."""
        self._fewest = fewest
        self._survived = False

    def __iter__(self) -> Iterator[int]:
        for round_trips in count():
            yield round_trips
            if self._survived:
                break
        assert round_trips >= self._fewest, f"it took {round_trips} round trips: the death was never in the midst of it"

    def lives(
        self, round_trips: int, life: Life[Parameters], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> None:
        """See `lives`; the last round is the one that is survived."""
        self._survived = lives(round_trips, life, *arguments, **named)
