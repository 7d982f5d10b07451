"""How the outcome of a command is printed: as tables and lines, or as JSON."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconvert.steps.outcome import Outcome


def show_whole(
    outcome: Outcome, path: Path, as_json: bool, quiet: bool, options: Sequence[str] = ()
) -> None:
    """Shows an outcome as `show` does, to a reader who may have read enough."""
    try:
        show(outcome, path, as_json, quiet, options)
    except BrokenPipeError:  # `qconvert … | head`: the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(
    outcome: Outcome, path: Path, as_json: bool, quiet: bool, options: Sequence[str] = ()
) -> None:
    """Prints an outcome; `options` are those that the next command needs too."""
    from qconvert.console import Console

    console = Console(quiet)
    if as_json:
        console.raw(outcome.to_json())
    else:
        console.tables(outcome.tables)
        for line in outcome.lines:
            console.result(line)
        for file in outcome.files:
            console.result(f"wrote {file}")
        if outcome.following:
            command = ["qconvert", outcome.following, str(path), *options]
            console.result(f"next: {shlex.join(command)}")
    for line in outcome.budgets_missed:
        console.error("budget missed", line)
