"""`python -m tools.scaling` as it is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from scripts.chart_tools import CHART
from serinette.errors import ConfigurationError
from tools.scaling.__main__ import blocks, scale

ROOT = Path(__file__).parents[2]
K8S = str(ROOT / "k8s")
APP = typer.Typer()
APP.command()(scale)


def test_the_table_the_plot_and_the_advice() -> None:
    done = CliRunner().invoke(APP, [K8S, "--per-hour", "60", "--hours", "3", "--seed", "7"])
    assert done.exit_code == 0, done.output
    assert "J=4 *" in done.output
    assert "fixed 2" in done.output
    assert "workers over time" in done.output
    assert "Use jobsPerWorker:" in done.output


def test_the_same_seed_reports_the_same() -> None:
    command = [K8S, "--trace", "poisson", "--hours", "2", "--target", "p99=60", "--json"]
    first, second = (CliRunner().invoke(APP, command) for _ in range(2))
    assert first.stdout == second.stdout
    report = json.loads(first.stdout)
    assert report["use"] in {1, 2, 4, 8, 16}
    assert {row["name"] for row in report["rows"]} >= {"J=1", "J=4", "fixed 1"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([str(CHART / "values.yaml")], "holds no pool with a ScaledObject"),
        (["/nowhere.yaml"], "cannot be read"),
        ([K8S, "--pool", "x"], "there is no pool x; there are default"),
        ([K8S, "--generate-s", "x"], "is no spread of seconds"),
        ([K8S, "--per-hour", "0"], "has no arrivals"),
        ([K8S, "--trace", "/nowhere"], "is no trace"),
    ],
)
def test_what_cannot_be_simulated(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(APP, [*arguments])
    assert isinstance(done.exception, ConfigurationError)
    assert why in done.exception.message


def test_a_target_that_is_none() -> None:
    for target in ("180", "p0=1", "p95=soon", "p101=1"):
        done = CliRunner().invoke(APP, [K8S, "--target", target])
        assert done.exit_code == 2, target


def test_blocks() -> None:
    points = [(0.0, 0.0), (3600.0, 4.0), (5400.0, 2.0), (7200.0, 0.0)]
    assert blocks(points, width=8, height=2) == [
        "      4 ┤    ███ ",
        "      0 ┤    ████",
        "         0 h2.0 h",
    ]
