"""The fleet benchmark: its workers speak the real transitions, and its conclusions are sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from benchmarks.fleet import BEATS, RATE, Slot, fill, judged
from serinette.jobs import Jobs
from serinette.names import Keys, Lane


class Impatient:
    """Does everything at once, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._due: list[tuple[str, Callable[[], float | None]]] = []

    def add(self, name: str, action: Callable[[], float | None], _after_s: float) -> None:
        self._due.append((name, action))

    def run(self, most: int) -> None:
        while self._due and len(self.done) < most:
            name, action = self._due.pop(0)
            self.done.append(name)
            if action() is not None:
                self._due.append((name, action))


def test_a_simulated_slot_takes_jobs_through_their_life(redis: Redis, keys: Keys) -> None:
    jobs, rhythm = Jobs(redis, keys.prefix), Impatient()
    fill(jobs, 2)
    rhythm.add("claim", Slot(jobs, "pod-1.0.abc", rhythm).claim, 0)  # type: ignore[arg-type]  # of time it takes none
    rhythm.run(BEATS + 3)
    assert rhythm.done == ["claim", *["beat"] * BEATS, "finish", "claim"]
    assert redis.zcard(keys.waiting("default", Lane.NORMAL)) == 0
    assert redis.scard(keys.busy("default")) == 1 and redis.zcard(keys.live) == 1


def seen(workers: int, cpu: float, claims: float = 10.0) -> dict[str, Any]:
    return {
        "workers": workers,
        "cpu_share": cpu,
        "commands_per_s": 40.0 * workers,
        "claims_per_s": claims,
        "claims_wanted_per_s": 10.0,
    }


@pytest.mark.parametrize(
    ("steps", "per_100", "rest", "most"),
    [
        ([seen(100, 0.12), seen(300, 0.32), seen(500, 0.52)], 0.05, 0.01, 1380),
        ([seen(100, 0.1), seen(300, 0.3), seen(500, 0.5)], 0.05, 0.0, 1400),
    ],
)
def test_what_is_concluded(steps: list[dict[str, Any]], per_100: float, rest: float, most: int) -> None:
    found = judged(steps)
    assert RATE == 2.0, "what is measured at twice the rate is halved"
    assert found["cpu_share_per_100_workers"] == pytest.approx(per_100)
    assert found["cpu_share_of_the_rest"] == pytest.approx(rest, abs=1e-3)
    assert found["commands_per_s_per_100_workers"] == pytest.approx(2000)
    assert found["workers_until_full"] == most
    assert found["claims_kept_up"] == 1.0
