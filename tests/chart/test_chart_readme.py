"""The chart's README: written from the chart, complete, its sums right."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

from scripts.chart_readme import PAGE, check, number
from tests.chart.rendering import Render, of_kind
from tests.chart.test_chart_values import VALUES, leaves


def test_it_is_what_the_chart_says_now(render: Render) -> None:
    render()  # skips without helm
    assert check()


def test_it_lists_every_value() -> None:
    listed = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE))
    # Maps of an operator's own are one value.
    wanted = {".".join(path) for path, _ in leaves(VALUES)}
    missing = {name for name in wanted if not any(name == each or name.startswith(f"{each}.") for each in listed)}
    assert missing == set()


def test_it_counts_what_is_made(render: Render) -> None:
    text, objects = PAGE.read_text(), render("default")
    installed = [item for item in objects if item.kind != "Pod"]
    assert f"| objects | {len(installed)}: " in text
    assert f"{len(of_kind(objects, 'NetworkPolicy'))} NetworkPolicy" in text
    assert "| requests at rest | 800m CPU, 1.56 GiB |" in text
    assert "| volumes | 2 claims, 58 GiB" in text


@pytest.mark.parametrize(
    ("quantity", "value"), [("100m", Decimal("0.1")), (1, 1), ("2", 2), ("512Mi", 512 * 1024**2), ("8Gi", 8 * 1024**3)]
)
def test_quantities(quantity: object, value: Decimal) -> None:
    assert number(quantity) == value
