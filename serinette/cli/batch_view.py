"""What a batch looks like while it is sung, and at its end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from serinette.cli.terminal import errors, seconds, show_table
from serinette.client import Batch, BatchLine

STYLES = {
    "in_progress": "cyan",
    "paused": "yellow",
    "canceling": "yellow",
    "finalizing": "cyan",
    "completed": "green",
    "canceled": "dim",
}
# Without a terminal a line is told this often at most.
_LINE_S = 10.0
# So many failures are told of in words.
_REASONS = 10


def counts_of(batch: Batch) -> str:
    """`412 of 600 sung, 3 failed, 2 running`."""
    counts = batch.request_counts
    parts = [f"{counts.completed:,} of {counts.total:,} sung"]
    told = (("failed", counts.failed), ("canceled", counts.canceled), ("running", counts.running))
    return ", ".join(parts + [f"{count:,} {word}" for word, count in told if count])


def left_s(first: tuple[float, int], now: float, ended: int, total: int) -> float | None:
    """Seconds until the last line ends if it goes on as since `first` (a time, and how many had ended then)."""
    began, had = first
    if ended <= had or now <= began:
        return None
    return (total - ended) * (now - began) / (ended - had)


class BatchView:
    """A bar that moves, or a line now and then."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._waiting_for = ""
        self._first: tuple[float, int] | None = None
        self._told = ("", 0.0)
        self._task: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", table_column=Column(max_width=24, no_wrap=True, overflow="ellipsis")),
            BarColumn(table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=errors,
            expand=errors.width < 100,
        )
        self._live = Live(console=errors, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> Self:
        if errors.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if errors.is_terminal:
            self._live.stop()

    def show(self, batch: Batch) -> None:
        """Show the batch as it is now."""
        counts, now = batch.request_counts, time.monotonic()
        ended = counts.completed + counts.failed + counts.canceled
        self._first = self._first or (now, ended)
        told = ("" if batch.status == "in_progress" else f"{batch.status}, ") + counts_of(batch)
        self._waiting_for = f"waits for {batch.waiting_for}" if batch.waiting_for else ""
        if not errors.is_terminal:
            self._tell_line(told, now, last=batch.ended)
            return
        eta_s = left_s(self._first, now, ended, counts.total)
        told += f", {seconds(eta_s)} left" if eta_s and not batch.ended else ""
        if self._task is None:
            self._task = self._progress.add_task(escape(self._title), total=counts.total, state=told)
        self._progress.update(self._task, completed=ended, state=told)

    def _tell_line(self, told: str, now: float, *, last: bool) -> None:
        line, at = self._told
        if (now - at >= _LINE_S or last) and told != line:
            waits = f" ({self._waiting_for})" if self._waiting_for else ""
            errors.print(f"{self._title}: {told}{waits}", markup=False, soft_wrap=True)
            self._told = (told, now)

    def render(self) -> Table:
        """What the terminal shows now."""
        table = Table.grid(expand=True)
        table.add_row(self._progress)
        if self._waiting_for:
            table.add_row(Text(f"  {self._waiting_for}", style="dim", overflow="fold"))
        return table


def show_end(lines: list[BatchLine], files: int, size_bytes: int, batch: Batch) -> None:
    """The table at the end: how many ended how; then why some were not sung."""
    counts = batch.request_counts
    columns = [Column(name, justify="right") for name in ("SUNG", "FAILED", "CANCELED", "FILES", "BYTES")]
    row = (counts.completed, counts.failed, counts.canceled, files, size_bytes)
    show_table(columns, [tuple(f"{value:,}" for value in row)])
    for line in [line for line in lines if line.error][:_REASONS]:
        name = f" ({line.custom_id})" if line.custom_id else ""
        words = f"  line {line.line}{name}: {line.error.message if line.error else ''}"
        errors.print(words, style="red", markup=False, soft_wrap=True)
    if len(lines) > _REASONS:
        errors.print(f"  and {len(lines) - _REASONS:,} more, in errors.jsonl", style="dim")
