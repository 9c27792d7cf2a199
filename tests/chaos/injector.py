"""Carries out the faults of a plan, and waits until the jobs they held are recovered."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import psutil
from redis import RedisError

from serinette.errors import StoreUnavailable
from tests.chaos import holders
from tests.chaos.cluster import Cluster, Process
from tests.chaos.holders import Victim
from tests.chaos.ledger import ClientLedger
from tests.chaos.plan import Fault, Part

_LOOK_EVERY_S = 0.1
_ON_ITS_WAY_S = 5.0
# Of these the supervisor starts another; ours are started by us.
_LOSES_JOBS = frozenset({Part.SLOT, Part.SUPERVISOR, Part.ENGINE})


@dataclass(slots=True)
class Strike:
    """A fault that was carried out. Times are seconds since the run began."""

    part: Part
    at_s: float
    down_s: float
    forgot_s: float
    jobs: int  # that it held
    recovered_s: float | None = None  # since the kill; for what was kept down, since it was started again


class Injector:
    """All faults of one run."""

    def __init__(
        self,
        cluster: Cluster,
        ledger: ClientLedger,
        open_requests: Callable[[], Counter[str]],
        seed: int,
        report_kill: Callable[[str], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._cluster = cluster
        self._ledger = ledger
        self._open_requests = open_requests
        self._chance = Random(seed)
        self._report_kill = report_kill
        self._lost: set[tuple[str, str]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._began_s = time.monotonic()

    async def run(self, faults: Iterable[Fault]) -> None:
        """Carry out all of them, each at its moment, and wait until what they held has come back."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(self._carry_out(fault))

    async def _carry_out(self, fault: Fault) -> None:
        await self._ledger.until_accepted(fault.after)
        while True:
            if await self._struck(fault):
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _struck(self, fault: Fault) -> bool:
        """Kill and start again; False if there was no process to kill, or what it held had just ended."""
        async with self._one_at_a_time:
            victim = await self._find(fault.part)
            if victim is None:
                return False
            strike = await self._kill(fault, victim)
        since_s = time.monotonic()
        orphaned = await self._orphaned(fault.part, victim)
        if victim.process:
            await asyncio.sleep(fault.down_s)
            await self._start_again(fault.part, victim.process)
            if fault.part is not Part.SUPERVISOR:
                since_s = time.monotonic()
        await self._until_recovered(fault.part, victim)
        strike.recovered_s = round(time.monotonic() - since_s, 2)
        if not orphaned or await self._in_vain(fault.part, victim):
            return False
        self.strikes.append(strike)
        how = "struck" if fault.part.is_full else "killed"
        self._report_kill(
            f"{strike.at_s:7.1f} s: {strike.part} {how} with {strike.jobs} jobs, back in {strike.recovered_s} s"
        )
        return True

    async def _start_again(self, part: Part, process: Process) -> None:
        while part.is_full:
            try:  # it may have been killed meanwhile, and then has room again
                await asyncio.to_thread(self._cluster.fill, part, full=False)
            except (RedisError, psutil.Error, ProcessLookupError):
                await asyncio.sleep(_LOOK_EVERY_S)
            else:
                return
        process.start()

    async def _orphaned(self, part: Part, victim: Victim) -> bool:
        """Whether the killed process left unfinished jobs; a job that ended at the moment of the kill is not."""
        if part not in {Part.SLOT, Part.SUPERVISOR}:
            return True
        return not await self._answered(self._all_released, victim)

    async def _in_vain(self, part: Part, victim: Victim) -> bool:
        """Whether an engine had finished the song before it died."""
        return part is Part.ENGINE and await self._answered(self._generated, victim)

    async def _answered(self, question: Callable[[Victim], bool], victim: Victim) -> bool:
        """Ask Redis until it answers: another fault may have it down at this moment."""
        while True:
            with suppress(RedisError):
                return await asyncio.to_thread(question, victim)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _generated(self, victim: Victim) -> bool:
        return holders.generated(self._cluster.redis, *victim.jobs[0])

    def _all_released(self, victim: Victim) -> bool:
        return all(holders.released(self._cluster.redis, *job) for job in victim.jobs)

    async def _find(self, part: Part) -> Victim | None:
        with suppress(RedisError, psutil.Error):
            if victims := await asyncio.to_thread(lambda: list(self._victims(part))):
                return self._chance.choice(victims)
        return None

    def _victims(self, part: Part) -> Iterable[Victim]:
        cluster = self._cluster
        match part:
            case Part.GATEWAY:
                return holders.gateway_victims(cluster, self._open_requests())
            case Part.CONTROLLER:
                return holders.controller_victims(cluster, self._lost)
            case Part.SLOT:
                return holders.slot_victims(cluster)
            case Part.SUPERVISOR:
                return holders.supervisor_victims(cluster)
            case Part.ENGINE:
                return holders.engine_victims(cluster)
            case Part.VALKEY | Part.FULL_VALKEY:
                return holders.valkey_victims(cluster)
            case Part.STORE | Part.FULL_STORE:
                return holders.store_victims(cluster)

    async def _kill(self, fault: Fault, victim: Victim) -> Strike:
        if fault.part.is_full:
            with suppress(RedisError, psutil.Error, ProcessLookupError):
                await asyncio.to_thread(self._cluster.fill, fault.part, full=True)
        elif victim.process:
            victim.process.kill()
        else:
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)
        forgot_s = 0.0
        if fault.forgets:
            died_at = time.time()
            if self._cluster.fsync:  # a 202 may be on its way
                await asyncio.sleep(_ON_ITS_WAY_S)
            on_disk = {promise.job_id for promise in self._ledger} if self._cluster.fsync else ()
            self._cluster.forget_last_second(died_at, on_disk)
            forgot_s = round(died_at - self._cluster.forgotten[-1][0], 2)
        elif fault.part is Part.VALKEY:
            self._cluster.held_back_writes(time.time())
        if fault.part in {Part.SLOT, Part.SUPERVISOR}:
            self._lost.update(victim.jobs)
        at_s = round(time.monotonic() - self._began_s, 2)
        return Strike(fault.part, at_s, fault.down_s, forgot_s, len(victim.jobs))

    async def _until_recovered(self, part: Part, victim: Victim) -> None:
        while True:
            if await self._recovered(part, victim):
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _recovered(self, part: Part, victim: Victim) -> bool:
        """Whether the jobs that it held wait again or are held by another; of what holds none, whether it serves."""
        with suppress(RedisError, StoreUnavailable):
            if part in _LOSES_JOBS:
                return await asyncio.to_thread(self._all_released, victim)
            match part:
                case Part.CONTROLLER:
                    return await asyncio.to_thread(holders.leads, self._cluster)
                case Part.VALKEY:
                    return bool(await asyncio.to_thread(self._cluster.redis.ping))
                case Part.FULL_VALKEY | Part.FULL_STORE:
                    return await asyncio.to_thread(self._cluster.takes_more, part)
                case Part.STORE:
                    await asyncio.to_thread(self._cluster.songs.ping)
                    return True
                case _:
                    return bool(victim.process and await victim.process.serves())
        return False
