"""What `tune` tried, as one record (`tune.json`), and how it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from qconvert.measurement.statistics import Interval
from qconvert.qconfig import OF_ACCURACY, BudgetSection
from qconvert.records import Record
from qconvert.reports.record import Budget, judged
from qconvert.reports.tables import Table
from qconvert.workspace import digest

# What budgets of accuracy are about.
ACCURACY_WORDS = {
    "max_accuracy_drop": "accuracy lost",
    "max_automation_drop": "automation lost",
    "min_agreement": "agreement",
    "min_cosine": "cosine",
}
# Names in a line or a cell.
_NAMES_SHOWN = 3


class Settings(Record):
    """What a trial has on top of the user's qconfig: the switches of `recovery`, and operators that
    are in float, too."""

    recovery: dict[str, Literal["on", "off", "auto"]]
    in_float: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Equal for equal settings."""
        return digest(self.model_dump(mode="json"))

    @property
    def line(self) -> str:
        """What is tried, in words.

        >>> Settings(recovery={"rounding": "on", "equalization": "off"}).line
        'recovery by rounding'
        >>> Settings(recovery={}, in_float=("a", "b", "c", "d")).line
        'a, b, c and 1 more in float'
        """
        if not self.in_float:
            return self._recovery
        more = len(self.in_float) - _NAMES_SHOWN
        shown = ", ".join(self.in_float[:_NAMES_SHOWN])
        return f"{shown}{f' and {more} more' if more > 0 else ''} in float"

    @property
    def short(self) -> str:
        """In fewer words."""
        return f"{len(self.in_float)} more in float" if self.in_float else self._recovery

    @property
    def _recovery(self) -> str:
        methods = [name.replace("_", " ") for name, on in self.recovery.items() if on == "on"]
        return f"recovery by {', '.join(methods)}" if methods else "without recovery"


class Proof(Record):
    """What was measured of the file that a trial became, verified in a fresh process: `found` by
    the names of budgets, and the latency of the first batch size and thread count."""

    file: str
    found: dict[str, float | None]
    latency_s: Interval
    speedup: Interval


class Anchor(Record):
    """Median seconds of the fastest float form and of the first trial's file, as measured here."""

    float_s: float
    int8_s: float


class Tried(Record):
    """One trial. `found` has, by the names of budgets, what was found: the int8 model's accuracy on
    `images` images; `min_speedup` and `latency_s` are predicted by the table of costs, from what
    was measured of the first trial. `plan` is the digest of its plan, `proof` what was measured of
    its file, where it was converted."""

    number: int
    settings: Settings
    plan: str
    images: int
    found: dict[str, float | None]
    agreement: Interval | None
    sqnr_db: Interval | None
    latency_s: float
    seconds: float
    proof: Proof | None = None

    def budgets(self, limits: BudgetSection) -> tuple[Budget, ...]:
        """The budgets that are set, judged by what was measured of the file, if it was."""
        return judged(limits, self.found if self.proof is None else self.proof.found)

    def met(self, limits: BudgetSection) -> bool:
        """Whether all are."""
        return all(budget.met for budget in self.budgets(limits))

    def place(self, limits: BudgetSection) -> tuple[float, float, float, int]:
        """Smaller is better: first by how far budgets are missed, then by latency."""
        return (
            shortfall(self.budgets(limits)),
            self.latency_s,
            -self.sqnr_db.value if self.sqnr_db is not None else 0.0,
            self.number,
        )


class Trail(Record):
    """All trials in their order; `best` is the number of the one that was kept, `met` whether it
    meets the budgets as its file was measured. `noise` tells for each operator what it adds to the
    measured output when it alone is in int8, as a share of the signal's power; `ordered` are the
    operators in the order in which they go to float. `key` is a digest of everything that the
    trials depend on."""

    version: Literal[1] = 1
    key: str
    name: str
    budgets: dict[str, float]
    met: bool
    best: int | None
    ended: str
    trials: tuple[Tried, ...]
    anchor: Anchor | None
    noise: dict[str, float]
    ordered: tuple[str, ...]
    notes: tuple[str, ...]

    def trial(self, number: int) -> Tried:
        """That of this number."""
        return next(tried for tried in self.trials if tried.number == number)


def shortfall(budgets: Sequence[Budget]) -> float:
    """By how much budgets are missed, added up: those of accuracy as fractions, the others as
    shares of their limits. 0 where all are met.

    >>> shortfall([Budget(name="min_agreement", limit=0.95, found=0.9, met=False)])
    0.05
    """
    total = 0.0
    for budget in budgets:
        if budget.met:
            continue
        if budget.found is None:
            return math.inf
        distance = abs(budget.found - budget.limit)
        total += distance if budget.name in OF_ACCURACY else distance / budget.limit
    return round(total, 9)


def missed_line(budgets: Sequence[Budget]) -> str:
    """What is missed, in words; empty where nothing is."""
    return ", ".join(
        f"{b.name} {'not measurable' if b.found is None else f'{b.found:.6g}'} "
        f"({'at most' if b.name.startswith('max_') else 'at least'} {b.limit:g})"
        for b in budgets
        if not b.met
    )


def trial_line(tried: Tried, limits: BudgetSection, best: Tried) -> str:
    """One line for each trial."""
    missed = missed_line(tried.budgets(limits))
    return (
        f"trial {tried.number}: {tried.settings.line}: {_figures(tried.found, limits)}, "
        f"{1e3 * tried.latency_s:.2f} ms, {tried.found['min_int8_macs'] or 0:.1%} in int8: "
        f"{f'missed {missed}' if missed else 'met'}; best so far: trial {best.number}"
    )


def _figures(found: Mapping[str, float | None], limits: BudgetSection) -> str:
    shown = [(name, found[name]) for name in limits.set_of_accuracy]
    return ", ".join(
        f"{ACCURACY_WORDS[name]} {'not measurable' if value is None else f'{value:.6g}'}"
        for name, value in shown
    )


def trail_table(trail: Trail, limits: BudgetSection) -> Table:
    """A row for each trial."""
    names = limits.set_of_accuracy
    rows = []
    for tried in trail.trials:
        sqnr = "" if tried.sqnr_db is None else f"{tried.sqnr_db.value:.1f}"
        verdict = "met" if tried.met(limits) else "missed"
        if tried.number == trail.best:
            verdict += ", kept"
        figures = (tried.found[name] for name in names)
        rows.append((
            str(tried.number),
            tried.settings.short,
            *("" if value is None else f"{value:.6g}" for value in figures),
            sqnr,
            f"{1e3 * tried.latency_s:.2f}",
            f"{tried.found['min_int8_macs'] or 0:.1%}",
            f"{tried.seconds:.0f}",
            verdict,
        ))  # fmt: skip
    columns = (
        "trial", "settings", *(ACCURACY_WORDS[name] for name in names), "SQNR, dB",
        "latency, ms", "int8 work", "seconds", "",
    )  # fmt: skip
    note = "latency: predicted by the table of costs, from what was measured of the first trial"
    return Table("Trials", columns, tuple(rows), note)
