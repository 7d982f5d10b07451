"""Accuracy of a model against its float original, on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from qconvert.errors import LabelError, MetricError, NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Others, Progress, Receiver, lend, map_numbered, no_progress
from qconvert.measurement.answers import Answer, Decoder
from qconvert.measurement.confidence import Confidence, compare_confidence
from qconvert.measurement.metrics import Metric, Row, Seen, cosine
from qconvert.measurement.statistics import (
    Interval,
    bootstrap,
    decibels,
    mcnemar,
    proportion,
)
from qconvert.records import Record

# Maps the inputs of one image to the output that is measured.
Model = Callable[..., Tensor]


class MetricFigures(Record):
    """One metric of float (`reference`) and of the measured model; `drop` is by how much the latter
    is worse, image by image, in the metric's own unit. Where an image is right or not, `by_chance`
    is how likely so large a difference is between models that are equally good (`mcnemar`)."""

    name: str
    higher_is_better: bool
    reference: Interval
    measured: Interval
    drop: Interval
    by_chance: float | None = None


class ClassFigures(Record):
    """The images of one class: the share that each model gets right."""

    name: str
    images: int
    reference: Interval
    measured: Interval


class Flip(Record):
    """An image (its path below the folder) whose answer changed, with both models' answers (a
    class's name or index, or a text), how sure they are of it, and the label, where it has one."""

    image: str
    reference: str
    measured: str
    reference_confidence: float | None
    measured_confidence: float | None
    label: str | None


class Comparison(Record):
    """One model against float. Shares are fractions; SQNR is of the outputs, in dB; cosine is of
    the angle between the two outputs of an image.

    What needs labels or answers is empty or None where there is none. `agreement` is the share of
    images with the same answer, or of pixels where there is one answer a pixel. Detections have an
    agreement and nothing else: their number differs from model to model. `flipped` are the images
    with another answer, those first of which float was surest.
    """

    images: int
    metrics: tuple[MetricFigures, ...] = ()
    per_class: tuple[ClassFigures, ...] = ()
    confidence: Confidence | None = None
    agreement: Interval | None
    cosine: Interval | None = None
    lowest_cosine: float | None = None
    sqnr_db: Interval | None = None
    flipped: tuple[Flip, ...] = ()

    def metric(self, name: str) -> MetricFigures | None:
        """The figures of one metric, if it was measured."""
        return next((m for m in self.metrics if m.name == name), None)

    @property
    def accuracy_drop(self) -> float | None:
        """By how much this model is worse in the first metric; None without one."""
        return self.metrics[0].drop.value if self.metrics else None


@dataclass(frozen=True)
class Judge:
    """What outputs are, and what is measured of them.

    `decoder` gives each image its answer; without one, `pixels` says whether each pixel has one
    along axis 1, else outputs are numbers. `right` counts answers that are the label.
    """

    decoder: Decoder | None = None
    pixels: bool = False
    metrics: Sequence[Metric] = ()
    per_class: bool = False
    required_accuracy: float = 0.99


class _Judged(NamedTuple):
    """What is kept of one image: energies and cosine of the outputs, the share of equal answers,
    the answers of float and of the other model, and the rows of each metric of both."""

    signal: float
    noise: float
    cosine: float
    agreement: float
    answers: tuple[Answer | None, Answer | None]
    rows: tuple[tuple[Row, Row], ...]


def compare(
    reference: Model,
    measured: Model,
    images: ImageSet,
    read: Reader,
    judge: Judge,
    *,
    batch_size: int,
    progress: Progress = no_progress,
    others: Others | None = None,
) -> Comparison:
    """Runs both models on every image and compares their outputs; memory does not grow with them.

    Every image is run on its own, at its own size: a result depends on nothing but the image
    (layers with dynamic ranges would depend on the others of a batch). `others` call
    `lend_comparison` with the same.

    Raises NotFiniteImageError that names the images on which `reference` is not finite.
    """
    run = _judging(reference, measured, images, read, judge)
    found = map_numbered(run, images, read, batch_size=batch_size, progress=progress, others=others)
    rows = list(found)
    wrong = [p for p, row in zip(images.files, rows, strict=True) if not math.isfinite(row.signal)]
    if wrong:
        raise NotFiniteImageError(
            [f"{path}: the float model computes NaN or infinity" for path in wrong]
        )
    cosines = np.array([row.cosine for row in rows])
    energies = np.array([(row.signal, row.noise) for row in rows])
    return Comparison(
        images=len(rows),
        metrics=tuple(_figures(metric, i, rows) for i, metric in enumerate(judge.metrics)),
        per_class=_per_class(rows, images) if judge.per_class else (),
        confidence=_confidence(rows, images, judge),
        agreement=_agreement(rows, judge),
        cosine=bootstrap(mean, cosines),
        lowest_cosine=float(cosines.min()),
        sqnr_db=bootstrap(_ratio, energies),
        flipped=_flipped(rows, images),
    )


def lend_comparison(
    reference: Model,
    measured: Model,
    images: ImageSet,
    read: Reader,
    judge: Judge,
    receiver: Receiver,
    *,
    batch_size: int,
) -> None:
    """This rank's share of what rank 0 does in `compare`."""
    run = _judging(reference, measured, images, read, judge)
    lend(run, images, read, receiver, batch_size=batch_size)


def check_classes(images: ImageSet, outputs: int) -> None:
    """Raises LabelError when the labels cannot be the model's classes."""
    if images.labels is None:
        return
    fix = (
        "name all classes in `data.classes`, in the model's order, or `labels: none`; "
        "`model.answers: none` if the outputs are no classes"
    )
    indexes = [label for label in images.labels if isinstance(label, int)]
    if images.classes is None:
        if indexes and max(indexes) >= outputs:
            raise LabelError(
                f"there is a label {max(indexes)}, the model has {outputs} outputs",
                where=str(images.root),
                fix="count labels from 0; " + fix,
            )
    elif len(images.classes) != outputs:
        raise LabelError(
            f"there are {len(images.classes)} classes, the model has {outputs} outputs",
            where=str(images.root),
            fix=fix,
        )


def _judging(
    reference: Model, measured: Model, images: ImageSet, read: Reader, judge: Judge
) -> Callable[[Inputs, int], _Judged]:
    """What is done with the inputs of each image and its place among them."""

    def run(inputs: Inputs, place: int) -> _Judged:
        label: Any = images.labels[place] if images.labels is not None else None
        if isinstance(label, Path) and judge.metrics:
            label = read.mask(label)
        return _judged(reference(*inputs), measured(*inputs), label, judge)

    return run


def _judged(reference: Tensor, measured: Tensor, label: Any, judge: Judge) -> _Judged:
    """One image's outputs, (1, ...), compared."""
    want, have = reference.double(), measured.double()
    agreement = 0.0
    answers: tuple[Answer | None, Answer | None] = (None, None)
    if judge.decoder is not None:
        said, found = judge.decoder(reference), judge.decoder(measured)
        agreement, answers = float(said.value == found.value), (said, found)
    elif judge.pixels:
        agreement = float((reference.argmax(1) == measured.argmax(1)).double().mean())
    models = ((reference, answers[0]), (measured, answers[1]))
    seen = [Seen(output, answer, reference, label) for output, answer in models]
    return _Judged(
        signal=float(want.square().sum()),
        noise=float((want - have).square().sum()),
        cosine=cosine(reference, measured),
        agreement=agreement,
        answers=answers,
        rows=tuple((metric.row(seen[0]), metric.row(seen[1])) for metric in judge.metrics),
    )


def _figures(metric: Metric, place: int, rows: Sequence[_Judged]) -> MetricFigures:
    if len({len(row.rows[place][i]) for row in rows for i in range(2)}) > 1:
        raise MetricError(
            "returns one number for some images and two for others",
            where=f"benchmark.metrics: {metric.name}",
            fix="return the same for each image",
        )
    reference, measured = (np.array([row.rows[place][i] for row in rows]) for i in range(2))
    width, sign = reference.shape[1], 1 if metric.higher_is_better else -1

    def drop(both: np.ndarray) -> float:
        return sign * (metric.figure(both[:, :width]) - metric.figure(both[:, width:]))

    by_chance = None
    if metric.of_images:
        better, worse = ((a > b).sum() for a, b in ((reference, measured), (measured, reference)))
        by_chance = mcnemar(int(better), int(worse))
    return MetricFigures(
        by_chance=by_chance,
        name=metric.name,
        higher_is_better=metric.higher_is_better,
        reference=metric.interval(reference),
        measured=metric.interval(measured),
        drop=bootstrap(drop, np.hstack([reference, measured])),
    )


def _flipped(rows: Sequence[_Judged], images: ImageSet) -> tuple[Flip, ...]:
    found = []
    for i, row in enumerate(rows):
        said, now = row.answers
        if said is None or now is None or said.value == now.value:
            continue
        label = images.labels[i] if images.labels is not None else None
        found.append(
            Flip(
                image=image_name(images.root, images.files[i]),
                reference=_named(said.value, images),
                measured=_named(now.value, images),
                reference_confidence=_known(said.confidence),
                measured_confidence=_known(now.confidence),
                label=None if label is None else _named(label, images),
            )
        )
    return tuple(sorted(found, key=lambda flip: -(flip.reference_confidence or 0.0)))


def image_name(folder: Path, path: Path) -> str:
    """An image's path below the folder, as a `Flip` names it; bytes that are no UTF-8 are written
    out, because JSON cannot hold them.

    >>> image_name(Path("photos"), Path("photos/cat/1.png"))
    'cat/1.png'
    """
    below = path.relative_to(folder) if path.is_relative_to(folder) else path
    return below.as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _named(answer: Any, images: ImageSet) -> str:
    """A class by its name, if it has one."""
    if isinstance(answer, int) and images.classes is not None:
        return str(images.classes[answer])
    return str(answer)


def _known(confidence: float) -> float | None:
    return confidence if math.isfinite(confidence) else None


def _right(rows: Sequence[_Judged], images: ImageSet) -> np.ndarray:
    """Whether each model's answer is the label, (images, 2)."""
    labels = images.labels or ()
    return np.array(
        [
            [answer is not None and str(answer.value) == str(label) for answer in row.answers]
            for row, label in zip(rows, labels, strict=True)
        ]
    )


def _per_class(rows: Sequence[_Judged], images: ImageSet) -> tuple[ClassFigures, ...]:
    labels, right = np.array(images.labels), _right(rows, images)
    found = []
    for label in np.unique(labels).tolist():
        of_class = right[labels == label]
        shares = [proportion(int(column.sum()), len(column)) for column in of_class.T]
        found.append(
            ClassFigures(
                name=images.classes[label] if images.classes else str(label),
                images=len(of_class),
                reference=shares[0],
                measured=shares[1],
            )
        )
    return tuple(found)


def _confidence(rows: Sequence[_Judged], images: ImageSet, judge: Judge) -> Confidence | None:
    """None without labels, or where an answer has no confidence."""
    if judge.decoder is None or images.labels is None:
        return None
    sure = np.array([[answer.confidence for answer in row.answers if answer] for row in rows])
    if not np.isfinite(sure).all():
        return None
    right = _right(rows, images)
    reference, measured = (np.stack([sure[:, i], right[:, i]], axis=1) for i in range(2))
    return compare_confidence(reference, measured, judge.required_accuracy)


def _agreement(rows: Sequence[_Judged], judge: Judge) -> Interval | None:
    if judge.decoder is not None:
        return proportion(round(sum(row.agreement for row in rows)), len(rows))
    # The pixels of an image are not independent: the interval is over images.
    return bootstrap(mean, np.array([row.agreement for row in rows])) if judge.pixels else None


def mean(values: np.ndarray) -> float:
    """For a bootstrap."""
    return float(values.mean())


def _ratio(energies: np.ndarray) -> float:
    return decibels(float(energies[:, 0].sum()), float(energies[:, 1].sum()))
