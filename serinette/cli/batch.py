"""`serinette batch`: many songs from one file, and batches that were begun before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column

from serinette.cli.batch_run import Errand, run_errand
from serinette.cli.batch_view import STYLES, counts_of
from serinette.cli.options import ApiKey, AsJson, Server, connect, label_of
from serinette.cli.terminal import age, output, show_table
from serinette.client import DEFAULT_URL, Batch, BatchOptions

app = typer.Typer(help="Many songs at once: `run` orders them from a file and fetches them.")

BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID", show_default=False)]


@app.command()
def run(
    prompts: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="JSON Lines, a spec on each: prompt, duration_s, custom_id..."
        ),
    ],
    directory: Annotated[Path, typer.Option("--output", "-o", file_okay=False, help="Where the songs go.")],
    name: Annotated[str | None, typer.Option(help="For lists; else the file's.", show_default=False)] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for every job; may be repeated.")] = None,
    timeout_s: Annotated[int | None, typer.Option("--timeout", help="Longest run of a song, seconds.")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL that gets a signed POST when it ends.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="If it has ended, retry what was not generated.")] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """Generate a file of prompts into a directory. Run it again after whatever happened, and it goes on where it was.

    Exit status 4: it is done, and some were not generated; errors.jsonl in the directory says why.
    """
    labels = dict(label_of(text) for text in label or [])
    options = BatchOptions(name or prompts.stem[:63], labels, timeout_s, webhook)
    with connect(server, api_key) as client:
        run_errand(client, Errand(prompts, directory, options), retry=retry, as_json=as_json)


@app.command("ls")
def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
) -> None:
    """List the newest batches."""
    with connect(server, api_key) as client:
        batches = client.batches.list(limit)
    if as_json:
        output.print_json(json.dumps([batch.model_dump(mode="json") for batch in batches]))
        return
    columns = (
        Column("BATCH", width=38, overflow="fold"),
        Column("STATUS", width=11),
        Column("AGE", width=6, justify="right"),
        Column("SUCCEEDED", justify="right", no_wrap=True),
        Column("NAME", no_wrap=True, overflow="ellipsis", ratio=1),
    )
    show_table(columns, [_row(batch) for batch in batches])


def _row(batch: Batch) -> tuple[str, ...]:
    counts = batch.request_counts
    status = f"[{STYLES.get(batch.status, 'default')}]{escape(batch.status)}[/]"
    return batch.id, status, age(batch.created_at), f"{counts.completed:,}/{counts.total:,}", escape(batch.name or "")


@app.command()
def show(batch_id: BatchId, as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Show one batch."""
    with connect(server, api_key) as client:
        _tell(client.batches.get(batch_id), as_json=as_json)


@app.command()
def pause(batch_id: BatchId, as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Release no more songs; what was released goes on."""
    with connect(server, api_key) as client:
        _tell(client.batches.pause(batch_id), as_json=as_json)


@app.command()
def resume(batch_id: BatchId, as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Go on with a paused batch."""
    with connect(server, api_key) as client:
        _tell(client.batches.resume(batch_id), as_json=as_json)


@app.command()
def cancel(batch_id: BatchId, as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Cancel all that is left of a batch; what was generated is kept."""
    with connect(server, api_key) as client:
        _tell(client.batches.cancel(batch_id), as_json=as_json)


@app.command()
def retry(batch_id: BatchId, as_json: AsJson = False, server: Server = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Retry what an ended batch did not generate, with the same seeds."""
    with connect(server, api_key) as client:
        _tell(client.batches.retry(batch_id), as_json=as_json)


def _tell(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        output.print_json(batch.model_dump_json())
        return
    output.print(f"{batch.status}: {counts_of(batch)}", markup=False, soft_wrap=True)
    if batch.waiting_for:
        output.print(f"  waits for {batch.waiting_for}", markup=False, soft_wrap=True)
