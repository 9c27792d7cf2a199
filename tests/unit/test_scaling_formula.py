"""KEDA's formula and HPA's decisions, as tables."""

from __future__ import annotations

import pytest

from serinette.errors import ConfigurationError
from tools.scaling.formula import Formula
from tools.scaling.hpa import Hpa, wanted
from tools.scaling.rule import Direction, Policy, Rule

CHART = "brake > 0 ? busy : max(busy, min(busy + ceil((high + normal + low) / 4), 6))"


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("1 + 2 * 3", {}, 7),
        ("(1 + 2) * 3 - -1", {}, 10),
        ("10 - 4 - 3", {}, 3),
        ("a > 1 && b <= 2 || !c", {"a": 2, "b": 3, "c": 0}, 1),
        ("a == 1 ? 10 : b != 1 ? 20 : 30", {"a": 0, "b": 1}, 30),
        ("round(a) + floor(b) % 3", {"a": 2.5, "b": 5.9}, 5),
        ("min(3, a, 2)", {"a": 5}, 2),
        # the table of what was measured on a real KEDA
        (CHART, {"high": 0, "normal": 9, "low": 0, "busy": 0, "brake": 0}, 3),
        (CHART, {"high": 0, "normal": 0, "low": 0, "busy": 1, "brake": 0}, 1),
        (CHART, {"high": 0, "normal": 40, "low": 0, "busy": 1, "brake": 1}, 1),
        (CHART, {"high": 0, "normal": 40, "low": 0, "busy": 1, "brake": 0}, 6),
        (CHART, {"high": 0, "normal": 1, "low": 0, "busy": 9, "brake": 0}, 9),
        (CHART, {"high": 0, "normal": 0, "low": 0, "busy": 0, "brake": 0}, 0),
    ],
)
def test_a_formula(text: str, values: dict[str, float], expected: float) -> None:
    assert Formula.parse(text)(values) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 +", "its end"),
        ("(1", r"'its end' where \) was expected"),
        ("1 2", "'2' where an end"),
        ("a ? 1", "where : was"),
        ("sum(a)", "calls sum, which is not known"),
        ("a $ b", "cannot be read"),
    ],
)
def test_what_is_no_formula(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Formula.parse(text)


def test_what_keda_could_not_reckon_either() -> None:
    with pytest.raises(ConfigurationError, match="reads b, which no trigger"):
        Formula.parse("a + b")({"a": 1})
    with pytest.raises(ConfigurationError, match="divides by zero"):
        Formula.parse("1 / a")({"a": 0})


@pytest.mark.parametrize(
    ("total", "current", "expected"),
    [
        (3, 1, 3),
        (2.5, 1, 3),
        (105, 100, 100),
        (110, 100, 100),
        (111, 100, 111),
        (89, 100, 89),
        (90, 100, 100),
        (0, 3, 0),
    ],
)
def test_tolerance(total: float, current: int, expected: int) -> None:
    assert wanted(total, 1.0, current, 0.1, 0.1) == expected


def rule(up: Direction, down: Direction, most: int = 1000) -> Rule:
    return Rule("p", Formula.parse("busy"), {"busy": "b"}, 0, most, 1.0, 5.0, 300.0, up, down)


AT_ONCE = Direction(0, (Policy("Pods", 1000, 15),))
DEFAULT_UP = Direction(0, (Policy("Percent", 100, 15), Policy("Pods", 4, 15)))


@pytest.mark.parametrize(
    ("up", "down", "current", "totals", "expected"),
    [
        # totals come every 15 s; the replicas that come of each
        (DEFAULT_UP, AT_ONCE, 1, [40, 40, 40, 40], [5, 10, 20, 40]),
        (Direction(0, (Policy("Pods", 2, 60),)), AT_ONCE, 1, [9, 9, 9, 9, 9, 9], [3, 3, 3, 3, 5, 5]),
        (Direction(30, (Policy("Pods", 100, 15),)), AT_ONCE, 1, [9, 1, 9, 9, 9], [9, 1, 1, 9, 9]),
        (AT_ONCE, Direction(30, (Policy("Percent", 100, 15),)), 9, [9, 1, 1, 1], [9, 9, 1, 1]),
        (AT_ONCE, Direction(0, (Policy("Percent", 25, 60), Policy("Pods", 1, 60))), 8, [1] * 6, [6, 6, 6, 6, 4, 4]),
        (AT_ONCE, Direction(0, (Policy("Percent", 25, 60), Policy("Pods", 1, 60))), 2, [1] * 5, [1, 1, 1, 1, 1]),
        (AT_ONCE, Direction(0, (Policy("Pods", 5, 60), Policy("Pods", 1, 60)), "Min"), 8, [1] * 2, [7, 7]),
        (AT_ONCE, Direction(0, (Policy("Pods", 5, 60),), "Disabled"), 8, [1] * 2, [8, 8]),
        (AT_ONCE, AT_ONCE, 0, [9], [0]),
        (AT_ONCE, AT_ONCE, 2, [0], [1]),
    ],
)
def test_policies_and_windows(
    up: Direction, down: Direction, current: int, totals: list[int], expected: list[int]
) -> None:
    hpa, seen = Hpa(rule(up, down)), []
    for step, total in enumerate(totals):
        current = hpa.decide(step * 15.0, total, current)
        seen.append(current)
    assert seen == expected
