"""When an attempt was in which stage: its counters, its engine time and the spans of its trace are read off it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serinette import counters, telemetry
from serinette.counters import Additions
from serinette.job import Attempt, Result, Stage
from serinette.jobs import Entry

_IN_ENGINE = frozenset({Stage.PLANNING, Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING})


@dataclass(slots=True)
class StageTimes:
    """Every stage and step as the slot hears of it, in order. Not for several threads."""

    _reached: list[tuple[Stage, float]] = field(default_factory=list)
    _first_step: tuple[int, float] | None = None
    _last_step: tuple[int, float] | None = None

    def reached(self, stage: Stage, step: int | None = None, at_s: float | None = None) -> None:
        """The attempt is here, now or at a Unix second."""
        at_s = time.time() if at_s is None else at_s
        if not self._reached or self._reached[-1][0] is not stage:
            self._reached.append((stage, at_s))
        if step and stage is Stage.DENOISING:
            self._first_step = self._first_step or (step, at_s)
            self._last_step = (step, at_s)

    def intervals(self) -> Iterator[tuple[Stage, float, float]]:
        """Each stage, when it began and ended (Unix seconds): until the next one, the last until now."""
        ends = [at_s for _, at_s in self._reached[1:]] + [time.time()]
        for (stage, began_s), end_s in zip(self._reached, ends, strict=False):  # before the first there is an end alone
            yield stage, began_s, end_s

    def engine_s(self) -> float:
        """Seconds in the engine until now, waits for it left out."""
        return sum(ended_s - began_s for stage, began_s, ended_s in self.intervals() if stage in _IN_ENGINE)

    @property
    def steps_per_s(self) -> float | None:
        """Between the first and the last step reported; None when there were not two."""
        if self._first_step is None or self._last_step is None:
            return None
        steps, seconds = (last - first for first, last in zip(self._first_step, self._last_step, strict=True))
        return steps / seconds if steps > 0 and seconds > 0 else None

    def additions(self, pool: str, result: Result) -> Additions:
        """What a job whose songs this attempt made adds to the counters, in the transition that ends it."""
        timings = result.timings
        found = [*counters.additions(counters.RUN, timings.run_s, pool)]
        parts = {"generate": timings.generate_s, "encode": timings.encode_s, "upload": timings.upload_s}
        for stage, seconds in parts.items():
            found += counters.additions(counters.STAGE, seconds, pool, stage)
        if timings.generate_s > 0 and result.artifacts:
            audio_s = sum(artifact.duration_s for artifact in result.artifacts)
            found += counters.additions(counters.REAL_TIME_FACTOR, audio_s / timings.generate_s, pool)
        if self.steps_per_s:
            found += counters.additions(counters.STEP_RATE, self.steps_per_s, pool)
        return found

    def trace(self) -> None:
        """What the attempt and its engine did up to now, each stage a span."""
        for stage, began_s, ended_s in self.intervals():
            telemetry.record(f"stage.{stage}", began_s, ended_s)


@contextmanager
def traced(entry: Entry, attempt: Attempt, claim_began_s: float) -> Iterator[None]:
    """An attempt as a span below the submit that its job's record names; before it, the wait in the lane."""
    parent, pool = entry.traceparent, entry.pool
    before = [each.ended_at for each in entry.attempts[:-1] if each.ended_at]
    waits_since = before[-1] if before else entry.created_at  # after the first attempt, since it was put back
    wait_began_s = waits_since.timestamp()
    wait_began_s = min(wait_began_s, claim_began_s)  # by Redis's clock, which may be ahead of this machine's
    telemetry.record("queue.wait", wait_began_s, claim_began_s, parent, job=entry.id, pool=pool, lane=entry.lane)
    about: dict[str, telemetry.Value] = {"job": entry.id, "attempt": attempt.number, "worker": attempt.worker}
    with telemetry.span("attempt", parent, claim_began_s, {**about, "pool": pool}):
        telemetry.record("claim", claim_began_s, time.time())
        yield
