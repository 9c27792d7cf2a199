"""What a HorizontalPodAutoscaler decides, as its controller does (kubernetes: pkg/controller/podautoscaler, 1.36)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tools.scaling.rule import Direction, Policy, Rule


def wanted(total: float, target: float, current: int, up: float, down: float) -> int:
    """Replicas for an AverageValue metric: total / target, unless that is within a tolerance of what there is."""
    ratio = total / (target * current)
    if 1 - down <= ratio <= 1 + up:
        return current
    return math.ceil(total / target)


def most(current: int, added: Callable[[int], int], removed: Callable[[int], int], up: Direction) -> int:
    """As many replicas as the policies of scaleUp allow now; `added(s)`: how many came in the last s seconds."""

    def limit(policy: Policy) -> int:
        start = current - added(policy.period_s) + removed(policy.period_s)
        return start + policy.value if policy.type == "Pods" else math.ceil(start * (1 + policy.value / 100))

    return max(current, _selected(up, map(limit, up.policies), max, min, current))


def fewest(current: int, added: Callable[[int], int], removed: Callable[[int], int], down: Direction) -> int:
    """As few replicas as the policies of scaleDown allow now."""

    def limit(policy: Policy) -> int:
        start = current - added(policy.period_s) + removed(policy.period_s)
        return start - policy.value if policy.type == "Pods" else int(start * (1 - policy.value / 100))

    return min(current, _selected(down, map(limit, down.policies), min, max, current))


def _selected(
    way: Direction,
    limits: Iterable[int],
    widest: Callable[[list[int]], int],
    narrowest: Callable[[list[int]], int],
    current: int,
) -> int:
    if way.select == "Disabled":
        return current
    return (widest if way.select == "Max" else narrowest)(list(limits))


@dataclass
class Hpa:
    """One HPA's memory: its recommendations and its changes, by time in seconds."""

    rule: Rule
    _recommended: deque[tuple[float, int]] = field(default_factory=deque)
    _changes: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, now_s: float, total: float, current: int) -> int:
        """The new number of replicas, when there are `current`. Of none it makes none: that is KEDA's part."""
        if current == 0:
            return 0
        rule = self.rule
        desired = wanted(total, rule.target, current, rule.up.tolerance, rule.down.tolerance)
        desired = self._stabilized(now_s, desired, current)
        if desired > current:
            desired = min(desired, most(current, self._since(now_s, 1), self._since(now_s, -1), rule.up))
        elif desired < current:
            desired = max(desired, fewest(current, self._since(now_s, 1), self._since(now_s, -1), rule.down))
        desired = max(rule.min_workers, 1, min(desired, rule.max_workers))
        if desired != current:
            self._changes.append((now_s, desired - current))
        return desired

    def _stabilized(self, now_s: float, desired: int, current: int) -> int:
        """Up: the least that was wanted within its window; down: the most."""
        self._recommended.append((now_s, desired))
        window_s = max(self.rule.up.stabilization_s, self.rule.down.stabilization_s)
        while self._recommended[0][0] < now_s - window_s:
            self._recommended.popleft()
        upward = min(self._within(now_s, self.rule.up))
        downward = max(self._within(now_s, self.rule.down))
        return min(max(current, upward), downward)

    def _within(self, now_s: float, way: Direction) -> list[int]:
        return [replicas for at_s, replicas in self._recommended if at_s == now_s or at_s > now_s - way.stabilization_s]

    def _since(self, now_s: float, sign: int) -> Callable[[int], int]:
        longest_s = max(each.period_s for way in (self.rule.up, self.rule.down) for each in way.policies)
        while self._changes and self._changes[0][0] <= now_s - longest_s:
            self._changes.popleft()
        return lambda period_s: sum(
            sign * change for at_s, change in self._changes if at_s > now_s - period_s and sign * change > 0
        )
