"""`serinette batch`: many songs from one file, and batches that were begun before."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Column

from serinette.cli.options import AsJson, checked, connect, pair_of, within
from serinette.cli.terminal import EXIT_PARTLY, LINE_S, Bar, age, errors, output, program, seconds, show_table
from serinette.client import Batch, BatchLine, BatchOptions, Client, Fetched
from serinette.errors import ConfigurationError, NotFound, RequestError
from serinette.spec import RecordModel

app = typer.Typer(help="Many songs at once: `run` submits them from a file and fetches them.")

BatchId = Annotated[str, typer.Argument(metavar="BATCH_ID", show_default=False)]

STYLES = {
    "in_progress": "cyan",
    "paused": "yellow",
    "canceling": "yellow",
    "finalizing": "cyan",
    "completed": "green",
    "canceled": "dim",
}
# So many failures are explained.
_REASONS = 10
# In the directory of the songs.
STATE_FILE = ".serinette-batch.json"


def counts_of(batch: Batch) -> str:
    """`412 of 600 generated, 3 failed, 2 running`."""
    counts = batch.request_counts
    parts = [f"{counts.completed:,} of {counts.total:,} generated"]
    others = (("failed", counts.failed), ("canceled", counts.canceled), ("running", counts.running))
    return ", ".join(parts + [f"{count:,} {word}" for word, count in others if count])


def left_s(first: tuple[float, int], now: float, ended: int, total: int) -> float | None:
    """Seconds until the last line ends if it goes on as since `first` (a time, and how many had ended then)."""
    began, had = first
    if ended <= had or now <= began:
        return None
    return (total - ended) * (now - began) / (ended - had)


class BatchView(Bar):
    """A bar that moves, or a line now and then."""

    def __init__(self, title: str) -> None:
        super().__init__(title, errors)
        self._first: tuple[float, int] | None = None
        self._shown = ("", 0.0)

    def show(self, batch: Batch) -> None:
        """Show the batch as it is now."""
        counts, now = batch.request_counts, time.monotonic()
        ended = counts.completed + counts.failed + counts.canceled
        self._first = self._first or (now, ended)
        words = ("" if batch.status == "in_progress" else f"{batch.status}, ") + counts_of(batch)
        waits = f"waits for {batch.waiting_for}" if batch.waiting_for else ""
        if not errors.is_terminal:
            shown, at = self._shown
            if (now - at >= LINE_S or batch.ended) and words != shown:
                self.line(words, waits)
                self._shown = (words, now)
            return
        eta_s = left_s(self._first, now, ended, counts.total)
        words += f", {seconds(eta_s)} left" if eta_s and not batch.ended else ""
        self.move(ended, counts.total, words, waits)


def show_end(lines: list[BatchLine], files: int, size_bytes: int, batch: Batch) -> None:
    """The table at the end: how many ended how; then why some were not generated."""
    counts = batch.request_counts
    columns = [Column(name, justify="right") for name in ("SUCCEEDED", "FAILED", "CANCELED", "FILES", "BYTES")]
    row = (counts.completed, counts.failed, counts.canceled, files, size_bytes)
    show_table(columns, [tuple(f"{value:,}" for value in row)])
    for line in [line for line in lines if line.error][:_REASONS]:
        name = f" ({line.custom_id})" if line.custom_id else ""
        words = f"  line {line.line}{name}: {line.error.message if line.error else ''}"
        errors.print(words, style="red", markup=False, soft_wrap=True)
    if len(lines) > _REASONS:
        errors.print(f"  and {len(lines) - _REASONS:,} more, in errors.jsonl", style="dim")


class RunState(RecordModel):
    """What is remembered in the directory between two runs."""

    key: str  # the same batch, however often it is sent
    sha256: str  # of the prompts
    server: str
    batch_id: str | None = None


def run_to_end(
    client: Client, prompts: Path, directory: Path, options: BatchOptions, *, retry: bool, as_json: bool
) -> None:
    """Begin or go on; ends with exit status 4 if songs are missing at the end.

    Raises:
        InvalidBatch: a line is wrong, nothing was begun.
        ConfigurationError: the directory holds the songs of something else.
    """
    batch = _created_or_resumed(client, prompts, directory, options)
    if retry and batch.ended and batch.request_counts.completed < batch.request_counts.total:
        batch = client.batches.retry(batch.id)
    missing: list[BatchLine] = []
    files = size_bytes = 0
    try:
        with BatchView(batch.name or batch.id) as view:
            for update in client.batches.results(batch.id, directory):
                if isinstance(update, Fetched):
                    files, size_bytes = files + len(update.files), size_bytes + _size(update)
                    missing += [] if update.files else [update.line]
                else:
                    batch = update
                    view.show(batch)
    except KeyboardInterrupt:
        errors.print(
            f"The batch goes on. To fetch the rest: the same command again, or {program()} batch show {batch.id}"
        )
        errors.print(f"                   To stop it:        {program()} batch cancel {batch.id}", soft_wrap=True)
        raise
    for name in ("output.jsonl", "errors.jsonl"):
        client.batches.download(batch.id, name, directory / name)
    if as_json:
        ended = {**batch.model_dump(mode="json"), "files": files, "directory": str(directory)}
        output.print_json(data=ended)
    else:
        show_end(missing, files, size_bytes, batch)
    if batch.request_counts.completed < batch.request_counts.total:
        raise typer.Exit(EXIT_PARTLY)


def _created_or_resumed(client: Client, prompts: Path, directory: Path, options: BatchOptions) -> Batch:
    """The batch that was begun in this directory, or a new one. Saved before it is sent, so that a run that
    dies in between leads to the same one.
    """
    sha256 = hashlib.sha256(prompts.read_bytes()).hexdigest()
    path = directory / STATE_FILE
    state = _saved_state(path) or RunState(key=uuid.uuid4().hex, sha256=sha256, server=client.url)
    if (state.sha256, state.server) != (sha256, client.url):
        what = "other prompts" if state.sha256 != sha256 else f"the server {state.server}"
        raise ConfigurationError(f"{directory} holds the songs of {what}: give another --output, or erase {path}")
    if state.batch_id is not None:
        try:
            return client.batches.get(state.batch_id)
        except NotFound as error:
            raise ConfigurationError(f"{error.message}: erase {path} to generate it again") from error
    made_here = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(state.model_dump_json())
    try:
        batch = client.batches.create(prompts, options, idempotency_key=state.key)
    except RequestError:  # nothing was begun; after any other error the next run asks again, under the same key
        path.unlink()
        if made_here:
            directory.rmdir()
        raise
    path.write_text(state.model_copy(update={"batch_id": batch.id}).model_dump_json())
    errors.print(f"Batch {batch.id}: {batch.request_counts.total:,} songs", style="dim", soft_wrap=True)
    return batch


def _saved_state(path: Path) -> RunState | None:
    try:
        return RunState.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{path} cannot be read: erase it to begin again") from error


def _size(fetched: Fetched) -> int:
    return sum(song.size_bytes for song in fetched.line.artifacts)


@app.command()
@within(connect)
def run(
    client: Client,
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
) -> None:
    """Generate a file of prompts into a directory. Run it again after whatever happened, and it goes on where it was.

    Exit status 4: it is done, and some were not generated; errors.jsonl in the directory says why.
    """
    labels = dict(map(pair_of, label or ()))
    given = {"name": name or prompts.stem[:63], "labels": labels, "timeout_s": timeout_s, "webhook": webhook}
    options = checked(BatchOptions, given)
    run_to_end(client, prompts, directory, options, retry=retry, as_json=as_json)


@app.command("ls")
@within(connect)
def list_(
    client: Client,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest batches."""
    batches = client.batches.list(limit)
    if as_json:
        output.print_json(data=[batch.model_dump(mode="json") for batch in batches])
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


# Commands that take a batch's id and print the batch: the call of each, and its help.
_CALLS = {
    "show": ("get", "Show one batch."),
    "pause": ("pause", "Release no more songs; what was released goes on."),
    "resume": ("resume", "Go on with a paused batch."),
    "cancel": ("cancel", "Cancel all that is left of a batch; what was generated is kept."),
    "retry": ("retry", "Retry what an ended batch did not generate, with the same seeds."),
}


def _command(call: str) -> Callable[..., None]:
    @within(connect)
    def command(client: Client, batch_id: BatchId, as_json: AsJson = False) -> None:
        _print(methodcaller(call, batch_id)(client.batches), as_json=as_json)

    return command


for _name, (_call, _help) in _CALLS.items():
    app.command(_name, help=_help)(_command(_call))


def _print(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        output.print_json(batch.model_dump_json())
        return
    output.print(f"{batch.status}: {counts_of(batch)}", markup=False, soft_wrap=True)
    if batch.waiting_for:
        output.print(f"  waits for {batch.waiting_for}", markup=False, soft_wrap=True)
