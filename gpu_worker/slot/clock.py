"""When an attempt was where: what its song took, and the spans of its trace, are read off it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from serinette import counters
from serinette.counters import Additions
from serinette.job import Result, Stage

_IN_ENGINE = frozenset({Stage.CONDITIONING, Stage.DENOISING, Stage.DECODING})


@dataclass(frozen=True, slots=True)
class Interval:
    """One stage, in Unix seconds."""

    stage: Stage
    began_s: float
    ended_s: float


@dataclass(slots=True)
class StageClock:
    """Told of every stage and step as the slot hears of it, in order. Not for several threads."""

    _reached: list[tuple[Stage, float]] = field(default_factory=list)
    _first_step: tuple[int, float] | None = None
    _last_step: tuple[int, float] | None = None

    def tell(self, stage: Stage, step: int | None = None) -> None:
        """The attempt is here now."""
        at_s = time.time()
        if not self._reached or self._reached[-1][0] is not stage:
            self._reached.append((stage, at_s))
        if step:
            self._first_step = self._first_step or (step, at_s)
            self._last_step = (step, at_s)

    def intervals(self, ended_s: float) -> Iterator[Interval]:
        """Each stage until the next one, the last until `ended_s`."""
        if not self._reached:
            return
        ends = [at_s for _, at_s in self._reached[1:]] + [ended_s]
        for (stage, began_s), end_s in zip(self._reached, ends, strict=True):
            yield Interval(stage, began_s, end_s)

    def engine_s(self) -> float:
        """Seconds in the engine until now, waits for it left out."""
        told = self.intervals(time.time())
        return sum(interval.ended_s - interval.began_s for interval in told if interval.stage in _IN_ENGINE)

    @property
    def steps_per_s(self) -> float | None:
        """Between the first and the last step that were told of; None when there were not two."""
        if self._first_step is None or self._last_step is None:
            return None
        steps, seconds = (last - first for first, last in zip(self._first_step, self._last_step, strict=True))
        return steps / seconds if steps > 0 and seconds > 0 else None


def song_additions(pool: str, result: Result, clock: StageClock) -> Additions:
    """What a job whose songs this attempt made adds to what is counted, in the transition that ends it."""
    timings = result.timings
    found = [*counters.additions(counters.RUN, timings.run_s, pool)]
    for stage, seconds in {
        "generate": timings.generate_s,
        "encode": timings.encode_s,
        "upload": timings.upload_s,
    }.items():
        found += counters.additions(counters.STAGE, seconds, pool, stage)
    if timings.generate_s > 0:
        audio_s = sum(artifact.duration_s for artifact in result.artifacts)
        found += counters.additions(counters.REAL_TIME_FACTOR, audio_s / timings.generate_s, pool)
    if clock.steps_per_s:
        found += counters.additions(counters.STEP_RATE, clock.steps_per_s, pool)
    return found
