"""Arrivals: a trace from a file, or made from a seed."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from serinette.errors import ConfigurationError

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """A job that comes at `at_s` and takes `generate_s` to generate alone, in seconds."""

    at_s: float
    generate_s: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A duration in seconds: fixed, uniform between two, or lognormal by its median and 95th percentile."""

    text: str
    draw: Callable[[random.Random], float]

    @classmethod
    def parse(cls, text: str) -> Spread:
        """`90`, `60-300` or `p50=90,p95=240`. Raises ConfigurationError."""
        wrong = ConfigurationError(f"{text!r} is no spread of seconds: write 90, 60-300 or p50=90,p95=240")
        try:
            if "=" in text:
                parts = dict(part.split("=") for part in text.split(","))
                median, high = float(parts.pop("p50")), float(parts.pop("p95"))
                if parts or not 0 < median <= high:
                    raise wrong
                sigma = math.log(high / median) / 1.6449  # the 95th percentile of the normal distribution
                return cls(text, lambda chance: chance.lognormvariate(math.log(median), sigma))
            low, _, top = text.partition("-")
            bounds = (float(low), float(top or low))
        except (ValueError, KeyError):
            raise wrong from None
        if not 0 <= bounds[0] <= bounds[1] < math.inf:
            raise wrong
        return cls(text, lambda chance: chance.uniform(*bounds))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals to be made: jobs an hour on average, for how long, and how long each takes to generate."""

    per_hour: float
    hours: float
    generate_s: Spread
    seed: int = 0

    def poisson(self) -> list[Arrival]:
        """Independent arrivals at one rate."""
        return self._thinned(lambda _: 1.0, 1.0)

    def daily(self) -> list[Arrival]:
        """Day and night: 1.9 times the average at noon, a tenth of it at midnight, when it begins."""
        return self._thinned(lambda at_s: 1 - 0.9 * math.cos(2 * math.pi * at_s / DAY_S), 1.9)

    def burst(self) -> list[Arrival]:
        """Half of all jobs at once, at the start of each hour; the others spread."""
        chance = random.Random(self.seed)  # noqa: S311  # a simulation
        size = round(self.per_hour / 2)
        starts = (hour * 3600.0 for hour in range(math.ceil(self.hours)) for _ in range(size))
        bursts = [Arrival(at_s, self.generate_s.draw(chance)) for at_s in starts]
        spread = Traffic(self.per_hour / 2, self.hours, self.generate_s, self.seed + 1).poisson()
        return sorted([*bursts, *spread], key=lambda each: each.at_s)

    def _thinned(self, share: Callable[[float], float], peak: float) -> list[Arrival]:
        """A Poisson process whose rate varies (Lewis and Shedler's thinning); `peak` is the largest share."""
        chance = random.Random(self.seed)  # noqa: S311  # a simulation
        found, at_s = [], 0.0
        while (
            self.per_hour > 0 and (at_s := at_s + chance.expovariate(self.per_hour * peak / 3600)) < self.hours * 3600
        ):
            if chance.random() * peak < share(at_s):
                found.append(Arrival(at_s, self.generate_s.draw(chance)))
        return found


def read_arrivals(path: Path, generate_s: Spread, seed: int) -> list[Arrival]:
    """A trace: what `serinette jobs --json` prints, or CSV with `arrived_s` or `created_at`, and perhaps `generate_s`.

    Times are counted from the first arrival. Raises ConfigurationError for a file that is neither.
    """
    chance = random.Random(seed)  # noqa: S311  # a simulation
    try:
        text = path.read_text()
        rows = [_of_job(job) for job in json.loads(text)] if text.lstrip()[:1] == "[" else _of_csv(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is no trace: give the JSON of `serinette jobs --json`, or CSV with a column arrived_s or "
            f"created_at, and perhaps generate_s ({error!r})"
        ) from error
    if not rows:
        raise ConfigurationError(f"{path} holds no arrivals")
    first_s = min(at_s for at_s, _ in rows)
    found = [Arrival(at_s - first_s, generate_s.draw(chance) if took_s is None else took_s) for at_s, took_s in rows]
    return sorted(found, key=lambda each: each.at_s)


def _of_job(job: dict[str, Any]) -> tuple[float, float | None]:
    timings = (job.get("result") or {}).get("timings") or {}
    return datetime.fromisoformat(job["created_at"]).timestamp(), timings.get("generate_s")


def _of_csv(text: str) -> list[tuple[float, float | None]]:
    rows = []
    for row in csv.DictReader(text.splitlines()):
        at = row.get("arrived_s")
        at_s = float(at) if at is not None else datetime.fromisoformat(row["created_at"]).timestamp()
        rows.append((at_s, float(row["generate_s"]) if row.get("generate_s") else None))
    return rows
