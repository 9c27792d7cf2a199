"""One run from its plan to its report."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redis import RedisError

from tests.chaos.clients import Client
from tests.chaos.cluster import Cluster, Shape, cluster
from tests.chaos.evidence import collect, residue
from tests.chaos.injector import Injector, Strike
from tests.chaos.ledger import ClientLedger
from tests.chaos.plan import Part, Plan, Scale
from tests.chaos.promises import Fault, Finding, Found, Span, judge
from tests.receivers import Receiver, receiver


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found."""

    found: list[Found]
    findings: list[Finding]
    strikes: list[Strike]
    residue: dict[str, int]
    internal_errors: int
    gave_up: bool  # the clients waited for too long
    seconds: float
    forgotten: list[Span]  # Unix seconds that Valkey lost
    postponed_writes: int  # times that Valkey answered before it wrote, since the disk was busy

    @property
    def clean(self) -> bool:
        return not (self.findings or any(self.residue.values()) or self.internal_errors or self.gave_up)

    @property
    def counts(self) -> dict[str, int]:
        ends = Counter(each.status for each in self.found)
        wrong = Counter(finding.fault for finding in self.findings)
        figures = {"submitted": len(self.found)}
        figures |= {status: ends[status] for status in ("succeeded", "failed", "canceled")}
        return figures | {fault.value: wrong[fault] for fault in Fault}

    @property
    def kills(self) -> dict[str, int]:
        return dict(Counter(strike.part.value for strike in self.strikes))

    @property
    def slowest(self) -> Strike | None:
        return max(self.strikes, key=lambda strike: strike.recovered_s or 0, default=None)

    def lines(self) -> list[str]:
        """The report, in the order that people read it; the last lines say it all."""
        lines = [f"{finding.fault}: job {finding.order}: {finding.why}" for finding in self.findings]
        lines += [f"left over: {name} {count}" for name, count in self.residue.items() if count]
        lines += [f"internal errors: {self.internal_errors}"] if self.internal_errors else []
        lines += ["the clients gave up waiting"] if self.gave_up else []
        lines += [f"{name}: {count}" for name, count in self.counts.items()]
        slowest = self.slowest
        if slowest:
            lines.append(f"recoveries: {len(self.strikes)}, the slowest {slowest.recovered_s} s ({slowest.part})")
        lines.append("struck while it held work: " + ", ".join(f"{part} {self.kills.get(part, 0)}" for part in Part))
        return lines

    def raw(self) -> dict[str, Any]:
        recoveries: dict[str, list[float]] = {}
        for strike in self.strikes:
            recoveries.setdefault(strike.part, []).append(strike.recovered_s or 0.0)
        return {
            "counts": {name.replace(" ", "_"): count for name, count in self.counts.items()},
            "forgotten_and_asked_again": sum(len(each.promise.forgotten) for each in self.found),
            "kills": self.kills,
            "kills_in_all": len(self.strikes),
            "recovery_s": {part: {"slowest": max(all_s), "all": all_s} for part, all_s in recoveries.items()},
            "slowest_recovery_s": self.slowest.recovered_s if self.slowest else None,
            "residue": self.residue,
            "internal_errors": self.internal_errors,
            "wall_s": self.seconds,
            "strikes": [asdict(strike) for strike in self.strikes],
            "forgotten": self.forgotten,
            "postponed_writes": self.postponed_writes,
            "findings": [self._explained(finding) for finding in self.findings],
        }

    def _explained(self, finding: Finding) -> dict[str, Any]:
        """A finding with all that the client of the job saw."""
        (promise,) = (each.promise for each in self.found if each.promise.order.number == finding.order)
        return asdict(finding) | {"promise": asdict(promise)}


@dataclass(frozen=True, slots=True)
class Run:
    """The options of a run. `patience_s`: how long nothing may come of any job before the clients give up."""

    plan: Plan
    scale: Scale
    shape: Shape
    seed: int
    patience_s: float

    async def carry_out(self, directory: Path, report_kill: Callable[[str], None] = print) -> Report:
        """Run in `directory`, reporting each kill once its work has come back."""
        began_s = time.monotonic()
        with receiver() as received, cluster(directory, self.shape) as made:
            await made.start()
            ledger = ClientLedger()
            clients = self._clients(made, ledger, received)
            injector = Injector(
                made, ledger, lambda: sum((client.open for client in clients), Counter()), self.seed, report_kill
            )
            working = asyncio.gather(*self._work(clients), injector.run(self.plan.faults))
            gave_up = not await _finished(working, ledger, self.patience_s + self.scale.outage_s)
            left = await _at_rest(made, self.patience_s)
            found = await collect(made, ledger, received)
            return Report(
                found,
                [finding for each in found for finding in judge(each, made.forgotten, fsync=made.fsync)],
                sorted(injector.strikes, key=lambda strike: strike.at_s),
                left,
                sum(client.internal_errors for client in clients),
                gave_up,
                round(time.monotonic() - began_s, 1),
                made.forgotten,
                made.valkey.log().count("AOF fsync is taking too long"),
            )

    def _clients(self, made: Cluster, ledger: ClientLedger, received: Receiver) -> list[Client]:
        webhook = f"http://127.0.0.1:{received.port}"
        seeds = range(self.seed * 1000, self.seed * 1000 + self.scale.clients)
        return [Client(made.urls, made.keys, ledger, webhook=webhook, seed=seed) for seed in seeds]

    def _work(self, clients: list[Client]) -> Iterator[Coroutine[Any, Any, None]]:
        for number, client in enumerate(clients):
            orders = [order for order in self.plan.orders if order.client == number]
            yield client.run(orders, self.scale.window)


async def _finished(working: asyncio.Future[Any], ledger: ClientLedger, patience_s: float) -> bool:
    while not working.done():
        await asyncio.wait([working], timeout=1)
        if time.monotonic() - ledger.changed_at_s > patience_s:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            return False
    working.result()
    return True


async def _at_rest(made: Cluster, patience_s: float) -> dict[str, int]:
    """Wait, for a bounded time, until no work is left; what is left."""
    until_s = time.monotonic() + patience_s
    left = {"unknown": 1}
    while any(left.values()) and time.monotonic() < until_s:
        with suppress(RedisError):
            left = residue(made)
        await asyncio.sleep(0.2)
    return left
