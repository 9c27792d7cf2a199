"""`serinette queue`, `workers` and `usage`: what waits, what the workers do, and what a tenant has used."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column

from serinette.cli.options import ApiKey, AsJson, Server, connect
from serinette.cli.terminal import age, errors, output, seconds, show_table
from serinette.client import DEFAULT_URL
from serinette.client.answers import Worker, WorkerPool
from serinette.job import now


def queue(as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show what waits, and the workers."""
    with connect(server, api_key) as client:
        shown = client.queue()
    if as_json:
        output.print_json(shown.model_dump_json())
        return
    for pool in shown.pools:
        workers = ", ".join(_worker(worker) for worker in pool.workers) or "none"
        errors.print(f"Pool [bold]{escape(pool.name)}[/]: {pool.running} running; workers: {workers}")
    lanes = [
        (escape(pool.name), lane.lane, str(lane.waiting), _or_unknown(lane.eta_s))
        for pool in shown.pools
        for lane in pool.lanes
    ]
    columns = (
        Column("POOL", no_wrap=True),
        Column("LANE"),
        Column("WAITING", justify="right"),
        Column("A SONG NOW TAKES", justify="right"),
    )
    show_table(columns, lanes)


def workers(as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show the workers, and for pools without one, what holds them."""
    with connect(server, api_key) as client:
        shown = client.workers()
    if as_json:
        output.print_json(shown.model_dump_json())
        return
    for pool in shown.pools:
        errors.print(_pool(pool), soft_wrap=True)
    columns = (
        Column("POOL", no_wrap=True),
        Column("WORKER", no_wrap=True, overflow="ellipsis", ratio=2),
        Column("STAGE", no_wrap=True),
        Column("BUSY", no_wrap=True, justify="right"),
        Column("UP", no_wrap=True, justify="right"),
        Column("MODEL", no_wrap=True, overflow="ellipsis", ratio=2),
        Column("DEVICE", no_wrap=True, overflow="ellipsis", ratio=1),
    )
    show_table(columns, [_cells(pool.name, worker) for pool in shown.pools for worker in pool.workers])


def _pool(pool: WorkerPool) -> str:
    """One pool in a sentence, as markup."""
    bounds = "" if pool.max_workers is None else f" of {pool.min_workers or 0} to {pool.max_workers}"
    workers = f"{len(pool.workers)} {'worker' if len(pool.workers) == 1 else 'workers'}"
    words = f"{workers}{bounds}, {pool.waiting} waiting"
    held = "".join(f"\n  [yellow]{escape(why)}[/]" for why in pool.brake)
    held += f"\n  waits for {escape(pool.waiting_for)}" if pool.waiting_for else ""
    return f"Pool [bold]{escape(pool.name)}[/]: {words}{held}"


def _cells(pool: str, worker: Worker) -> tuple[str, ...]:
    since = age(worker.started_at) if worker.started_at else ""
    stage = worker.stage + (f" ({worker.message})" if worker.message else "")
    cells = (pool, worker.name, stage, f"{worker.busy_slots}/{worker.slots}", since, worker.model or "", worker.device)
    return tuple(escape(cell or "") for cell in cells)


def _worker(worker: Worker) -> str:
    """One worker in words."""
    model = worker.model or "no model yet"
    words = f"{worker.name} {worker.stage}, {worker.busy_slots} of {worker.slots} slots busy, {model}"
    return escape(words + (f" ({worker.message})" if worker.message else ""))


def _or_unknown(value_s: float | None) -> str:
    return "unknown" if value_s is None else seconds(value_s)


def usage(
    days: Annotated[int, typer.Option("--days", "-n", min=1, max=400, help="So many days until today, UTC.")] = 30,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Show GPU-seconds, waits, bytes and jobs by day."""
    today = now().date()
    with connect(server, api_key) as client:
        shown = client.usage(today - timedelta(days=days - 1), today).model_dump(mode="json")
    if as_json:
        output.print_json(json.dumps(shown))
        return
    rows = [(day["day"], *_sums(day)) for day in shown["days"] if day["jobs"]]
    names = ("DAY (UTC)", "SUCCEEDED", "FAILED", "CANCELED", "GPU", "WAITED", "BYTES")
    columns = [Column(name, justify="left" if name.startswith("DAY") else "right", no_wrap=True) for name in names]
    show_table(columns, [*rows, ("total", *_sums(shown["total"]))])
    if limits := ", ".join(f"{name} {value}" for name, value in shown["limits"].items() if value is not None):
        errors.print(f"Tenant {shown['tenant']} may use: {limits}", style="dim", markup=False)


def _sums(sums: dict[str, float]) -> tuple[str, ...]:
    counts = [f"{sums[name]:,}" for name in ("succeeded", "failed", "canceled")]
    return (*counts, seconds(sums["gpu_s"]), seconds(sums["queue_s"]), f"{sums['size_bytes']:,}")
