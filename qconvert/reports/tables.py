"""The report's figures as tables of text, shared by the formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qconvert.measurement.accuracy import ClassFigures, Comparison, Flip
from qconvert.measurement.confidence import Confidence
from qconvert.measurement.latency import Latency, Timing
from qconvert.measurement.statistics import Interval
from qconvert.quantization.audit.record import Audit
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.training.history import HeldOut, Training
from qconvert.reports.record import OnClass, Report

# Rows of a table of classes, and of one of images.
_CLASSES_SHOWN = 20
_FLIPS_SHOWN = 20


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
        *accuracy_tables(report.accuracy, "int8"),
        *latency_tables(report.latency),
        size_table(report),
    ]
    if report.accuracy.flipped:
        tables.append(_flipped_table(report.accuracy.flipped))
    tables += exception_tables(report)
    if report.recovery:
        tables.append(recovery_table(report.recovery))
    if report.finetune is not None:
        tables.append(training_table(report.finetune))
    if report.audit is not None:
        tables.append(audit_table(report.audit))
    if report.classes:
        tables.append(classes_table(report.classes))
    if report.budgets:
        tables.append(budget_table(report))
    return tables


def exception_tables(report: Report) -> list[Table]:
    """What is not in int8, or not with all of its bits, and why."""
    tables = []
    if report.kept:
        kept = tuple((module.name, module.reason) for module in report.kept)
        tables.append(
            Table("As written, in float (not traced)", ("module", "reason"), kept, words=True)
        )
    if report.coverage.in_float:
        rows = tuple((o.name, o.kind, o.reason) for o in report.coverage.in_float)
        tables.append(Table("In float", ("operator", "kind", "reason"), rows, words=True))
    if report.fewer_bits:
        given_up = tuple((layer.name, layer.extent, layer.reason) for layer in report.fewer_bits)
        columns = ("layer", "of what", "reason")
        tables.append(Table("Fewer bits, for CPUs without VNNI", columns, given_up, words=True))
    return tables


def recovery_table(trials: Sequence[Trial]) -> Table:
    """What each method gained and cost."""
    rows = tuple(
        (
            trial.method.replace("_", " "),
            f"{trial.before_db:.1f} dB",
            f"{trial.after_db:.1f} dB",
            f"{trial.seconds:.0f} s",
            "yes" if trial.kept else "no",
        )
        for trial in trials
    )
    columns = ("method", "SQNR before", "after", "time", "kept")
    return Table("Recovery, on calibration images that it did not see", columns, rows)


def audit_table(audit: Audit) -> Table:
    """The verdicts on the calibration images."""
    rows = tuple(
        (verdict.topic, "fine" if verdict.fine else "LOOK", verdict.text)
        for verdict in audit.verdicts
    )
    return Table(
        f"The {audit.images:,} calibration images", ("", "verdict", "found"), rows, words=True
    )


def training_table(training: Training) -> Table:
    """What fine-tuning gained, in simulation."""

    def row(name: str, epoch: int, found: HeldOut) -> tuple[str, ...]:
        shares = (found.agreement, found.top1)
        cells = ("" if value is None else f"{value:.4f}" for value in shares)
        return name, str(epoch), f"{found.sqnr_db:.1f} dB", *cells

    teacher = {"both": "labels and float"}.get(training.teacher, training.teacher)
    return Table(
        f"Fine-tuning, on {training.after.images} held-out images",
        ("", "epoch", "SQNR", "same answer as float", "right"),
        (
            row("before", 0, training.before),
            row("after", training.best_epoch, training.after),
        ),
        f"{training.epochs} epochs of {training.images} images in {training.seconds:.0f} s, "
        f"ended by {training.ended}; teacher: {teacher}",
    )


def before_and_after_table(before: Comparison, after: Comparison) -> Table:
    """Accuracy on the evaluation images before and after fine-tuning."""
    rows = []
    for first, second in zip(before.metrics, after.metrics, strict=True):
        values = (first.reference, first.measured, second.measured)
        rows.append((metric_name(first.name), *(_with_interval(v, "{:.4f}", "") for v in values)))
    for name, form, field in (
        ("same answer as float", "{:.4f}", "agreement"),
        ("cosine with float", "{:.5f}", "cosine"),
        ("SQNR of the outputs, dB", "{:.1f}", "sqnr_db"),
    ):
        pair = getattr(before, field), getattr(after, field)
        if None not in pair:
            rows.append((name, "", *(_with_interval(v, form, "") for v in pair)))
    columns = ("", "float", "int8 before (simulated)", "int8 after")
    return Table(
        f"Fine-tuning, on {after.images:,} evaluation images (95 % intervals)", columns, tuple(rows)
    )


def accuracy_tables(accuracy: Comparison, model: str) -> list[Table]:
    """All that is known of a model's accuracy beside float's."""
    tables = [accuracy_table(accuracy, model)]
    if accuracy.per_class:
        tables.append(per_class_table(accuracy.per_class, model))
    if accuracy.confidence is not None:
        tables.append(confidence_table(accuracy.confidence, model))
    return tables


def accuracy_table(accuracy: Comparison, model: str) -> Table:
    """A model's accuracy beside float's, with 95 % intervals."""
    rows: list[tuple[str, str, str]] = []
    for metric in accuracy.metrics:
        # z: no minus before a zero.
        form = "{:z.5f}" if metric.name == "cosine" else "{:z.4f}"
        figures = (_with_interval(i, form, "") for i in (metric.reference, metric.measured))
        rows.append((metric_name(metric.name), next(figures), next(figures)))
        rows.append(
            (f"{metric_name(metric.name)}: drop", "", _with_interval(metric.drop, form, ""))
        )
        if metric.by_chance is not None:
            name = f"{metric_name(metric.name)}: chance of such a difference"
            rows.append((name, "", f"{metric.by_chance:.2g}"))
    if accuracy.agreement is not None:
        rows.append(("same answer as float", "", share(accuracy.agreement)))
    elif accuracy.cosine is not None:
        rows.append(("cosine with float", "", _with_interval(accuracy.cosine, "{:.5f}", "")))
        rows.append(("lowest cosine of an image", "", f"{accuracy.lowest_cosine:.5f}"))
    if accuracy.sqnr_db is not None:
        rows.append(("SQNR of the outputs", "", _with_interval(accuracy.sqnr_db, "{:.1f}", " dB")))
    title = f"Accuracy on {accuracy.images:,} images (95 % intervals)"
    return Table(title, ("", "float", model), tuple(rows))


def _flipped_table(flipped: Sequence[Flip]) -> Table:
    """The answers that changed, those first of which float was surest; the JSON has all."""

    def sure(confidence: float | None) -> str:
        return "" if confidence is None else f"{confidence:.3f}"

    rows = tuple(
        (
            flip.image,
            flip.label or "",
            flip.reference,
            sure(flip.reference_confidence),
            flip.measured,
            sure(flip.measured_confidence),
        )
        for flip in flipped[:_FLIPS_SHOWN]
    )
    left = len(flipped) - len(rows)
    return Table(
        "Other answers than float's",
        ("image", "label", "float", "sure of it", "int8", "sure of it"),
        rows,
        f"{left} of which float was less sure are in the JSON" if left else "",
        words=True,
    )


def metric_name(name: str) -> str:
    """A metric as people write it; a user's own as she named it.

    >>> metric_name("top5"), metric_name("exact_match"), metric_name("mean_iou")
    ('top-5', 'exact match', 'mean IoU')
    """
    if ":" in name:
        return name
    return re.sub(r"^top(\d+)$", r"top-\1", name).replace("_", " ").replace("iou", "IoU")


def per_class_table(classes: Sequence[ClassFigures], model: str) -> Table:
    """The classes that lose most first; the JSON has all."""
    by_loss = sorted(classes, key=lambda c: c.measured.value - c.reference.value)
    rows = tuple(
        (c.name, f"{c.images:,}", share(c.reference), share(c.measured))
        for c in by_loss[:_CLASSES_SHOWN]
    )
    left = len(classes) - len(rows)
    return Table(
        "Top-1 of each class",
        ("class", "images", "float", model),
        rows,
        f"{left} classes that lose less are in the JSON" if left else "",
    )


def confidence_table(confidence: Confidence, model: str) -> Table:
    """How sure the models are, and how many images they may decide alone."""
    required = f"{confidence.required_accuracy:.4g}"
    own = (confidence.reference, confidence.measured, confidence.carried)

    def threshold(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

    def accuracy(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = (
        (
            "calibration error",
            share(confidence.reference_calibration_error),
            share(confidence.calibration_error),
            "",
        ),
        ("decided alone", *(share(automation.rate) for automation in own)),
        ("from a confidence of", *(threshold(automation.threshold) for automation in own)),
        ("accuracy of these", *(accuracy(automation.accuracy) for automation in own)),
    )
    lost = _with_interval(confidence.drop, "{:z.4f}", "")
    return Table(
        f"Decided alone at an accuracy of {required} (95 % intervals)",
        ("", "float", model, f"{model}, float's threshold"),
        rows,
        f"automation lost, each with its own threshold: {lost}; thresholds are chosen on these "
        "images, so on others the accuracy is a little lower",
    )


def latency_tables(latencies: Sequence[Latency]) -> list[Table]:
    """One table for each batch size and thread count."""
    tables = []
    for latency in latencies:
        rows = [_timing_row("float", latency.baseline, "1.00")]
        for name, timing in latency.models.items():
            speedup = _with_interval(latency.speedups[name], "{:.2f}", "x")
            rows.append(_timing_row(name, timing, speedup))
        note = (
            f"float is {latency.baseline.form}, the fastest of {len(latency.float_forms_s)} forms"
        )
        if len(latency.shapes) > 1:
            first, last = (
                " x ".join(map(str, s[2:])) for s in (latency.shapes[0], latency.shapes[-1])
            )
            note += f"; a call is the mean of {len(latency.shapes)} sizes from {first} to {last}"
        if latency.failed_forms:
            note += f" ({len(latency.failed_forms)} others do not run)"
        if latency.unsteady:
            note += f"; unsteady on this machine now: {', '.join(latency.unsteady)}"
        tables.append(
            Table(
                f"Latency, batch {latency.batch_size}, {threads(latency.threads)}",
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


def threads(count: int) -> str:
    """Their number in words.

    >>> threads(1), threads(2)
    ('1 thread', '2 threads')
    """
    return f"{count} thread{'s' if count > 1 else ''}"


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


def classes_table(classes: Sequence[OnClass]) -> Table:
    """The file on each class of CPUs."""
    first = classes[0].accuracy
    names = tuple(metric_name(metric.name) for metric in first.metrics)
    rows = []
    for found in classes:
        accuracy, latency = found.accuracy, found.latency
        rows.append(
            (
                found.isa,
                *(f"{metric.measured.value:.4f}" for metric in accuracy.metrics),
                "" if accuracy.agreement is None else f"{accuracy.agreement.value:.4f}",
                "" if accuracy.sqnr_db is None else f"{accuracy.sqnr_db.value:.1f} dB",
                milliseconds(latency.baseline.median_s.value),
                milliseconds(latency.models["int8"].median_s.value),
                f"{latency.speedups['int8'].value:.2f}x",
            )
        )
    return Table(
        "On classes of CPUs",
        ("", *names, "same answer", "SQNR", "float", "int8", "times faster"),
        tuple(rows),
        "each in processes whose instruction sets are limited to the class",
    )


def budget_table(report: Report) -> Table:
    """Each limit beside what was found."""
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
