"""Turns: bounded, fair between tenants, given back whatever happens."""

from __future__ import annotations

import asyncio
import time

import pytest

from api.turns import Threads, Turns
from serinette.errors import Unavailable


def full() -> Unavailable:
    return Unavailable("too many")


class Holders:
    """Holds turns until it is released, and notes in which order they were given."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.given: list[str] = []
        self._free: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self._free[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._hold(name))
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self._free[name].set()
            await self.tasks[name]
        await asyncio.sleep(0)

    async def _hold(self, name: str) -> None:
        async with self._turns.of(name[0]):
            self.given.append(name)
            await self._free[name].wait()


async def test_one_tenant_never_holds_all_and_the_others_wait_for_one_turn_only() -> None:
    holders = Holders(Turns(3, 2, full))
    await holders.ask(*(f"a{number}" for number in range(20)), "b1")
    assert holders.given == ["a0", "a1", "b1"], "a's third waits though a turn was free"
    await holders.ask("b2", "c1", "c2")
    await holders.end("a0")
    await holders.end("a1")
    await holders.end("b1")
    assert holders.given[3:] == ["a2", "b2", "c1"], "by turns, not by arrival"
    await holders.end("a2", "b2", "c1", "c2", *(f"a{number}" for number in range(3, 20)))
    assert len(holders.given) == 24


async def test_a_tenant_rests_after_its_turn_and_others_do_not_wait_for_that() -> None:
    turns = Turns(1, 1, full, rest=3)
    holders = Holders(turns)
    await holders.ask("a0", "a1", "b0")
    began_s, busy_s = time.monotonic(), time.thread_time()
    while time.thread_time() - busy_s < 0.1:
        pass
    await holders.end("a0")
    assert holders.given == ["a0", "b0"], "b's turn begins while a rests"
    await holders.end("b0")
    await holders.end("a1")
    assert time.monotonic() - began_s >= 0.4


async def test_too_many_of_one_tenant_are_refused_and_nobody_elses() -> None:
    turns = Turns(2, 1, full, most_waiting=1)
    holders = Holders(turns)
    await holders.ask("a0", "a1", "a2", "b0")
    assert isinstance(holders.tasks["a2"].exception(), Unavailable)
    assert (holders.given, turns.waiting) == (["a0", "b0"], 1)
    await holders.end("a0", "b0", "a1")
    assert (turns.held("a"), turns.waiting) == (0, 0)


async def test_a_request_that_is_canceled_gives_its_turn_back_at_any_moment() -> None:
    turns = Turns(1, 1, full)
    holders = Holders(turns)
    await holders.ask("a0", "b0", "c0", "d0")
    holders.tasks["b0"].cancel()  # while it waits
    await asyncio.sleep(0)
    assert turns.waiting == 2
    holders.tasks["c0"].cancel()  # in the moment in which its turn would come
    await holders.end("a0")
    await asyncio.sleep(0)
    assert holders.given == ["a0", "d0"]
    holders.tasks["d0"].cancel()  # while it holds one
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (turns.held("d"), turns.waiting) == (0, 0)
    async with asyncio.timeout(1), turns.of("e"):
        assert turns.held("e") == 1


async def test_threads_answer_and_raise() -> None:
    threads = Threads(2, 1, full)
    assert await threads.run("a", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run("a", lambda: 1 // 0)
    assert threads.turns.held("a") == 0
