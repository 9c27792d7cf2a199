"""What a batch looks like while it is sung, and at its end."""

from __future__ import annotations

import time

from rich.table import Column

from serinette.cli.bar import Bar
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
    """`412 of 600 generated, 3 failed, 2 running`."""
    counts = batch.request_counts
    parts = [f"{counts.completed:,} of {counts.total:,} generated"]
    told = (("failed", counts.failed), ("canceled", counts.canceled), ("running", counts.running))
    return ", ".join(parts + [f"{count:,} {word}" for word, count in told if count])


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
        self._told = ("", 0.0)

    def show(self, batch: Batch) -> None:
        """Show the batch as it is now."""
        counts, now = batch.request_counts, time.monotonic()
        ended = counts.completed + counts.failed + counts.canceled
        self._first = self._first or (now, ended)
        told = ("" if batch.status == "in_progress" else f"{batch.status}, ") + counts_of(batch)
        waits = f"waits for {batch.waiting_for}" if batch.waiting_for else ""
        if not errors.is_terminal:
            shown, at = self._told
            if (now - at >= _LINE_S or batch.ended) and told != shown:
                self.line(told, waits)
                self._told = (told, now)
            return
        eta_s = left_s(self._first, now, ended, counts.total)
        told += f", {seconds(eta_s)} left" if eta_s and not batch.ended else ""
        self.move(ended, counts.total, told, waits)


def show_end(lines: list[BatchLine], files: int, size_bytes: int, batch: Batch) -> None:
    """The table at the end: how many ended how; then why some were not sung."""
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
