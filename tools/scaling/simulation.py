"""A pool under a trace, second by second: queue, workers, KEDA, HPA, cold starts and workers that leave.

No clock and no I/O: the same arguments give the same outcome.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tools.scaling.arrivals import Arrival, Spread
from tools.scaling.hpa import Hpa
from tools.scaling.rule import HPA_SYNC_S, Rule


@dataclass(frozen=True, slots=True)
class Pool:
    """What a pool is made of."""

    rule: Rule | None  # None: a fixed number of workers
    fixed: int = 0
    slots: int = 2  # jobs that a worker holds
    max_batch: int = 1  # songs generated together
    batch_cost: float = 1.0  # what each further song of a batch adds to its time: 1 is no gain, 0 is free
    cold_start: Spread = field(default_factory=lambda: Spread.parse("60"))  # from its start until it takes jobs
    grace_s: float = 1860.0  # how long a worker that leaves may still generate
    gpus: int | None = None  # as many exist, those of leaving workers included
    sync_s: float = HPA_SYNC_S


@dataclass(frozen=True, slots=True)
class Sample:
    """The pool at one moment."""

    at_s: float
    waiting: int
    workers: int  # replicas
    leaving: int
    busy: int


@dataclass
class Outcome:
    """What came of a trace."""

    waits_s: list[float] = field(default_factory=list)  # from arrival to the song's begin
    gpu_s: float = 0.0  # of all workers, loading and leaving too
    generating_s: float = 0.0
    cold_starts: int = 0
    returned: int = 0  # songs cut off by the end of the grace, and generated again
    samples: list[Sample] = field(default_factory=list)
    end_s: float = 0.0

    @property
    def peak(self) -> int:
        """Most workers at a time."""
        return max((each.workers for each in self.samples), default=0)

    def wait_s(self, percent: float) -> float:
        """A percentile of the waits (nearest rank); 0 without jobs."""
        ordered = sorted(self.waits_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


@dataclass(eq=False)
class _Worker:
    """A pod: starting, ready, leaving, gone."""

    number: int
    began_s: float | None = None  # has its GPU since
    ready: bool = False
    leaving: bool = False
    gone: bool = False
    held: list[Arrival] = field(default_factory=list)
    generating: list[Arrival] = field(default_factory=list)
    song: int = 0  # counts batches, so that the end of one cut off means nothing

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Who goes first: those not ready, the idle (their deletion cost is low), the youngest."""
        return self.ready, len(self.held) + len(self.generating), -self.number


class Simulation:
    """One run."""

    def __init__(self, pool: Pool, arrivals: Sequence[Arrival], seed: int = 0) -> None:
        self.pool, self.now_s, self.outcome = pool, 0.0, Outcome()
        self.waiting: deque[Arrival] = deque()
        self.workers: list[_Worker] = []
        self.brake = 0
        self.held_busy = 0  # a number of workers said to be busy whatever they do, for replaying what was measured
        self._leaving: list[_Worker] = []
        self._chance = random.Random(seed)  # noqa: S311  # a simulation
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._left = len(arrivals)
        self._hpa = Hpa(pool.rule) if pool.rule else None
        self._active_s = -float("inf")
        for arrival in arrivals:
            self.at(arrival.at_s, lambda arrival=arrival: self._arrive(arrival))  # type: ignore[misc]
        self.scale(pool.rule.min_workers if pool.rule else pool.fixed)
        if pool.rule:
            self.at(0.0, self._poll)
            self.at(0.0, self._sync)

    def at(self, at_s: float, event: Callable[[], None]) -> None:
        """Do something at a moment."""
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def run(self, until_s: float | None = None, at_least_s: float = 0.0) -> Outcome:
        """Until a moment, or until all is generated and, under KEDA, the pool is back at its floor."""
        while self._events and (until_s is None or self._events[0][0] <= until_s):
            self.now_s, _, event = heapq.heappop(self._events)
            event()
            self._sample()
            if until_s is None and self._over and self.now_s >= at_least_s:
                break
        self.now_s = self.outcome.end_s = max(self.now_s, at_least_s) if until_s is None else until_s
        for worker in [*self.workers, *self._leaving]:
            self._bill(worker)
        return self.outcome

    @property
    def _over(self) -> bool:
        floor = self.pool.rule.min_workers if self.pool.rule else len(self.workers)
        return self._left == 0 and len(self.workers) <= floor and not self._leaving

    @property
    def busy(self) -> int:
        """Workers that hold work and are to stay: what is in the pool's set of the busy."""
        return self.held_busy + sum(1 for worker in self.workers if worker.held or worker.generating)

    def number(self) -> float:
        """The formula's value now; 0 of a fixed pool."""
        if self.pool.rule is None:
            return 0.0
        values = {"high": 0, "normal": len(self.waiting), "low": 0, "busy": self.busy, "brake": self.brake}
        return self.pool.rule.formula({name: values.get(name, 0) for name in self.pool.rule.triggers})

    def scale(self, replicas: int) -> None:
        """Set the number of workers."""
        while len(self.workers) > replicas:
            self._dismiss(min(self.workers, key=lambda worker: worker.rank))
        while len(self.workers) < replicas:
            self.workers.append(_Worker(next(self._numbers)))
        self._give_gpus()
        self._hand_out()

    def _poll(self) -> None:
        """KEDA: zero to one at once, to zero after the cooldown."""
        if (rule := self.pool.rule) is None:
            return
        if self.number() > 0:
            self._active_s = self.now_s
            if not self.workers:
                self.scale(max(1, rule.min_workers))
        elif self.workers and not rule.min_workers and self.now_s - self._active_s > rule.cooldown_s:
            self.scale(0)
        self.at(self.now_s + rule.polling_s, self._poll)

    def _sync(self) -> None:
        if self._hpa is None:
            return
        self.scale(self._hpa.decide(self.now_s, self.number(), len(self.workers)))
        self.at(self.now_s + self.pool.sync_s, self._sync)

    def _arrive(self, arrival: Arrival) -> None:
        self.waiting.append(arrival)
        self._hand_out()

    def _give_gpus(self) -> None:
        used = len(self._leaving) + sum(1 for worker in self.workers if worker.began_s is not None)
        for worker in self.workers:
            if worker.began_s is None and (self.pool.gpus is None or used < self.pool.gpus):
                worker.began_s, used = self.now_s, used + 1
                self.outcome.cold_starts += 1
                if self.pool.rule is None:  # a fixed pool was there before
                    worker.ready = True
                    continue
                start_s = self.pool.cold_start.draw(self._chance)
                self.at(self.now_s + start_s, lambda worker=worker: self._ready(worker))  # type: ignore[misc]

    def _ready(self, worker: _Worker) -> None:
        worker.ready = True
        self._hand_out()

    def _hand_out(self) -> None:
        """Waiting jobs go to free slots, the emptiest worker first."""
        takers = [worker for worker in self.workers if worker.ready]
        while self.waiting and takers:
            worker = min(takers, key=lambda each: len(each.held) + len(each.generating))
            if len(worker.held) + len(worker.generating) >= max(self.pool.slots, self.pool.max_batch):
                break
            worker.held.append(self.waiting.popleft())
            self._generate(worker)

    def _generate(self, worker: _Worker) -> None:
        if worker.generating or not worker.held:
            return
        worker.generating = worker.held[: self.pool.max_batch]
        del worker.held[: self.pool.max_batch]
        worker.song += 1
        self.outcome.waits_s += [self.now_s - job.at_s for job in worker.generating]
        longest_s = max(job.generate_s for job in worker.generating)
        took_s = longest_s * (1 + self.pool.batch_cost * (len(worker.generating) - 1))
        self.outcome.generating_s += took_s
        song = worker.song
        self.at(self.now_s + took_s, lambda: self._generated(worker, song))

    def _generated(self, worker: _Worker, song: int) -> None:
        if song != worker.song or worker.gone:
            return
        self._left -= len(worker.generating)
        worker.generating = []
        if worker.leaving:
            self._end(worker)
        else:
            self._generate(worker)
            self._hand_out()

    def _dismiss(self, worker: _Worker) -> None:
        """SIGTERM: what is not begun goes back at once, what is being generated may end within the grace."""
        self.workers.remove(worker)
        worker.leaving = True
        self._return(worker.held)
        worker.held = []
        self._leaving.append(worker)
        if worker.generating:
            self.at(self.now_s + self.pool.grace_s, lambda: self._cut_off(worker))
        else:
            self._end(worker)

    def _cut_off(self, worker: _Worker) -> None:
        if worker.gone:
            return
        self.outcome.returned += len(worker.generating)
        self._return(worker.generating)
        worker.generating = []
        self._end(worker)

    def _return(self, jobs: Iterable[Arrival]) -> None:
        self.waiting.extendleft(reversed(list(jobs)))
        self._hand_out()

    def _end(self, worker: _Worker) -> None:
        worker.gone = True
        self._leaving.remove(worker)
        self._bill(worker)
        self._give_gpus()
        self._hand_out()

    def _bill(self, worker: _Worker) -> None:
        if worker.began_s is not None:
            self.outcome.gpu_s += max(0.0, self.now_s - worker.began_s)

    def _sample(self) -> None:
        sample = Sample(self.now_s, len(self.waiting), len(self.workers), len(self._leaving), self.busy)
        if self.outcome.samples and self.outcome.samples[-1].at_s == self.now_s:
            self.outcome.samples[-1] = sample
        else:
            self.outcome.samples.append(sample)
