"""The errors that a user can cause: what went wrong, where, how to fix it, and the exit code.

Inner code raises the small fact; a step or the command adds the place. Only `cli.py` turns one
of these into a message and an exit code. Anything else that is raised is a bug and shows its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class QConvertError(Exception):
    """A mistake that the user can put right.

    `facts` holds one sentence for each thing that is wrong (all of them at once), `where` the
    file or folder they are about, `fix` what to do.
    """

    exit_code = 5
    title = "cannot convert"

    def __init__(
        self, facts: str | Sequence[str], *, where: str | None = None, fix: str | None = None
    ) -> None:
        self.facts = [facts] if isinstance(facts, str) else list(facts)
        self.where = where
        self.fix = fix
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        """Every fact with its place, then the fix."""
        prefix = f"{self.where}: " if self.where else ""
        lines = [prefix + fact for fact in self.facts]
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)


class QConfigError(QConvertError):
    """The command line or the qconfig is wrong."""

    exit_code = 2
    title = "qconfig"


class ModelError(QConvertError):
    """The model source or its checkpoint cannot be used."""

    exit_code = 3
    title = "model"


class ImageError(QConvertError):
    """The images or their labels cannot be used."""

    exit_code = 4
    title = "images"


class ConversionError(QConvertError):
    """The model cannot be converted, or the result failed its verification."""

    exit_code = 5
    title = "conversion"


# A bug of qconvert: its traceback is shown. Not 1, which Python would give it.
BUG = 70
# Exit code 1 is not an error: the work is done, and a budget of the qconfig is missed.
BUDGETS_MISSED = 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known name, or an empty string.

    >>> did_you_mean("histgram", ["minmax", "histogram"])
    "; did you mean 'histogram'?"
    >>> did_you_mean("zzz", ["minmax"])
    ''
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
