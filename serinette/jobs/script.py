"""Runs transitions.lua by EVALSHA, one round trip per call.

When the server does not know the script, it is loaded and the same commands are sent again. Scripts sent by EVAL are
evicted after some hundred others; and inside MULTI an unknown script would not stop the commands around it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import DataError, NoScriptError, RedisError, ResponseError

Answer = TypeVar("Answer")
Argument = str | bytes | int | float
Reply: TypeAlias = Any  # as redis-py returns it: bytes, text, numbers and lists of them

# Transitions that accept new work, which a server without free memory must refuse.
_REFUSED_WHEN_FULL = frozenset({"submit", "enter_batch"})
_BODY = (Path(__file__).parent / "transitions.lua").read_text()
# With allow-oom a full server can still end jobs; without it the server refuses before the first write.
_TEXTS = {True: f"#!lua flags=allow-oom\n{_BODY}", False: f"#!lua\n{_BODY}"}
_SHAS = {flag: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for flag, text in _TEXTS.items()}


# Most callers that share a round trip: each of them waits for all of it.
_MOST_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One transition: its name, its arguments and the parser of its answer. `alone`: it takes the server long enough
    that other callers should not wait for it in the same round trip.
    """

    name: str
    arguments: Sequence[Argument]
    parse: Callable[[Reply], Answer]
    alone: bool = False

    def command(self, prefix: str) -> tuple[Argument, ...]:
        """The Redis command."""
        return ("EVALSHA", _SHAS[self.name not in _REFUSED_WHEN_FULL], 1, prefix, self.name, *self.arguments)


def text(value: Reply) -> str:
    """A reply as text, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)


class Jobs:
    """Transitions over a blocking client. Raises RedisError when the server does not answer."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis = redis
        self.prefix = prefix

    def __call__(self, call: Call[Answer]) -> Answer:
        """Run one transition."""
        return self.many([call])[0]

    def many(self, calls: Sequence[Call[Answer]]) -> list[Answer]:
        """Run several transitions in one round trip; each is atomic, not all together."""
        found = self._send(calls)
        if any(isinstance(each, NoScriptError) for each in found):
            for body in _TEXTS.values():
                self.redis.script_load(body)
            # Calls that succeeded run twice, which every transition allows.
            found = self._send(calls)
        return [_answer(call, each) for call, each in zip(calls, found, strict=True)]

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        with self.redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command(*call.command(self.prefix))  # type: ignore[no-untyped-call]  # redis-py's
            return pipe.execute(raise_on_error=False)


@dataclass(frozen=True, slots=True)
class _Request:
    """Commands of one caller and the future of their answers; `wait_ms` 0: do not wait for the disk."""

    commands: Sequence[Sequence[Argument]]
    wait_ms: int
    answers: asyncio.Future[list[Any]]


class AsyncJobs:
    """Transitions over a client of the event loop. Raises RedisError when the server does not answer.

    Calls of one turn of the event loop share a round trip and one wait for the disk: under load most of a transition's
    cost is in the client.
    """

    def __init__(self, redis: redis_asyncio.Redis, prefix: str) -> None:
        self.redis = redis
        self.prefix = prefix
        self._pending: list[_Request] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def __call__(self, call: Call[Answer]) -> Answer:
        """Run one transition."""
        return (await self.together(call))[0]

    async def together(
        self, call: Call[Answer], *commands: Sequence[Argument], wait_ms: int = 0
    ) -> tuple[Answer, list[Any]]:
        """Run one transition and then `commands` in one round trip; errors of `commands` are among their answers. With
        `wait_ms` the last answer is WAITAOF's: whether all writes reached the server's disk within that time.
        """
        loop = asyncio.get_running_loop()
        request = _Request([call.command(self.prefix), *commands], wait_ms, loop.create_future())
        if call.alone:
            self._send_soon([request])
        else:
            if not self._pending:
                loop.call_soon(self._start)
            self._pending.append(request)
        found = await request.answers
        return _answer(call, found[0]), found[1:]

    def _start(self) -> None:
        requests, self._pending = self._pending, []
        for first in range(0, len(requests), _MOST_TOGETHER):
            self._send_soon(requests[first : first + _MOST_TOGETHER])

    def _send_soon(self, requests: Sequence[_Request]) -> None:
        task = asyncio.create_task(self._send(requests))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, requests: Sequence[_Request]) -> None:
        try:
            found = await self._answers(requests)
        except BaseException as error:
            if len(requests) > 1 and _is_of_one_caller(error):
                await asyncio.gather(*(self._send([each]) for each in requests))
                return
            for each in requests:
                if not each.answers.done():  # its caller may have been canceled
                    each.answers.set_exception(error) if isinstance(error, Exception) else each.answers.cancel()
            if not isinstance(error, Exception):
                raise
            return
        for each, answers in zip(requests, found, strict=True):
            if not each.answers.done():
                each.answers.set_result(answers)

    async def _answers(self, requests: Sequence[_Request]) -> list[list[Any]]:
        found = await self._round_trip(requests)
        if unknown := [i for i, answers in enumerate(found) if isinstance(answers[0], NoScriptError)]:
            for body in _TEXTS.values():
                await self.redis.script_load(body)
            again = await self._round_trip([requests[i] for i in unknown])
            for i, answers in zip(unknown, again, strict=True):
                found[i] = answers
        return found

    async def _round_trip(self, requests: Sequence[_Request]) -> list[list[Any]]:
        commands = [command for each in requests for command in each.commands]
        if wait_ms := max(each.wait_ms for each in requests):
            commands.append(("WAITAOF", 1, 0, wait_ms))
        found = iter(await self._execute(commands))
        answers = [[next(found) for _ in each.commands] for each in requests]
        disk = list(found)
        return [[*own, *disk] if each.wait_ms else own for each, own in zip(requests, answers, strict=True)]

    async def _execute(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if len(commands) == 1:  # building a pipeline takes as long as sending one command
            try:
                return [await self.redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]  # redis-py's
            except ResponseError as error:
                return [error]
        async with self.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            found: list[Any] = await pipe.execute(raise_on_error=False)
            return found


def is_of_one_job(error: Exception) -> bool:
    """Whether a transition refused the job's record or its arguments: of a server that is read-only, full or loading,
    redis-py raises a subclass.
    """
    return type(error) is ResponseError


def _is_of_one_caller(error: BaseException) -> bool:
    """Whether an argument could not be encoded, which is found out before anything is sent."""
    return isinstance(error, Exception) and (isinstance(error, DataError) or not isinstance(error, RedisError))


def _answer(call: Call[Answer], found: Reply) -> Answer:
    if isinstance(found, RedisError):
        raise found
    return call.parse(found)
