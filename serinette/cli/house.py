"""`serinette queue` and `workers`: what waits, and who sings."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Column

from serinette.cli.options import ApiKey, AsJson, Server, connect
from serinette.cli.terminal import errors, output, seconds, show_table
from serinette.client import DEFAULT_URL
from serinette.client.answers import Worker


def queue(as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show what waits and who sings."""
    with connect(server, api_key) as client:
        told = client.queue()
    if as_json:
        output.print_json(told.model_dump_json())
        return
    for pool in told.pools:
        workers = ", ".join(_worker(worker) for worker in pool.workers) or "none"
        errors.print(f"Pool [bold]{escape(pool.name)}[/]: {pool.running} running; workers: {workers}")
    lanes = [
        (escape(pool.name), lane.lane, str(lane.waiting), _or_unknown(lane.eta_s))
        for pool in told.pools
        for lane in pool.lanes
    ]
    columns = (
        Column("POOL", no_wrap=True),
        Column("LANE"),
        Column("WAITING", justify="right"),
        Column("A SONG NOW TAKES", justify="right"),
    )
    show_table(columns, lanes)


def _worker(worker: Worker) -> str:
    """One worker in words."""
    model = worker.model or "no model yet"
    words = f"{worker.name} {worker.stage}, {worker.busy_slots} of {worker.slots} slots busy, {model}"
    return escape(words + (f" ({worker.message})" if worker.message else ""))


def _or_unknown(value_s: float | None) -> str:
    return "unknown" if value_s is None else seconds(value_s)
