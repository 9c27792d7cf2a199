"""When a pool is braked: a pure decision over what was seen of it (docs/decisions/0014).

Waste is a GPU that is paid for and cannot sing: its song could not be kept, or its worker does not come up. A pod that
waits for a GPU that is not there costs nothing and makes the autoscaler bring one, so want of capacity is no reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serinette.brake import Cause, Failure


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient the brake is."""

    failures: int = 3  # loads that failed in a row
    memory_s: float = 1800.0  # after the last of them, when nothing was heard since
    store_s: float = 60.0  # of a store that does not answer


@dataclass(frozen=True, slots=True)
class Seen:
    """One pool, and the store that it shares with the others, at one moment (Unix seconds of Redis's clock)."""

    at_s: float
    failures: Sequence[Failure] = ()  # newest first, since a load last passed
    ready: int = 0  # workers that hold a model
    waiting: int = 0  # jobs in its lanes
    store_away_s: float = 0.0
    stuck: int = 0  # pods that the cluster cannot start, again and again
    stuck_words: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to put in force. `probe`: whether one worker is let try all the same."""

    reasons: tuple[str, ...] = ()
    probe: bool = False


def decide(seen: Seen, rules: Rules) -> Verdict:
    """The reasons that hold now. Where most workers are well, a few that are not brake nobody."""
    reasons = []
    if seen.store_away_s >= rules.store_s:
        reasons.append(f"{Cause.STORE}: the store has not answered for over {rules.store_s:g} s")
    if told := _loads(seen, rules):
        reasons.append(f"{Cause.LOAD}: {told}")
    if seen.stuck and seen.stuck >= seen.ready:
        reasons.append(f"{Cause.POD}: {seen.stuck_words}")
    # While the store is away a worker that comes up shows nothing; the store itself is asked.
    probe = bool(reasons) and seen.store_away_s < rules.store_s and seen.waiting > 0
    return Verdict(tuple(reasons), probe)


def _loads(seen: Seen, rules: Rules) -> str | None:
    if len(seen.failures) < rules.failures or seen.at_s - seen.failures[0].at_s > rules.memory_s:
        return None
    recent = {failure.pod for failure in seen.failures if seen.at_s - failure.at_s <= rules.memory_s}
    if len(recent) < seen.ready:
        return None
    return f"the last {len(seen.failures)} loads of the model failed: {seen.failures[0].message}"
