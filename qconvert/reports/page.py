"""The content of report.html: a function for each section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from qconvert.images.thumbnail import Thumbnail
from qconvert.measurement.accuracy import Flip
from qconvert.measurement.latency import Latency
from qconvert.quantization.plan import PlannedOperator
from qconvert.reports.blocks import (
    Block,
    Card,
    Drawing,
    Folded,
    Gallery,
    Material,
    Said,
    Section,
    Text,
)
from qconvert.reports.page_findings import audit, sensitivity
from qconvert.reports.plots import automation_svg, latency_svg
from qconvert.reports.record import Report
from qconvert.reports.tables import (
    Table,
    accuracy_table,
    budget_table,
    classes_table,
    confidence_table,
    exception_tables,
    latency_tables,
    megabytes,
    metric_name,
    milliseconds,
    per_class_table,
    recovery_table,
    share,
    size_table,
    threads,
    training_table,
)

# Pictures of images whose answer changed; a page with thousands would not open.
PICTURES_SHOWN = 100
_PRECISIONS = {
    "int8": "int8",
    "dynamic": "int8 with dynamic ranges",
    "float32": "float",
    "given": "as in the source",
}


@dataclass(frozen=True)
class Fact:
    """A figure of the page's head: its name, its value, and its interval or what it is made of."""

    name: str
    value: str
    detail: str


def facts(report: Report) -> list[Fact]:
    """The figures that most readers want, and maybe nothing else."""
    first, found = report.latency[0], report.accuracy
    speedup = first.speedups["int8"]
    facts = [
        Fact(
            "times faster",
            f"{speedup.value:.2f}x",
            f"{speedup.low:.2f} to {speedup.high:.2f}; batch {first.batch_size}, "
            f"{threads(first.threads)}",
        )
    ]
    if found.metrics:
        metric = found.metrics[0]
        facts.append(
            Fact(
                f"{metric_name(metric.name)} in int8",
                f"{metric.measured.value:.4f}",
                f"{metric.measured.low:.4f} to {metric.measured.high:.4f}; float "
                f"{metric.reference.value:.4f}",
            )
        )
    if found.agreement is not None:
        interval = found.agreement
        detail = f"{interval.low:.4f} to {interval.high:.4f}; {found.images:,} images"
        facts.append(Fact("same answer as float", f"{interval.value:.4f}", detail))
    elif found.cosine is not None:
        interval = found.cosine
        detail = f"{interval.low:.5f} to {interval.high:.5f}; {found.images:,} images"
        facts.append(Fact("cosine with float", f"{interval.value:.5f}", detail))
    size, coverage = report.size, report.coverage
    sizes = f"{megabytes(size.int8_bytes)}; float {megabytes(size.float_bytes)}"
    facts.append(Fact("size of the file", f"{size.ratio:.3f}", f"of float's: {sizes}"))
    work = f"of {coverage.macs / 1e6:,.1f} M multiply-accumulates"
    facts.append(Fact("work in int8", f"{coverage.int8_macs_share:.4f}", work))
    return facts


def sections(material: Material) -> list[Section]:
    """Those for which there is something to show, in reading order."""
    makers: Sequence[Callable[[Material], Section | None]] = (
        budgets,
        latency,
        accuracy,
        flipped,
        confidence,
        audit,
        sensitivity,
        size,
        recovery,
        training,
        plan,
        settings,
    )
    return [found for make in makers if (found := make(material)) is not None]


def budgets(material: Material) -> Section | None:
    """Each limit beside what was found."""
    if not material.report.budgets:
        return None
    return Section("budgets", "Budgets", (budget_table(material.report),))


def latency(material: Material) -> Section:
    """The distributions at each batch size and thread count."""
    found = material.report.latency
    blocks: list[Block] = [
        Text(
            "Float and int8 take turns, call by call, in one process; “times faster” is the median "
            "of the ratios of neighbouring calls. A curve shows the share of the calls that were "
            "done within a time: the dot is the median, and the steeper, the steadier."
        )
    ]
    for row, table in zip(found, latency_tables(found), strict=True):
        if all(timing.percentiles_s for timing in (row.baseline, *row.models.values())):
            blocks.append(Drawing(latency_svg(row), _latency_in_words(row), table))
        else:
            blocks.append(table)
    return Section("latency", "Latency", tuple(blocks))


def _latency_in_words(row: Latency) -> str:
    said = (
        f"{name}: half of the calls within {milliseconds(timing.median_s.value)}, 99 of 100 within "
        f"{milliseconds(timing.p99_s)}, the slowest {milliseconds(timing.percentiles_s[-1])}"
        for name, timing in {"float": row.baseline, **row.models}.items()
    )
    return "Share of the calls within a time. " + "; ".join(said) + "."


def accuracy(material: Material) -> Section:
    """Metrics, agreement and differences of the outputs, with intervals; each class; each CPU."""
    found = material.report.accuracy
    blocks: list[Block] = [accuracy_table(found, "int8")]
    if found.metrics or found.agreement is not None:
        blocks.append(
            Text(_intervals_in_words(any(m.by_chance is not None for m in found.metrics)))
        )
    if found.per_class:
        blocks.append(per_class_table(found.per_class, "int8"))
    if material.report.classes:
        blocks.append(classes_table(material.report.classes))
    return Section("accuracy", "Accuracy", tuple(blocks))


def _intervals_in_words(tested: bool) -> str:
    words = (
        "Intervals of shares of images are Wilson's, all others are bootstrapped over the images. "
        "A drop is by how much int8 is worse, image by image."
    )
    if tested:
        words += (
            " The chance of a difference is how likely one so large would be between two models "
            "that are equally good: McNemar's exact test on the images that only one gets right."
        )
    return words


def flipped(material: Material) -> Section | None:
    """The images whose answer changed; where images have no answers, there is no section."""
    found = material.report.accuracy
    if not found.flipped:
        if not any(metric.by_chance is not None for metric in found.metrics):
            return None
        words = f"int8 gives all {found.images:,} images the answer that float gives."
        return Section("flipped", "Answers that changed", (Text(words),))
    cards = tuple(_card(flip, material.pictures) for flip in found.flipped[:PICTURES_SHOWN])
    left = len(found.flipped) - len(cards)
    note = f"and {left:,} more of which float was less sure, in report.json" if left else ""
    words = _flips_in_words(found.flipped, found.images)
    return Section("flipped", "Answers that changed", (Text(words), Gallery(cards, note)))


def _flips_in_words(flips: Sequence[Flip], images: int) -> str:
    words = f"{len(flips):,} of {images:,} images have another answer in int8"
    labelled = [flip for flip in flips if flip.label is not None]
    if labelled:
        who = Counter(
            "only float is right"
            if flip.reference == flip.label
            else "only int8 is right"
            if flip.measured == flip.label
            else "neither is right"
            for flip in labelled
        )
        words += ": " + ", ".join(f"{who_is} in {count:,}" for who_is, count in who.most_common())
    return words + ". Those come first of which float was surest."


def _card(flip: Flip, pictures: Mapping[str, Thumbnail | str]) -> Card:
    def right(answer: str) -> bool | None:
        return None if flip.label is None else answer == flip.label

    return Card(
        image=flip.image,
        picture=pictures.get(flip.image, "no picture"),
        label=flip.label,
        said=(
            Said("float", flip.reference, flip.reference_confidence, right(flip.reference)),
            Said("int8", flip.measured, flip.measured_confidence, right(flip.measured)),
        ),
    )


def confidence(material: Material) -> Section | None:
    """How sure the models are, and how many images they may decide alone."""
    found = material.report.accuracy.confidence
    if found is None:
        return None
    words = (
        "Accuracy of the answers that a model gives alone, against their share of all images, the "
        f"surest first. At an accuracy of {found.required_accuracy:.4g}, float decides "
        f"{share(found.reference.rate)} of the images alone, int8 {share(found.measured.rate)}."
    )
    drawing = Drawing(automation_svg(found, "int8"), words, confidence_table(found, "int8"))
    return Section("confidence", "Confidence and automation", (drawing,))


def size(material: Material) -> Section:
    """File sizes, the share of the work in int8, and what is not in it."""
    report = material.report
    return Section("size", "Size and coverage", (size_table(report), *exception_tables(report)))


def recovery(material: Material) -> Section | None:
    """What each method of recovery did."""
    if not material.report.recovery:
        return None
    return Section("recovery", "Recovery", (recovery_table(material.report.recovery),))


def training(material: Material) -> Section | None:
    """How the model was trained in int8, if it was."""
    if material.report.finetune is None:
        return None
    table = training_table(material.report.finetune)
    return Section("training", table.title, (table,))


def plan(material: Material) -> Section:
    """A line for each operator: what computes it, and why in float."""
    found = material.plan
    total = found.kept_macs + sum(operator.macs for operator in found.operators)
    rows = tuple(_plan_row(operator, total) for operator in found.operators)
    columns = ("operator", "kind", "precision", "share of MACs", "kernel", "remarks")
    counts = Counter(operator.precision for operator in found.operators)
    said = ", ".join(f"{count} {_PRECISIONS[name]}" for name, count in counts.most_common())
    words = f"{len(rows)} operators: {said}. The plan is for CPUs of class {found.isa}."
    table = Table("Operators in the order of the model", columns, rows, words=True)
    return Section("plan", "Plan", (Text(words), table))


def _plan_row(operator: PlannedOperator, total: int) -> tuple[str, ...]:
    joined = _joined((operator.with_sum and "add", operator.activation), " + ")
    fewer = operator.fewer_bits
    given_up = f"fewer bits: {fewer.extent}; {fewer.reason}" if fewer else None
    return (
        operator.name,
        _joined((operator.kind, joined), " + "),
        _PRECISIONS[operator.precision],
        f"{operator.macs / total:.4f}" if operator.macs else "",
        operator.kernel or "",
        _joined((operator.reason, given_up), "; "),
    )


def _joined(parts: Iterable[str | None], by: str) -> str:
    return by.join(part for part in parts if part)


def settings(material: Material) -> Section:
    """Every setting, and the digests of the files that were measured."""
    report = material.report
    digests = tuple(report.digests.items())
    qconfig = yaml.safe_dump(report.qconfig, sort_keys=False, allow_unicode=True, width=1000)
    table = Table("Files that were measured", ("file", "SHA-256"), digests, words=True)
    return Section("settings", "Settings and files", (Folded("The qconfig", qconfig), table))
