"""`serinette usage`: what the holder of a key has used."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Column

from serinette.cli.options import ApiKey, AsJson, Server, connect
from serinette.cli.terminal import errors, output, seconds, show_table
from serinette.client import DEFAULT_URL
from serinette.job import now


def usage(
    days: Annotated[int, typer.Option("--days", "-n", min=1, max=400, help="So many days until today, UTC.")] = 30,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show GPU-seconds, waits, bytes and jobs by day."""
    today = now().date()
    with connect(server, api_key) as client:
        told = client.usage(today - timedelta(days=days - 1), today).model_dump(mode="json")
    if as_json:
        output.print_json(json.dumps(told))
        return
    rows = [(day["day"], *_row(day)) for day in told["days"] if day["jobs"]]
    names = ("DAY (UTC)", "SUCCEEDED", "FAILED", "CANCELED", "GPU", "WAITED", "BYTES")
    columns = [Column(name, justify="left" if name.startswith("DAY") else "right", no_wrap=True) for name in names]
    show_table(columns, [*rows, ("total", *_row(told["total"]))])
    if limits := ", ".join(f"{name} {value}" for name, value in told["limits"].items() if value is not None):
        errors.print(f"Tenant {told['tenant']} may use: {limits}", style="dim", markup=False)


def _row(sums: dict[str, float]) -> tuple[str, ...]:
    counts = [f"{sums[name]:,}" for name in ("succeeded", "failed", "canceled")]
    return (*counts, seconds(sums["gpu_s"]), seconds(sums["queue_s"]), f"{sums['size_bytes']:,}")
