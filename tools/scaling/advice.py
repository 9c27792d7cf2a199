"""Which J: the same trace under several formulas and under fixed pools, side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from serinette.errors import ConfigurationError
from tools.scaling.arrivals import Arrival
from tools.scaling.rule import Manifest, Rule, read_rules
from tools.scaling.simulation import Outcome, Pool, Simulation

CANDIDATES = (1, 2, 4, 8, 16)
# Two hundredths of the price are no reason to wait longer.
_AS_CHEAP = 1.02


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the pool, and what came of it."""

    jobs_per_worker: int | None  # None: a fixed pool
    fixed: int
    outcome: Outcome

    @property
    def name(self) -> str:
        """`J=4`, or `fixed 3`."""
        return f"fixed {self.fixed}" if self.jobs_per_worker is None else f"J={self.jobs_per_worker}"

    @property
    def gpu_hours(self) -> float:
        """Of all its workers."""
        return self.outcome.gpu_s / 3600

    def meets(self, percent: float, target_s: float) -> bool:
        """Whether so many percent of its jobs waited no longer than the target."""
        return self.outcome.wait_s(percent) <= target_s


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, and the choice among them."""

    rows: tuple[Row, ...]
    chosen: Row
    percent: float
    target_s: float
    rendered: int  # the J that the chart was rendered with

    @property
    def fixed(self) -> Row | None:
        """The smallest fixed pool that meets the target."""
        meeting = [row for row in self.rows if row.jobs_per_worker is None and row.meets(self.percent, self.target_s)]
        return min(meeting, key=lambda row: row.fixed, default=None)

    @property
    def sentence(self) -> str:
        """The advice in words."""
        wait = f"p{self.percent:g} of the waits {self.chosen.outcome.wait_s(self.percent):.0f} s"
        met = self.chosen.meets(self.percent, self.target_s)
        why = (
            f"{self.chosen.gpu_hours:.1f} GPU-hours keep {wait}, within {self.target_s:g} s, and none does for "
            f"over {_AS_CHEAP - 1:.0%} less"
            if met
            else f"no J keeps within {self.target_s:g} s; this one comes nearest, {wait}: the cold start, `max` or "
            "`min` (a warm floor) is what to change"
        )
        other = ""
        if met and self.fixed:
            other = f"; the smallest fixed pool that does, {self.fixed.fixed}, takes {self.fixed.gpu_hours:.1f}"
            if self.fixed.gpu_hours < self.chosen.gpu_hours:
                other += ", which is less: this trace never rests (set min)"
        change = "" if self.chosen.jobs_per_worker == self.rendered else f" (it is {self.rendered} now)"
        return f"Use jobsPerWorker: {self.chosen.jobs_per_worker}{change}: {why}{other}."


def compare(
    pool: Pool, rule: Rule, arrivals: Sequence[Arrival], target: tuple[float, float], seed: int = 0
) -> Comparison:
    """Run a trace under each J and under fixed pools; `target` is a percentile of the waits and its bound in seconds.

    Raises ConfigurationError for a formula that is not the chart's own.
    """
    own = rule.jobs_per_worker
    if own is None:
        raise ConfigurationError(f"the formula of pool {rule.pool} has no J: it is not the chart's own")
    horizon_s = max((arrival.at_s for arrival in arrivals), default=0.0)
    rows = []
    for jobs in sorted({*CANDIDATES, own}):
        run = Simulation(replace(pool, rule=rule.with_jobs_per_worker(jobs)), arrivals, seed)
        rows.append(Row(jobs, 0, run.run(at_least_s=horizon_s)))
    meeting = [row for row in rows if row.meets(*target)]
    # Of those that meet the target, the cheapest or as good as.
    bound_s = _AS_CHEAP * min((row.outcome.gpu_s for row in meeting), default=0.0)
    cheap = [row for row in meeting if row.outcome.gpu_s <= bound_s]
    chosen = min(  # of equals the one in use: a change that changes nothing is no advice
        cheap or rows, key=lambda row: (row.outcome.wait_s(target[0]), row.outcome.gpu_s, row.jobs_per_worker != own)
    )
    fixed = [_fixed(pool, size, arrivals, horizon_s, seed) for size in _sizes(rule.max_workers)]
    return Comparison((*rows, *fixed), chosen, *target, own)


def _fixed(pool: Pool, size: int, arrivals: Sequence[Arrival], horizon_s: float, seed: int) -> Row:
    run = Simulation(replace(pool, rule=None, fixed=size, gpus=None), arrivals, seed)
    return Row(None, size, run.run(at_least_s=horizon_s))


def _sizes(most: int) -> list[int]:
    """Fixed pools worth a look: each up to eight, then in steps of a third."""
    sizes = list(range(1, min(most, 8) + 1))
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, sizes[-1] * 4 // 3)))
    return sizes


def read_pools(manifests: Iterable[Manifest]) -> dict[str, Pool]:
    """Each pool as the rendered chart has it: its rule, and slots, batch and grace of its Deployment."""
    manifests = list(manifests)
    rules, pools = read_rules(manifests), {}
    for each in manifests:
        pool = each.get("metadata", {}).get("labels", {}).get("serinette.dev/pool")
        if each.get("kind") != "Deployment" or pool not in rules:
            continue
        pod = each["spec"]["template"]["spec"]
        environment = {
            entry["name"]: entry["value"] for entry in pod["containers"][0].get("env", []) if "value" in entry
        }
        grace_s = float(pod.get("terminationGracePeriodSeconds", 30))
        pools[pool] = Pool(
            rule=rules[pool],
            slots=_whole(environment.get("SERINETTE_SLOTS"), 2),
            max_batch=_whole(environment.get("SERINETTE_MAX_BATCH"), 1),
            grace_s=max(0.0, grace_s - 60),  # a worker keeps a minute of it for giving back what does not fit
        )
    return pools


def _whole(text: str | None, default: int) -> int:
    return int(text) if text and re.fullmatch(r"\d+", text) else default
