"""Looks at single jobs, gathered: what is asked for while others are being looked up is looked up together, in one
round trip and one thread, instead of a thread each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias, cast

from api.queue import Seen

Find: TypeAlias = Callable[[str, Sequence[str]], Awaitable[Sequence[Seen]]]

# Looks at once, so that a lone request waits for no other; and jobs in one of them.
_LOOKS = 4
_MOST = 100


class Lookups:
    """`find` answers what is seen of each of a tenant's jobs."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._asked: dict[str, dict[str, list[asyncio.Future[Seen]]]] = {}
        self._looks: set[asyncio.Task[None]] = set()

    async def get(self, tenant: str, job_id: str) -> Seen:
        """One job as it is now or a moment later. Raises what `find` does."""
        answer: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(tenant, {}).setdefault(job_id, []).append(answer)
        if len(self._looks) < _LOOKS:
            self._looks.add(asyncio.create_task(self._look()))
        return await answer

    async def _look(self) -> None:
        try:
            await self._answer_all()
        finally:
            # In the same turn of the loop as the last check for askers: a done-callback runs a turn later, and who
            # asked between the two saw every look taken, started none, and waited until somebody else asked.
            self._looks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _answer_all(self) -> None:
        while self._asked:
            tenant, waiting = self._taken()
            try:
                found = await self._find(tenant, list(waiting))
            except Exception as error:
                for answer in _unanswered(waiting.values()):
                    answer.set_exception(error)
                continue
            for seen, answers in zip(found, waiting.values(), strict=True):
                for answer in _unanswered([answers]):
                    answer.set_result(seen)

    def _taken(self) -> tuple[str, dict[str, list[asyncio.Future[Seen]]]]:
        tenant, asked = next(iter(self._asked.items()))
        del self._asked[tenant]
        ids = list(asked)
        if left := {job_id: asked[job_id] for job_id in ids[_MOST:]}:
            self._asked[tenant] = left  # behind the others
        return tenant, {job_id: asked[job_id] for job_id in ids[:_MOST]}


def _unanswered(groups: Iterable[list[asyncio.Future[Seen]]]) -> list[asyncio.Future[Seen]]:
    # Who asked may have left.
    return [answer for group in groups for answer in group if not answer.done()]
