"""The only importer of rich: tables on stdout, progress and talk on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable

if TYPE_CHECKING:  # a message about a qconfig must not wait for torch
    from qconvert.reports.tables import Table


class Console:
    """Prints for people. `quiet` leaves out progress and talk; results and errors stay."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        # Lines that are cut at 80 columns are of no use in a log file.
        width = None if sys.stdout.isatty() else 110
        self._out = RichConsole(width=width, highlight=False, soft_wrap=False)
        self._err = RichConsole(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """A line of talk."""
        if not self._quiet:
            self._err.print(escape(text), soft_wrap=True)

    def error(self, title: str, text: str) -> None:
        """An error, also when quiet."""
        self._err.print(f"[bold red]error[/] ({title})", soft_wrap=True)
        self._err.print(escape(text), soft_wrap=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with rate and remaining time; nothing when stderr is no terminal."""
        if self._quiet or not self._err.is_terminal:
            self.say(f"{title} …")
            yield lambda done, total: None
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TaskProgressColumn(show_speed=True), TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(title, total=None, rate="")

            def update(done: int, total: int) -> None:
                speed = bar.tasks[0].speed
                rate = f"{speed:,.0f} images/s" if speed else ""
                bar.update(task, completed=done, total=total, rate=rate)

            yield update

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """A spinner; one line when stderr is no terminal."""
        if self._quiet or not self._err.is_terminal:
            self.say(f"{title} …")
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            bar.add_task(title, total=None)
            yield

    def tables(self, tables: Sequence[Table]) -> None:
        """Results, one table below the other."""
        for table in tables:
            drawn = RichTable(
                title=escape(table.title), title_justify="left", title_style="bold",
                caption=escape(table.note) or None, caption_justify="left",
            )  # fmt: skip
            for i, column in enumerate(table.columns):
                drawn.add_column(
                    escape(column),
                    justify="right" if i and not table.words else "left",
                    overflow="fold",
                )
            for row in table.rows:
                drawn.add_row(*(escape(cell) for cell in row))
            self._out.print(drawn)

    def result(self, text: str = "") -> None:
        """A line of the result."""
        self._out.print(escape(text), soft_wrap=True)

    def raw(self, text: str) -> None:
        """Machine-readable text, exactly."""
        sys.stdout.write(text + "\n")
