"""Runs transitions.lua: one round trip a call, however the server knows the script.

EVALSHA alone: after a restart of the server the script is loaded and the same commands are sent again. EVAL would be
evicted after some hundred others, and inside MULTI an unknown script would let its neighbors happen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.exceptions import NoScriptError, RedisError, ResponseError

Answer = TypeVar("Answer")
Argument = str | bytes | int | float
Reply: TypeAlias = Any  # as redis-py gives it: bytes, text, numbers and lists of them

# Transitions that a full server refuses: they let work in.
_REFUSED_WHEN_FULL = frozenset({"submit", "enter_batch"})
_BODY = (Path(__file__).parent / "transitions.lua").read_text()
# A full server must be able to end jobs, and takes no new ones: it refuses those before their first write.
_TEXTS = {True: f"#!lua flags=allow-oom\n{_BODY}", False: f"#!lua\n{_BODY}"}
_SHAS = {flag: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest() for flag, text in _TEXTS.items()}


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One transition: its name and arguments, and how its answer is read."""

    name: str
    arguments: Sequence[Argument]
    parse: Callable[[Reply], Answer]

    def command(self, prefix: str) -> tuple[Argument, ...]:
        """As the server takes it."""
        return ("EVALSHA", _SHAS[self.name not in _REFUSED_WHEN_FULL], 1, prefix, self.name, *self.arguments)


def text(value: Reply) -> str:
    """What the server answered, whether its client decodes or not."""
    return value.decode() if isinstance(value, bytes) else str(value)


def wait_for_disk(wait_ms: int) -> tuple[Argument, ...]:
    """The command that waits until all that its connection wrote is on the server's disk."""
    return ("WAITAOF", 1, 0, wait_ms)


class Jobs:
    """Transitions over a blocking client. Raises RedisError when the server does not answer."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self.redis = redis
        self.prefix = prefix

    def __call__(self, call: Call[Answer]) -> Answer:
        """One transition."""
        return self.many([call])[0]

    def many(self, calls: Sequence[Call[Answer]]) -> list[Answer]:
        """Several transitions in one round trip, each isolated, not all together."""
        found = self._send(calls)
        if any(isinstance(each, NoScriptError) for each in found):
            for body in _TEXTS.values():
                self.redis.script_load(body)
            # Those that were run are run again: every transition may be.
            found = self._send(calls)
        return [_answer(call, each) for call, each in zip(calls, found, strict=True)]

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        with self.redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command(*call.command(self.prefix))  # type: ignore[no-untyped-call]  # redis-py's
            return pipe.execute(raise_on_error=False)


class AsyncJobs:
    """Transitions over a client of the event loop. Raises RedisError when the server does not answer."""

    def __init__(self, redis: redis_asyncio.Redis, prefix: str) -> None:
        self.redis = redis
        self.prefix = prefix

    async def __call__(self, call: Call[Answer]) -> Answer:
        """One transition."""
        return (await self.together(call))[0]

    async def together(self, call: Call[Answer], *commands: Sequence[Argument]) -> tuple[Answer, list[Any]]:
        """One transition and commands behind it in one round trip; errors of those are among their answers."""
        found = await self._send(call, commands)
        if isinstance(found[0], NoScriptError):
            for body in _TEXTS.values():
                await self.redis.script_load(body)
            found = await self._send(call, commands)
        return _answer(call, found[0]), found[1:]

    async def _send(self, call: Call[Any], commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if not commands:  # a pipeline takes as long to make as a command to send
            try:
                return [await self.redis.execute_command(*call.command(self.prefix))]  # type: ignore[no-untyped-call]  # redis-py's
            except ResponseError as error:
                return [error]
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*call.command(self.prefix))
            for command in commands:
                pipe.execute_command(*command)
            found: list[Any] = await pipe.execute(raise_on_error=False)
            return found


def _answer(call: Call[Answer], found: Reply) -> Answer:
    if isinstance(found, RedisError):
        raise found
    return call.parse(found)
