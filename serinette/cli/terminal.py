"""What a job and supervised processes look like in a terminal, and as plain lines where there is none.

Songs, tables and JSON go to standard output; everything that comments on them goes to standard error.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from serinette.checkpoints import Fetched
from serinette.job import Job, JobStatus, Stage, now
from serinette.supervisor import Notice, Phase

EXIT_FAILED = 1  # an error, or the song failed
# 2 is Click's own: wrong usage.
EXIT_UNREACHABLE = 3  # no server answers
EXIT_PARTLY = 4  # done, but not all is well: some songs of a batch failed, or a replay has other bits
EXIT_NO_CODE = 125  # a container ended without an exit code of its own
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as a program that SIGPIPE ends

# Without a terminal a line that says the same in other numbers is printed this often at most.
LINE_S = 10.0


class Bar(Progress):
    """One line that moves, and below it what is waited for. Without `moving` lines are printed instead."""

    def __init__(self, title: str, console: Console, *more: ProgressColumn, moving: bool = True) -> None:
        """`more`: columns behind the state."""
        self.title = title
        self.moving = moving and console.is_terminal
        self._waits = ""
        super().__init__(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", table_column=Column(max_width=28, no_wrap=True, overflow="ellipsis")),
            BarColumn(table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            *more,
            console=console,
            expand=console.width < 100,
            refresh_per_second=8,
            disable=not self.moving,
        )

    def move(self, done: float, total: float | None, state: str, waits: str) -> None:
        """To `done` of `total`, or to and fro without one."""
        self._waits = waits
        if not self.task_ids:
            self.add_task(escape(self.title), total=total, state=state)
        self.update(self.task_ids[0], completed=done, total=total, state=state)

    def line(self, words: str, waits: str) -> None:
        """The same as a line."""
        line = f"{self.title}: {words}" + (f" ({waits})" if waits else "")
        self.console.print(line, markup=False, soft_wrap=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What the terminal shows now."""
        yield self.make_tasks_table(self.tasks)
        if self._waits:
            yield Text(f"  {self._waits}", style="dim", overflow="fold")


class _Output(Console):
    """Standard output, where JSON is JSON also if its encoding lacks letters: they are escaped as JSON has it."""

    def print_json(self, json: str | None = None, **options: Any) -> None:  # noqa: ANN401  # rich's
        """Print JSON."""
        whole = (getattr(self.file, "encoding", None) or "utf-8").lower().startswith("utf")
        super().print_json(json, **{"ensure_ascii": not whole, **options})


output = _Output(highlight=False)
errors = Console(stderr=True, highlight=False)

STATUS_STYLES = {
    JobStatus.QUEUED: "yellow",
    JobStatus.RUNNING: "cyan",
    JobStatus.SUCCEEDED: "green",
    JobStatus.FAILED: "red",
    JobStatus.CANCELED: "dim",
}


def program() -> str:
    """How this program was called, as a person would type it again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m serinette.cli"
    found = shutil.which(called.name)
    if found and Path(found).resolve() == called.resolve():
        return called.name
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


def seconds(value_s: float) -> str:
    """A duration as people say it: 3.2 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if value_s < 10:
        return f"{value_s:.1f} s"
    whole = round(value_s)
    for unit_s, unit, below_s, below in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_s:
            return f"{whole // unit_s} {unit} {whole % unit_s // below_s} {below}"
    return f"{whole} s"


def age(at: datetime) -> str:
    """How long ago, in one unit."""
    words = seconds(max(0.0, (now() - at).total_seconds())).split(" ")
    return f"{words[0]} {words[1]}"


def state(job: Job) -> str:
    """Where a job is: `queued, 3rd in its lane`, `denoising, step 4 of 8`."""
    if job.status is JobStatus.QUEUED:
        return "queued" if job.position is None else f"queued, {_ordinal(job.position)} in its lane"
    if job.status is not JobStatus.RUNNING or job.progress is None:
        return job.status
    words = job.progress.stage.replace("_", " ")
    if job.progress.stage is Stage.DENOISING and job.progress.steps:
        return f"{words}, step {job.progress.step or 0} of {job.progress.steps}"
    return words


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def print_submitted(job: Job, *, as_json: bool) -> None:
    """Print the id of a job that is not waited for."""
    if as_json:
        output.print_json(job.model_dump_json())
    else:
        output.print(job.id)


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of markup: aligned in a terminal, between tabs and without headings anywhere else."""
    if not output.is_terminal:
        for row in rows:
            typer.echo("\t".join(Text.from_markup(cell).plain for cell in row))  # rich would make spaces of tabs
        return
    flexible = any(column.ratio for column in columns)
    table = Table(*columns, box=None, pad_edge=False, header_style="dim", expand=flexible)
    for row in rows:
        table.add_row(*row)
    output.print(table)


class JobView(Bar):
    """Shows one job while it is waited for: a bar that moves, or a line whenever its state changes, and now and then
    where only a number does.
    """

    def __init__(self, title: str, *, moving: bool = True) -> None:
        """`moving`: as a bar, where there is a terminal."""
        super().__init__(title, errors, TimeElapsedColumn(), moving=moving)
        self._shown: tuple[str, str | None, str] = ("", None, "")
        self._next_line_s = 0.0

    def show(self, job: Job) -> None:
        """Show the job as it is now."""
        words = state(job)
        waits = f"waits for {job.waiting_for}" if job.waiting_for else ""
        if not self.moving:
            stage = words.partition(",")[0]
            seen, at_s = (stage, job.waiting_code, waits), time.monotonic()
            if seen[:2] != self._shown[:2] or (seen != self._shown and at_s >= self._next_line_s):
                self.line(stage, waits)
                self._shown, self._next_line_s = seen, at_s + LINE_S
            return
        if job.eta_s is not None and not job.status.ended:
            words += f", {seconds(job.eta_s)} left"
        done = 1.0 if job.status.ended else job.progress.fraction if job.progress else 0.0
        self.move(done, None if job.status is JobStatus.QUEUED else 1.0, words, waits)


class _Starting(Progress):
    """A line of what is waited for, and below it a bar in bytes while something is downloaded."""

    def __init__(self) -> None:
        self._spinner = Spinner("dots", style="status.spinner")
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
        )

    def show(self, words: str, fetched: Fetched | None) -> None:
        """Show this now."""
        self._spinner.update(text=words)
        if fetched is None:
            for task_id in self.task_ids:
                self.remove_task(task_id)
        elif not self.task_ids:
            self.add_task("  checkpoint", total=fetched.size_bytes, completed=fetched.done_bytes)
        else:
            self.update(self.task_ids[0], completed=fetched.done_bytes, total=fetched.size_bytes)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What the terminal shows now."""
        yield self._spinner
        if self.tasks:
            yield self.make_tasks_table(self.tasks)


class ProcessView:
    """Shows the processes of `serinette up` as they start, die and stop."""

    def __init__(self) -> None:
        self._waiting: dict[str, Notice] = {}
        self._live: _Starting | None = None

    def show(self, notice: Notice) -> None:
        """Show one notice of the supervisor."""
        if notice.phase is Phase.WAITING:
            self._wait(notice)
            return
        if notice.phase is Phase.STOPPING:
            self._waiting = {notice.name: replace(notice, detail="stopping")}
            self._update()
            return
        self._waiting.pop(notice.name, None)
        self._update()
        for line in _lines(notice):
            errors.print(line, soft_wrap=True)

    def close(self) -> None:
        """Take the moving line away."""
        self._waiting.clear()
        self._update()

    def _wait(self, notice: Notice) -> None:
        before = self._waiting.get(notice.name)
        self._waiting[notice.name] = notice
        self._update()
        if not errors.is_terminal and (before is None or _step(before) != _step(notice)):
            came = f", {notice.fetched}" if notice.fetched else ""
            errors.print(f"  {notice.name}: {notice.detail}{came}", markup=False, soft_wrap=True)

    def _update(self) -> None:
        if not errors.is_terminal:
            return
        if not self._waiting:
            if self._live:
                self._live.stop()
                self._live = None
            return
        if self._live is None:
            self._live = _Starting()
            self._live.start()
        waiting = self._waiting.values()
        words = "  ".join(f"{notice.name}: {escape(notice.detail)}" for notice in waiting)
        self._live.show(words, next((notice.fetched for notice in waiting if notice.fetched), None))


def _step(notice: Notice) -> tuple[str, int]:
    """What has a line of its own where nothing moves: other words, and each tenth of a download."""
    return notice.detail, 10 * notice.fetched.done_bytes // notice.fetched.size_bytes if notice.fetched else 0


def _lines(notice: Notice) -> Iterator[str]:
    name = f"{notice.name:<12}"
    match notice.phase:
        case Phase.READY:
            yield f"  [green]✓[/] {name} ready after {notice.detail}"
        case Phase.DIED:
            yield f"  [red]✗[/] {name} {escape(notice.detail)}. Its last lines:"
            yield from (f"      [dim]{escape(line)}[/]" for line in notice.last_lines)
        case Phase.RESTARTED:
            yield f"  [yellow]↻[/] {name} started again"
        case Phase.WAITING | Phase.STOPPING | Phase.LATE:
            pass
