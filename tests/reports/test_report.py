"""The report: budgets at their limits, the verdict, and the same figures in every format."""

from __future__ import annotations

import re

import pytest
from sample_report import (
    ACCURACY,
    COVERAGE,
    DENSE,
    LATENCY,
    SIZE,
    UNLABELLED,
    interval,
    report,
)

from qconvert.measurement.accuracy import Comparison, Flip
from qconvert.qconfig import BudgetSection
from qconvert.reports.markdown import to_markdown
from qconvert.reports.record import Budget, Report, check_budgets, verdict
from qconvert.reports.tables import all_tables


@pytest.mark.parametrize(
    ("name", "at_limit", "missed"),
    [
        ("max_accuracy_drop", 0.003, 0.00299),
        ("min_agreement", 0.97, 0.97001),
        ("min_cosine", 0.99123, 0.99124),
        ("min_speedup", 2.5, 2.50001),
        ("max_size_ratio", 0.25, 0.24999),
        ("min_int8_macs", 0.75, 0.75001),
    ],
)
def test_budget_is_met_at_its_limit_and_missed_beyond(
    name: str, at_limit: float, missed: float
) -> None:
    (met,) = report(**{name: at_limit}).budgets
    assert (met.name, met.limit, met.met) == (name, at_limit, True)
    assert met.found == pytest.approx(at_limit)
    (beyond,) = report(**{name: missed}).budgets
    assert not beyond.met
    assert beyond.found == met.found


@pytest.mark.parametrize(
    ("accuracy", "limits", "met"),
    [
        (UNLABELLED, {"max_accuracy_drop": 1.0}, False),
        (UNLABELLED, {"min_agreement": 0.5}, True),
        (DENSE, {"min_agreement": 0.0}, False),
        (DENSE, {"max_accuracy_drop": 1.0}, False),
        (DENSE, {"min_speedup": 1.0}, True),
        (DENSE, {"min_cosine": 0.99}, True),
    ],
)
def test_what_cannot_be_measured_is_not_met(
    accuracy: Comparison, limits: dict[str, float], met: bool
) -> None:
    found = report(accuracy, **limits)
    assert found.budgets[0].met is met
    assert (found.budgets[0].found is None) == (not met)
    assert found.verdict == ("all budgets met" if met else "budgets missed")
    assert ("| not measurable | MISSED |" in to_markdown(found, {})) == (not met)


def test_int8_better_than_float_meets_a_drop_of_nothing() -> None:
    better = ACCURACY.metrics[0].model_copy(update={"drop": interval(-0.003)})
    assert (
        report(ACCURACY.model_copy(update={"metrics": (better,)}), max_accuracy_drop=0.0).verdict
        == "all budgets met"
    )
    assert report(max_accuracy_drop=0.0).verdict == "budgets missed"


def test_budgets_judge_the_first_setting_of_int8() -> None:
    slow = LATENCY[0].model_copy(update={"speedups": {"fused": interval(9), "int8": interval(1.5)}})
    (budget,) = check_budgets(BudgetSection(min_speedup=2), ACCURACY, slow, SIZE, COVERAGE)
    assert (budget.found, budget.met) == (1.5, False)


def test_unset_budgets_are_not_judged() -> None:
    found = report()
    assert (found.budgets, found.verdict) == ((), "no budgets set")
    assert "Budgets" not in to_markdown(found, {})


@pytest.mark.parametrize(
    ("met", "words"),
    [
        ((), "no budgets set"),
        ((True,), "all budgets met"),
        ((True, True), "all budgets met"),
        ((True, False), "budgets missed"),
        ((False,), "budgets missed"),
    ],
)
def test_verdict_words(met: tuple[bool, ...], words: str) -> None:
    assert verdict(tuple(Budget(name="b", limit=1, found=1, met=m) for m in met)) == words


SHOWN = [
    # What, when and where.
    "my_net", "2026-01-02T03:04:05+00:00", "Some CPU @ 3 GHz", "16 cores", "no VNNI", "0.1.0",
    "2.99.1", "**budgets missed.**",
    # Accuracy.
    "12,000 images", "| top-1 | 0.9030 (0.8911 to 0.9122) | 0.9000 (0.8833 to 0.9044) |",
    "| top-5 | 0.9912 (0.9855 to 0.9966) | 0.9877 (0.9788 to 0.9899) |",
    "| top-5: drop |  | 0.0035 (0.0015 to 0.0055) |",
    "| same answer as float |  | 0.9700 (0.9611 to 0.9722) |", "31.4 dB (30.1 to 32.2)",
    # Latency, at both thread counts.
    "Latency, batch 4, 1 thread\n", "Latency, batch 4, 6 threads\n",
    "| float | 20.6 ms | 30.9 ms | 41.2 ms | 194 | 1.00 |",
    "| int8 | 8.24 ms | 12.4 ms | 16.5 ms | 485 | 2.50x (2.31 to 2.62) |",
    "| float | 3.28 ms | 4.92 ms | 6.56 ms | 1,220 | 1.00 |",
    "| int8 | 1.31 ms | 1.97 ms | 2.62 ms | 3,049 | 2.50x (2.31 to 2.62) |",
    "frozen, channels last, the fastest of 6 forms", "unsteady on this machine now: int8",
    # Size and coverage.
    "44.78 MB", "11.20 MB", "0.250", "1,646.0 M", "1,234.5 M in int8", "0.7500",
    "21 int8 operators", "13 in float", "6 boundaries",
    # Budgets and notes.
    "| min_speedup | 3 | 2.5 | MISSED |", "| max_size_ratio | 0.3 | 0.25 | met |",
    "- There are no labels.", "- The machine was busy.",
]  # fmt: skip


@pytest.mark.parametrize("shown", SHOWN)
def test_markdown_holds_every_figure(shown: str) -> None:
    assert shown in to_markdown(report(min_speedup=3, max_size_ratio=0.3), {})


def test_markdown_holds_the_cosine_where_there_are_no_answers() -> None:
    shown = to_markdown(report(DENSE), {})
    assert "| cosine with float |  | 0.99123 (0.98111 to 0.99444) |" in shown
    assert "| lowest cosine of an image |  | 0.87654 |" in shown


@pytest.mark.parametrize("accuracy", [ACCURACY, UNLABELLED, DENSE])
def test_rows_have_their_cells_also_with_pipes_in_them(accuracy: Comparison) -> None:
    """A renderer splits a row at each pipe that is not escaped; a table ends at an empty line."""
    markdown = to_markdown(report(accuracy, min_speedup=1), {})
    tables = [block for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(tables) == len(all_tables(report(accuracy, min_speedup=1)))
    for table in tables:
        cells = [re.split(r"(?<!\\)\|", row) for row in table.splitlines()]
        assert len({len(row) for row in cells}) == 1, table
        assert all(re.fullmatch(r" -+:? ", cell) for cell in cells[1][1:-1])
    assert r"| head\|gate.act | PReLU | no int8 \| PReLU |" in markdown


@pytest.mark.parametrize(
    ("accuracy", "names"),
    [
        (
            ACCURACY,
            [
                "top-1",
                "top-1: drop",
                "top-5",
                "top-5: drop",
                "same answer as float",
                "SQNR of the outputs",
            ],
        ),
        (UNLABELLED, ["same answer as float", "SQNR of the outputs"]),
        (DENSE, ["cosine with float", "lowest cosine of an image", "SQNR of the outputs"]),
    ],
)
def test_accuracy_has_rows_for_what_was_measured(accuracy: Comparison, names: list[str]) -> None:
    assert [row[0] for row in all_tables(report(accuracy))[0].rows] == names


def test_answers_that_changed_are_listed_and_the_rest_counted() -> None:
    flips = tuple(
        Flip(image=f"cat/{i}|{i}.png", reference="cat", measured="cow", label="cat",
             reference_confidence=0.98765 if i else None, measured_confidence=0.5)
        for i in range(23)
    )  # fmt: skip
    text = to_markdown(report(ACCURACY.model_copy(update={"flipped": flips})), {})
    assert "## Other answers than float's" in text
    assert "| cat/1\\|1.png | cat | cat | 0.988 | cow | 0.500 |" in text
    assert "| cat/0\\|0.png | cat | cat |  | cow | 0.500 |" in text
    assert "cat/19" in text
    assert "cat/20" not in text
    assert "3 of which float was less sure are in the JSON" in text


@pytest.mark.parametrize("accuracy", [ACCURACY, UNLABELLED, DENSE])
def test_json_is_read_back_as_it_was(accuracy: Comparison) -> None:
    original = report(accuracy, min_speedup=3, max_accuracy_drop=0.01)
    again = Report.model_validate_json(original.model_dump_json())
    assert again == original
    assert to_markdown(again, {}) == to_markdown(original, {})


def test_unknown_key_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        Report.model_validate({**report().model_dump(), "colour": "red"})
