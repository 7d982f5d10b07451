"""The report's figures as tables of text, shared by the formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.latency import Latency, Timing
from qconvert.measurement.statistics import Interval
from qconvert.reports.record import Report


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns and rows of text.

    The first column is left-aligned, and so are the others when they hold `words`, not numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: bool = False


def all_tables(report: Report) -> list[Table]:
    """Every table of a report, in reading order."""
    tables = [
        accuracy_table(report.accuracy, "int8"),
        *latency_tables(report.latency),
        size_table(report),
    ]
    if report.kept:
        kept = tuple((module.name, module.reason) for module in report.kept)
        tables.append(
            Table("As written, in float (not traced)", ("module", "reason"), kept, words=True)
        )
    if report.coverage.in_float:
        rows = tuple((o.name, o.kind, o.reason) for o in report.coverage.in_float)
        tables.append(Table("In float", ("operator", "kind", "reason"), rows, words=True))
    if report.budgets:
        tables.append(_budget_table(report))
    return tables


def accuracy_table(accuracy: Comparison, model: str) -> Table:
    """A model's accuracy beside float's, with 95 % intervals."""
    rows: list[tuple[str, str, str]] = []
    for name, before, after in (
        ("top-1", accuracy.float_top1, accuracy.top1),
        ("top-5", accuracy.float_top5, accuracy.top5),
    ):
        if before is not None and after is not None:
            rows.append((name, share(before), share(after)))
    if accuracy.agreement is not None:
        rows.append(("same answer as float", "", share(accuracy.agreement)))
    elif accuracy.cosine is not None:
        rows.append(("cosine with float", "", _with_interval(accuracy.cosine, "{:.5f}", "")))
        rows.append(("lowest cosine of an image", "", f"{accuracy.lowest_cosine:.5f}"))
    if accuracy.sqnr_db is not None:
        rows.append(("SQNR of the outputs", "", _with_interval(accuracy.sqnr_db, "{:.1f}", " dB")))
    title = f"Accuracy on {accuracy.images:,} images (95 % intervals)"
    return Table(title, ("", "float", model), tuple(rows))


def latency_tables(latencies: Sequence[Latency]) -> list[Table]:
    """One table for each batch size and thread count."""
    tables = []
    for latency in latencies:
        rows = [_timing_row("float", latency.baseline, "1.00")]
        for name, timing in latency.models.items():
            speedup = _with_interval(latency.speedups[name], "{:.2f}", "x")
            rows.append(_timing_row(name, timing, speedup))
        threads = f"{latency.threads} thread" + ("s" if latency.threads > 1 else "")
        note = (
            f"float is {latency.baseline.form}, the fastest of {len(latency.float_forms_s)} forms"
        )
        if latency.failed_forms:
            note += f" ({len(latency.failed_forms)} others do not run)"
        if latency.unsteady:
            note += f"; unsteady on this machine now: {', '.join(latency.unsteady)}"
        tables.append(
            Table(
                f"Latency, batch {latency.batch_size}, {threads}",
                ("", "median", "p90", "p99", "images/s", "times faster"),
                tuple(rows),
                note,
            )
        )
    return tables


def size_table(report: Report) -> Table:
    """File sizes and the share of work in int8."""
    size, coverage = report.size, report.coverage
    rows = (
        ("file", megabytes(size.float_bytes), megabytes(size.int8_bytes), f"{size.ratio:.3f}"),
        (
            "multiply-accumulates",
            f"{coverage.macs / 1e6:,.1f} M",
            f"{coverage.int8_macs / 1e6:,.1f} M in int8",
            f"{coverage.int8_macs_share:.4f}",
        ),
    )
    note = (
        f"{coverage.int8_operators} int8 operators, {coverage.float_operators} in float, "
        f"{coverage.boundaries} boundaries"
    )
    if coverage.dynamic_macs:
        note += (
            f"; {coverage.dynamic_macs / 1e6:,.1f} M of the multiply-accumulates have int8 weights "
            "and ranges that are found as the model runs"
        )
    return Table("Size and coverage", ("", "float", "int8", "ratio"), rows, note)


def share(interval: Interval) -> str:
    """A fraction with its interval.

    >>> share(Interval(value=0.94, low=0.93, high=0.95))
    '0.9400 (0.9300 to 0.9500)'
    """
    return _with_interval(interval, "{:.4f}", "")


def milliseconds(seconds: float) -> str:
    """Three digits, so that a column can be compared.

    >>> milliseconds(0.0005), milliseconds(0.0019), milliseconds(0.0421), milliseconds(1.23)
    ('0.500 ms', '1.90 ms', '42.1 ms', '1,230 ms')
    """
    value = seconds * 1e3
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f} ms"


def megabytes(size_bytes: int) -> str:
    """Millions of bytes.

    >>> megabytes(717425)
    '0.72 MB'
    """
    return f"{size_bytes / 1e6:.2f} MB"


def _timing_row(name: str, timing: Timing, speedup: str) -> tuple[str, ...]:
    return (
        name,
        milliseconds(timing.median_s.value),
        milliseconds(timing.p90_s),
        milliseconds(timing.p99_s),
        f"{timing.images_per_s:,.0f}",
        speedup,
    )


def _budget_table(report: Report) -> Table:
    rows = tuple(
        (
            budget.name,
            f"{budget.limit:g}",
            "not measurable" if budget.found is None else f"{budget.found:.6g}",
            "met" if budget.met else "MISSED",
        )
        for budget in report.budgets
    )
    return Table("Budgets", ("", "limit", "found", ""), rows)


def _with_interval(interval: Interval, form: str, unit: str) -> str:
    low, high = form.format(interval.low), form.format(interval.high)
    return f"{form.format(interval.value)}{unit} ({low} to {high})"
