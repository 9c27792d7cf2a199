"""A blocking client whose small writes a full server takes too: who is there, who leads, what was counted.

Without them nothing heals a full server: its jobs end as workers take them, and only workers that are known do. New
work is submitted by scripts, which this leaves alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import OutOfMemoryError

# ARGV: of each command the number of its words, and these.
_SCRIPT = """#!lua flags=allow-oom
local answers, at = {}, 1
while at <= #ARGV do
    local count = tonumber(ARGV[at])
    answers[#answers + 1] = redis.call(unpack(ARGV, at + 1, at + count))
    at = at + count + 1
end
return answers
"""
_SCRIPTS = frozenset({"EVAL", "EVALSHA", "FCALL"})


class HousekeepingRedis(Redis):
    """Sends what is refused for want of memory once more, in a script that is not refused."""

    def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  # redis-py's own signature
        """One command."""
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py's
        except OutOfMemoryError:
            if args[0] in _SCRIPTS:
                raise
        (answer,) = super().execute_command(*_script_of([args]))  # type: ignore[no-untyped-call]  # likewise
        parse: Any = self.response_callbacks.get(args[0])  # type: ignore[no-untyped-call]  # redis-py's
        return parse(answer, **options) if parse else answer

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Several commands."""
        return _HousekeepingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _HousekeepingPipeline(Pipeline):
    """A transaction that was refused has changed nothing, so all of it is sent again; its answers are not parsed."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = [args for args, _ in self.command_stack]
        is_transaction: bool = vars(self)["transaction"]
        whole = is_transaction and not self.watching and not any(args[0] in _SCRIPTS for args in commands)
        try:
            return super().execute(raise_on_error)
        except OutOfMemoryError:
            if not whole:
                raise
        connection = Redis(connection_pool=self.connection_pool)
        answers: list[Any] = connection.execute_command(*_script_of(commands))  # type: ignore[no-untyped-call]  # redis-py's
        return answers


def _script_of(commands: Iterable[Sequence[Any]]) -> list[Any]:
    return ["EVAL", _SCRIPT, 0, *(word for command in commands for word in (len(command), *command))]
