"""Which trial is the best, and how trials are told."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from qconvert.measurement.statistics import Interval
from qconvert.qconfig import BudgetSection
from qconvert.reports.plots import trail_svg
from qconvert.reports.trail import Proof, Settings, Trail, Tried, trail_table, trial_line

LIMITS = BudgetSection(min_agreement=0.95, min_int8_macs=0.8)


def tried(number: int, agreement: float | None, latency_s: float, **changes: Any) -> Tried:
    found = {
        "max_accuracy_drop": None, "max_automation_drop": None, "min_agreement": agreement,
        "min_cosine": 1.0, "min_speedup": 2.0, "max_size_ratio": 0.3, "min_int8_macs": 0.9,
    }  # fmt: skip
    found |= changes.pop("found", {})
    return Tried(
        number=number, settings=Settings(recovery={}, in_float=("x",) * number), plan="",
        images=100, found=found, agreement=None, sqnr_db=None, latency_s=latency_s, seconds=1.0,
        **changes,
    )  # fmt: skip


def proof(agreement: float) -> Proof:
    found = tried(1, agreement, 1.0).found
    one = Interval(value=1.0, low=1.0, high=1.0)
    return Proof(file="", found=found, latency_s=one, speedup=one)


def best(*trials: Tried) -> int:
    return min(trials, key=lambda one: one.place(LIMITS)).number


def test_the_fastest_that_meets_the_budgets_is_best() -> None:
    assert best(tried(1, 0.94, 1.0), tried(2, 0.99, 3.0), tried(3, 0.95, 2.0)) == 3


def test_without_one_the_nearest_is() -> None:
    slower = tried(3, 0.99, 2.0, found={"min_int8_macs": 0.6})
    assert best(tried(1, 0.90, 1.0), tried(2, 0.94, 3.0), slower) == 2
    assert best(tried(1, None, 1.0), tried(2, 0.1, 3.0)) == 2


def test_what_was_measured_of_the_file_counts() -> None:
    assert best(tried(1, 0.96, 1.0, proof=proof(0.93)), tried(2, 0.96, 2.0)) == 2


def trail(*trials: Tried) -> Trail:
    return Trail(
        key="", name="net", budgets={}, met=True, best=trials[-1].number, ended="", trials=trials,
        anchor=None, noise={}, ordered=(), notes=(),
    )  # fmt: skip


def test_a_line_says_what_is_missed_and_what_is_best() -> None:
    first = tried(1, 0.9, 1e-3)
    assert trial_line(first, LIMITS, first) == (
        "trial 1: x in float: agreement 0.9, 1.00 ms, 90.0% in int8: missed min_agreement "
        "0.9 (at least 0.95); best so far: trial 1"
    )
    line = trial_line(tried(5, 0.96, 1e-3), LIMITS, first)
    assert "x, x, x and 2 more in float" in line
    assert ": met; best so far: trial 1" in line


def test_the_table_marks_what_was_kept() -> None:
    table = trail_table(trail(tried(1, 0.9, 1e-3), tried(2, 0.96, 2e-3)), LIMITS)
    assert [row[-1] for row in table.rows] == ["missed", "met, kept"]


@pytest.mark.parametrize("limits", [LIMITS, BudgetSection(max_accuracy_drop=0.01)])
def test_the_picture_has_every_trial(limits: BudgetSection) -> None:
    drop = {"max_accuracy_drop": 0.02}
    trials = [tried(n, 0.9 + n / 100, n / 1e3, found=drop) for n in range(1, 8)]
    drawn = trail_svg(trail(*trials), limits)
    assert drawn == trail_svg(trail(*trials), limits)
    texts = [e.text for e in ElementTree.fromstring(drawn).iter() if e.text]
    assert "kept: trial 7" in texts
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(texts)
    assert any(text.startswith("budget: ") for text in texts)
