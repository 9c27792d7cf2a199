"""`python -m tools.scaling`: a trace through the chart's own scaling (docs/scaling.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Column

from serinette.cli.options import AsJson
from serinette.cli.terminal import errors, output, show_table
from serinette.errors import ConfigurationError
from tools.scaling.advice import Comparison, Row, compare, read_pools
from tools.scaling.arrivals import Arrival, Spread, Traffic, read_arrivals
from tools.scaling.rule import Rule
from tools.scaling.simulation import Pool

_BLOCKS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = 8

Manifests = Annotated[
    Path,
    typer.Argument(
        help="What the chart renders: a file, a directory such as k8s/, - for standard input, or the chart's own "
        "directory, which helm then renders."
    ),
]
Trace = Annotated[
    str, typer.Option(help="poisson, daily, burst, or a file: JSON of `serinette jobs --json`, or CSV with arrived_s.")
]
Values = Annotated[list[Path] | None, typer.Option("--values", "-f", help="For helm, if it renders; may be repeated.")]
PoolName = Annotated[str | None, typer.Option(help="Of the chart's pools; needed where there are several.")]
PerHour = Annotated[float, typer.Option(min=0, help="Jobs an hour, of a made trace.")]
Hours = Annotated[float, typer.Option(min=0, help="Length of a made trace.")]
GenerateS = Annotated[
    str, typer.Option(help="Seconds to generate a song where the trace does not say: 30, 20-60 or p50=30,p95=90.")
]
ColdStart = Annotated[str, typer.Option(help="Seconds from a worker's start to its first job: node, image, load.")]
BatchCost = Annotated[float, typer.Option(min=0, max=1, help="What a further song of a batch adds: 1 is no gain.")]
Gpus = Annotated[int | None, typer.Option(min=1, help="As many as there are, those of leaving workers too.")]
Price = Annotated[float, typer.Option(min=0, help="Of a GPU-hour.")]
Target = Annotated[str, typer.Option(help="Percentile of the waits and its bound in seconds.")]
Seed = Annotated[int, typer.Option(help="The same seed, the same day.")]


def scale(
    manifests: Manifests,
    trace: Trace = "daily",
    values: Values = None,
    pool: PoolName = None,
    per_hour: PerHour = 120.0,
    hours: Hours = 24.0,
    generate_s: GenerateS = "30",
    cold_start: ColdStart = "p50=90,p95=300",
    batch_cost: BatchCost = 1.0,
    gpus: Gpus = None,
    price: Price = 2.0,
    target: Target = "p95=180",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Run a trace through the rendered chart's formula and HPA; says which J (jobsPerWorker) to use.

    Modelled: KEDA's poll and cooldown, HPA's tolerance, windows and policies, cold starts, slots and batches, workers
    that leave with a song in hand. A model, not a measurement.
    """
    chosen, rule = _pool(manifests, values or [], pool)
    arrivals = _arrivals(trace, per_hour, hours, Spread.parse(generate_s), seed)
    chosen = replace(chosen, cold_start=Spread.parse(cold_start), batch_cost=batch_cost, gpus=gpus)
    comparison = compare(chosen, rule, arrivals, _target(target), seed)
    if as_json:
        output.print_json(json.dumps(report(comparison, price)))
        return
    errors.print(
        f"Pool [bold]{escape(rule.pool)}[/]: {len(arrivals)} jobs in {arrivals[-1].at_s / 3600:.1f} h, "
        f"up to {rule.max_workers} workers, {escape(rule.formula.text)}",
        soft_wrap=True,
    )
    _show(comparison, price)
    _plot(comparison)
    output.print(f"[bold]{escape(comparison.sentence)}[/]", soft_wrap=True)


def _pool(path: Path, values: list[Path], name: str | None) -> tuple[Pool, Rule]:

    found = read_pools(load(rendered(path, values)))
    pools = {each: (pool, pool.rule) for each, pool in found.items() if pool.rule}
    if not pools:
        raise ConfigurationError(f"{path} holds no pool with a ScaledObject: render the chart with keda.enabled=true")
    if name is None and len(pools) > 1:
        raise ConfigurationError(f"there are several pools: name one with --pool, of {', '.join(sorted(pools))}")
    if name is not None and name not in pools:
        raise ConfigurationError(f"there is no pool {name}; there are {', '.join(sorted(pools))}")
    return pools[name] if name else next(iter(pools.values()))


def rendered(path: Path, values: list[Path]) -> str:
    """The text of the manifests. Raises ConfigurationError."""
    if str(path) == "-":
        return typer.get_text_stream("stdin").read()
    if (path / "Chart.yaml").is_file():
        return _helm(path, values)
    try:
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        return "\n---\n".join(file.read_text() for file in files)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _helm(chart: Path, values: list[Path]) -> str:
    if (helm := shutil.which("helm")) is None:
        raise ConfigurationError(f"helm is not installed: render {chart} elsewhere (`helm template`) and give the file")
    command = [helm, "template", "serinette", str(chart), "--api-versions", "keda.sh/v1alpha1"]
    command += ["--set", "global.imageRegistry=registry.invalid"]  # no image is pulled
    for file in values:
        command += ["--values", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise ConfigurationError(f"helm does not render {chart}: {done.stderr.strip()[-500:]}")
    return done.stdout


def load(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML stream. Raises ConfigurationError."""
    try:
        return [found for found in yaml.safe_load_all(text) if isinstance(found, dict)]
    except yaml.YAMLError as error:
        raise ConfigurationError(f"the manifests are no YAML: {error}") from error


def _arrivals(trace: str, per_hour: float, hours: float, generate_s: Spread, seed: int) -> list[Arrival]:

    traffic = Traffic(per_hour, hours, generate_s, seed)
    made = {"poisson": traffic.poisson, "daily": traffic.daily, "burst": traffic.burst}
    arrivals = made[trace]() if trace in made else read_arrivals(Path(trace), generate_s, seed)
    if not arrivals:
        raise ConfigurationError("the trace has no arrivals: raise --per-hour or --hours")
    return arrivals


def _target(text: str) -> tuple[float, float]:
    name, _, bound = text.partition("=")
    try:
        percent, bound_s = float(name.removeprefix("p")), float(bound)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not like p95=180", param_hint="--target") from None
    if not (name.startswith("p") and 0 < percent <= 100 and bound_s >= 0):
        raise typer.BadParameter(f"{text!r} is not like p95=180", param_hint="--target")
    return percent, bound_s


def report(comparison: Comparison, price: float) -> dict[str, Any]:
    """The comparison as JSON."""
    rows = [
        {
            "name": row.name,
            "jobs_per_worker": row.jobs_per_worker,
            "fixed": row.fixed or None,
            **{f"wait_p{percent}_s": round(row.outcome.wait_s(percent), 1) for percent in (50, 95, 99)},
            "gpu_hours": round(row.gpu_hours, 3),
            "cost": round(row.gpu_hours * price, 2),
            "generating_share": round(_generating_share(row), 3),
            "peak_workers": row.outcome.peak,
            "cold_starts": row.outcome.cold_starts if row.jobs_per_worker else 0,
            "returned": row.outcome.returned,
        }
        for row in comparison.rows
    ]
    return {"use": comparison.chosen.jobs_per_worker, "why": comparison.sentence, "rows": rows}


def _generating_share(row: Row) -> float:
    return row.outcome.generating_s / row.outcome.gpu_s if row.outcome.gpu_s else 0.0


def _show(comparison: Comparison, price: float) -> None:
    names = ("", "WAIT p50", "p95", "p99", "GPU-HOURS", "COST", "GENERATING", "PEAK", "COLD STARTS")
    columns = [Column(name, justify="right" if name else "left", no_wrap=True) for name in names]
    rows = []
    for row, line in zip(comparison.rows, report(comparison, price)["rows"], strict=True):
        style = "bold green" if row is comparison.chosen else "yellow" if row is comparison.fixed else ""
        cells = [
            row.name + (" *" if row.jobs_per_worker == comparison.rendered else ""),
            *(f"{line[f'wait_p{percent}_s']:,.0f} s" for percent in (50, 95, 99)),
            f"{line['gpu_hours']:,.1f}",
            f"{line['cost']:,.2f}",
            f"{line['generating_share']:.0%}",
            str(line["peak_workers"]),
            str(line["cold_starts"]),
        ]
        rows.append(tuple(f"[{style}]{cell}[/]" if style else cell for cell in cells))
    show_table(columns, rows)
    errors.print("* as rendered; green: the choice; yellow: the smallest fixed pool that will do", style="dim")


def _plot(comparison: Comparison) -> None:
    """Queue and workers under the chosen J, over time."""
    samples = comparison.chosen.outcome.samples
    for title, points in (
        ("jobs waiting", [(each.at_s, float(each.waiting)) for each in samples]),
        ("workers", [(each.at_s, float(each.workers + each.leaving)) for each in samples]),
    ):
        output.print(f"[bold]{title}[/] over time, {comparison.chosen.name}")
        for line in blocks(points, width=max(20, min(100, output.width - 10)), height=5):
            output.print(line, markup=False, highlight=False)


def blocks(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """Lines of a step function of (seconds, value >= 0): the highest value of each column, and an axis in hours."""
    if not points:
        return []
    start_s, end_s = points[0][0], max(points[-1][0], points[0][0] + 1)
    columns = columns_of(points, width)
    top = max(*columns, 1.0) if len(columns) > 1 else max(columns[0], 1.0)
    lines = []
    for row in range(height - 1, -1, -1):
        label = f"{top:>7.0f} ┤" if row == height - 1 else f"{0:>7} ┤" if row == 0 else " " * 8 + "│"
        fills = (round(value / top * height * _EIGHTHS) - row * _EIGHTHS for value in columns)
        lines.append(label + "".join(_BLOCKS[max(0, min(_EIGHTHS, fill))] for fill in fills))
    right = f"{(end_s - start_s) / 3600:.1f} h"
    lines.append(" " * 9 + "0 h" + right.rjust(width - 3))
    return lines


def columns_of(points: Sequence[tuple[float, float]], width: int) -> list[float]:
    """The highest value within each of `width` equal spans of time; a value holds until the next point."""
    start_s, end_s = points[0][0], max(points[-1][0], points[0][0] + 1)
    columns = [0.0] * width
    for (at_s, value), (until_s, _) in zip(points, [*points[1:], (end_s, 0.0)], strict=True):
        first = min(width - 1, int((at_s - start_s) / (end_s - start_s) * width))
        last = min(width - 1, int((until_s - start_s) / (end_s - start_s) * width))
        for column in range(first, last + 1):
            columns[column] = max(columns[column], value)
    return columns


if __name__ == "__main__":
    try:
        typer.run(scale)
    except ConfigurationError as error:
        sys.exit(f"Error: {error.message}")
