"""A bar that moves in a terminal, with what is waited for below it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text


class Bar:
    """Shows nothing where the console is no terminal: whoever moves it tells lines there instead."""

    def __init__(self, title: str, console: Console, *more: ProgressColumn) -> None:
        """`more`: columns behind the state."""
        self._title = title
        self._console = console
        self._moving = console.is_terminal
        self._waits = ""
        self._task: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", table_column=Column(max_width=28, no_wrap=True, overflow="ellipsis")),
            BarColumn(table_column=Column(ratio=1, min_width=8)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            *more,
            console=console,
            expand=console.width < 100,
        )
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._moving:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moving:
            self._live.stop()

    def move(self, done: float, total: float | None, state: str, waits: str) -> None:
        """To `done` of `total`, or to and fro without one."""
        self._waits = waits
        if self._task is None:
            self._task = self._progress.add_task(escape(self._title), total=total, state=state)
        self._progress.update(self._task, completed=done, total=total, state=state)

    def line(self, told: str, waits: str) -> None:
        """The same as a line."""
        words = f"{self._title}: {told}" + (f" ({waits})" if waits else "")
        self._console.print(words, markup=False, soft_wrap=True)

    def render(self) -> Table:
        """What the terminal shows now."""
        table = Table.grid(expand=True)
        table.add_row(self._progress)
        if self._waits:
            table.add_row(Text(f"  {self._waits}", style="dim", overflow="fold"))
        return table
