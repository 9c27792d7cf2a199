"""Counters of events, kept in Redis because pods come and go between two scrapes and would lose theirs.

One hash of small numbers, whose size is bounded by the label values in it (pools, outcomes, error codes; never a job or
a tenant). Counts are written in the transaction of the event, so that a job that ends once is counted once.
The controller exposes them (controller/metrics.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.client import Pipeline

from serinette.names import Keys


@dataclass(frozen=True, slots=True)
class Measure:
    """What is counted: events, as `serinette_{name}_total`; with `bounds` values, as the histogram `serinette_{name}`,
    sorted into buckets by these upper bounds.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0)

# Counted by the transitions (serinette/jobs/), which write these names.
JOBS_ENDED = Measure(
    "jobs_ended", "Jobs that ended, by outcome; `code` says why one failed.", ("pool", "outcome", "code")
)
ATTEMPTS_ENDED = Measure(
    "attempts_ended",
    "Attempts that ended, by outcome; returned and superseded ones do not count against the job.",
    ("pool", "outcome", "code"),
)
RETRIES = Measure("retries", "Attempts that failed and were followed by another.", ("pool", "code"))

WEBHOOKS = Measure(
    "webhook_deliveries", "Webhook deliveries attempted: delivered, failed (another follows) or given_up.", ("outcome",)
)

WAIT = Measure("wait_seconds", "From a job's submit to its first claim.", ("pool", "lane"), _SECONDS)
RUN = Measure("run_seconds", "From the start of the attempt that succeeded to its end.", ("pool",), _SECONDS)
STAGE = Measure("stage_seconds", "Parts of that: generate, encode, upload.", ("pool", "stage"), _SECONDS)
COLD_START = Measure(
    "cold_start_seconds", "From the start of a worker's first process to a model that is ready.", ("pool",), _SECONDS
)
COLD_START_PART = Measure(
    "cold_start_part_seconds",
    "Parts of a cold start: node, image, weights, load, compile, first_song.",
    ("pool", "part"),
    _SECONDS,
)
STEP_RATE = Measure(
    "steps_per_second",
    "Denoising steps a second of one job, between its first and its last step.",
    ("pool",),
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0),
)
REAL_TIME_FACTOR = Measure(
    "real_time_factor",
    "Seconds of audio of one job for each second that the engine spent on it.",
    ("pool",),
    (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0),
)

MEASURES: tuple[Measure, ...] = (
    JOBS_ENDED,
    ATTEMPTS_ENDED,
    RETRIES,
    WEBHOOKS,
    WAIT,
    RUN,
    STAGE,
    COLD_START,
    COLD_START_PART,
    STEP_RATE,
    REAL_TIME_FACTOR,
)

# Fields of the hash and their increments.
Additions = Sequence[tuple[str, float]]

# Separates the parts of a field's name: the measure, then the values of its labels.
SEPARATOR = "|"
_SUM = "sum"


def count(to: Redis | Pipeline, keys: Keys, counter: Measure, *labels: str) -> None:
    """Count one event on a client or in a pipeline. Raises RedisError on a client."""
    to.hincrby(keys.counters, _field(counter, labels), 1)


def observe(to: Redis | Pipeline, keys: Keys, histogram: Measure, value: float, *labels: str) -> None:
    """Observe one value on a client or in a pipeline. Raises RedisError on a client."""
    for name, amount in additions(histogram, value, *labels):
        to.hincrbyfloat(keys.counters, name, amount)


def additions(histogram: Measure, value: float, *labels: str) -> Additions:
    """Increments of one value, to be applied by a transition (serinette/jobs/)."""
    bucket = _buckets(histogram)[bisect_left(histogram.bounds, value)]
    return [
        (_field(histogram, (*labels, bucket), extra=1), 1),
        (_field(histogram, (*labels, _SUM), extra=1), value),
    ]


def _buckets(histogram: Measure) -> tuple[str, ...]:
    # Named by their bounds: a version with other bounds ignores buckets that it does not know.
    return (*(f"{bound:g}" for bound in histogram.bounds), "inf")


def _field(measure: Measure, labels: tuple[str, ...], extra: int = 0) -> str:
    if len(labels) != len(measure.labels) + extra:
        raise ValueError(f"{measure.name} is counted by {measure.labels}, not by {labels}")
    return SEPARATOR.join((measure.name, *(label.replace(SEPARATOR, "_") for label in labels)))


@dataclass(frozen=True, slots=True)
class Counters:
    """All counters at one moment."""

    fields: Mapping[str, tuple[tuple[tuple[str, ...], float], ...]]

    @classmethod
    def parse(cls, raw: Mapping[Any, Any]) -> Counters:
        """Parse the hash as `HGETALL` returns it."""
        fields: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        for name, value in raw.items():
            measure, *labels = name.decode().split(SEPARATOR)
            fields.setdefault(measure, []).append((tuple(labels), float(value)))
        return cls({name: tuple(sorted(found)) for name, found in fields.items()})

    def counts(self, counter: Measure) -> Iterator[tuple[tuple[str, ...], float]]:
        """Labels and value of each series. Series of another version with other labels are left out."""
        return (
            (labels, value) for labels, value in self.fields.get(counter.name, ()) if len(labels) == len(counter.labels)
        )

    def distributions(self, histogram: Measure) -> Iterator[tuple[tuple[str, ...], tuple[int, ...], float]]:
        """Of each series its labels, how many values fell into each bucket, the last one unbounded, and their sum."""
        series: dict[tuple[str, ...], dict[str, float]] = {}
        for labels, value in self.fields.get(histogram.name, ()):
            if len(labels) == len(histogram.labels) + 1:
                series.setdefault(labels[:-1], {})[labels[-1]] = value
        for labels, found in series.items():
            yield labels, tuple(int(found.get(bucket, 0)) for bucket in _buckets(histogram)), found.get(_SUM, 0.0)
