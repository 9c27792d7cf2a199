"""Runs the transitions (transitions/*.lua, joined into one script) by EVALSHA, one round trip per call.

When the server does not know the script, it is loaded and the same commands are sent again. Scripts sent by EVAL are
evicted after some hundred others; and inside MULTI an unknown script would not stop the commands around it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import DataError, NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Answer = TypeVar("Answer")
Argument = str | bytes | int | float
Reply: TypeAlias = Any  # as redis-py returns it: bytes, text, numbers and lists of them

# Transitions that accept new work are refused by a server without free memory before their first write; with allow-oom
# all others pass, to end jobs. What only reads passes on a server that cannot write to its disk, too.
_FLAGS = {"submit": "", "enter_batch": "", "look": " flags=no-writes"}
_OTHERS = " flags=allow-oom"
# Joined in this order, about that of a job's life: a file uses what those before it define. Together they may have 200
# local variables at the top level (Lua's limit).
_FILES = ("prelude", "queueing", "attempts", "claiming", "leases", "ending", "retention", "dispatch")
_BODIES = {name: (Path(__file__).parent / "transitions" / f"{name}.lua").read_text() for name in _FILES}
_TEXTS = {flags: f"#!lua{flags}\n{''.join(_BODIES.values())}" for flags in {*_FLAGS.values(), _OTHERS}}
_SHAS = {flags: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for flags, text in _TEXTS.items()}


# Callers that share a round trip: each of them waits for all of it. More than the fewest go in two halves, so that this
# process works on one while the server works on the other.
_FEWEST_TOGETHER, _MOST_TOGETHER = 4, 64
# A script that does nothing, but that a server refuses when it would refuse a write.
WRITES = "#!lua\nreturn 1"
# A server's word in a refusal while it cannot write to its disk.
NO_DISK = "MISCONF"
# A server that starts again and again, as on a full disk, may forget the scripts as often in between.
_MOST_LOADS = 5


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
        return ("EVALSHA", _SHAS[_FLAGS.get(self.name, _OTHERS)], 1, prefix, self.name, *self.arguments)


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

    def joined(self, calls: Iterable[Call[list[Answer]]]) -> Iterator[Answer]:
        """The answers of transitions that are run one after the other, each as it is needed."""
        for call in calls:
            yield from self(call)

    def many(self, calls: Sequence[Call[Answer]]) -> list[Answer]:
        """Run several transitions in one round trip; each is atomic, not all together."""
        found, loads = self._send(calls), 0
        while loads < _MOST_LOADS and any(isinstance(each, NoScriptError) for each in found):
            for body in _TEXTS.values():
                self.redis.script_load(body)
            # Calls that succeeded run twice, which every transition allows.
            found, loads = self._send(calls), loads + 1
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

    Calls of one turn of the event loop share one or two round trips, and in each one wait for the disk: under load most
    of a transition's cost is in the client.
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
        together = min(_MOST_TOGETHER, max(_FEWEST_TOGETHER, math.ceil(len(requests) / 2)))
        for first in range(0, len(requests), together):
            self._send_soon(requests[first : first + together])

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
        found, loads = await self._round_trip(requests), 0
        while unknown := [i for i, answers in enumerate(found) if isinstance(answers[0], NoScriptError)]:
            if loads == _MOST_LOADS:
                break
            for body in _TEXTS.values():
                await self.redis.script_load(body)
            again, loads = await self._round_trip([requests[i] for i in unknown]), loads + 1
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
        pool: Any = self.redis.connection_pool  # Any, because redis-py types blocking and asynchronous pools alike
        connection = await pool.get_connection()
        try:
            found: list[Any] = await connection.retry.call_with_retry(
                lambda: _exchange(connection, commands), lambda _: connection.disconnect()
            )
            return found
        finally:
            await pool.release(connection)


async def _exchange(connection: Any, commands: Sequence[Sequence[Argument]]) -> list[Any]:  # noqa: ANN401  # redis-py's
    """The replies to commands, errors among them. A redis-py pipeline costs twice as much, for a timeout per reply."""
    await connection.send_packed_command([part for each in commands for part in connection.pack_command(*each)])
    found: list[Any] = []
    try:
        async with asyncio.timeout(connection.socket_timeout):
            for _ in commands:
                try:
                    found.append(await connection.read_response(timeout=math.inf))  # the timeout is that around
                except ResponseError as error:
                    found.append(error)
    except TimeoutError as error:
        raise RedisTimeoutError("the server did not answer in time") from error
    return found


def is_of_one_job(error: Exception) -> bool:
    """Whether a transition refused the job's record or its arguments: of a server that is read-only, full or loading,
    redis-py raises a subclass, but for a full disk.
    """
    return type(error) is ResponseError and NO_DISK not in str(error)


def _is_of_one_caller(error: BaseException) -> bool:
    """Whether an argument could not be encoded, which is found out before anything is sent."""
    return isinstance(error, Exception) and (isinstance(error, DataError) or not isinstance(error, RedisError))


def _answer(call: Call[Answer], found: Reply) -> Answer:
    if isinstance(found, RedisError):
        raise _with_file(found)
    return call.parse(found)


def _with_file(error: RedisError) -> RedisError:
    """An error of the joined script with file and line of where it arose."""
    words = str(error)
    if not (found := re.search(r"user_script:(\d+)", words)):
        return error
    line = int(found[1]) - 1  # the flags' line is the first
    for name, body in _BODIES.items():
        if line <= (lines := body.count("\n")):
            return type(error)(words.replace(found[0], f"transitions/{name}.lua:{line}"))
        line -= lines
    return error
