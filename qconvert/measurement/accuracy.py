"""Accuracy of a model against its float original, on images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from qconvert.errors import ImageError
from qconvert.images.folder import ImageSet
from qconvert.images.stream import Progress, map_images, no_progress
from qconvert.measurement.statistics import Interval, bootstrap, decibels, proportion
from qconvert.qconfig import Preprocess
from qconvert.records import Record


class Comparison(Record):
    """One model against float. Shares are fractions; SQNR is of the outputs, in dB.

    What needs labels or one answer an image is None where there is none.
    """

    images: int
    float_top1: Interval | None
    top1: Interval | None
    float_top5: Interval | None
    top5: Interval | None
    agreement: Interval | None
    sqnr_db: Interval

    @property
    def top1_drop(self) -> float | None:
        """Float top-1 minus this model's; None without labels."""
        if self.float_top1 is None or self.top1 is None:
            return None
        return self.float_top1.value - self.top1.value


def outputs(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batch_size: int,
    progress: Progress = no_progress,
) -> dict[str, np.ndarray]:
    """Every model's output for every image, float32, (images, …); an image is decoded once."""

    def run(x: Tensor) -> list[np.ndarray]:
        return [model(x)[0].numpy().copy() for model in models.values()]

    rows = list(map_images(run, images, preprocess, batch_size=batch_size, progress=progress))
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(models)}


def compare(reference: np.ndarray, measured: np.ndarray, images: ImageSet) -> Comparison:
    """Compares a model's outputs with those of float, (images, classes) or (images, …).

    Raises ImageError when the number of classes is not that of the outputs.
    """
    answers = reference.ndim == 2 and reference.shape[1] > 1
    labels = None
    if answers and images.labels is not None and images.classes is not None:
        labels = np.array(images.labels)
        check_classes(images, reference.shape[1])
    five = answers and reference.shape[1] > 5
    same = int((reference.argmax(1) == measured.argmax(1)).sum()) if answers else 0
    return Comparison(
        images=len(reference),
        float_top1=_top(reference, labels, 1) if answers else None,
        top1=_top(measured, labels, 1) if answers else None,
        float_top5=_top(reference, labels, 5) if five else None,
        top5=_top(measured, labels, 5) if five else None,
        agreement=proportion(same, len(reference)) if answers else None,
        sqnr_db=_sqnr(reference, measured),
    )


def check_classes(images: ImageSet, outputs: int) -> None:
    """Raises ImageError when the labels cannot be the model's classes."""
    if images.labels is not None and len(images.classes or ()) != outputs:
        raise ImageError(
            f"there are {len(images.classes or ())} classes, the model has {outputs} outputs",
            where=str(images.root),
            fix="name all classes in `data.classes`, in the model's order, or `labels: none`",
        )


def _top(values: np.ndarray, labels: np.ndarray | None, k: int) -> Interval | None:
    """The share of images whose label is among the `k` largest outputs."""
    if labels is None:
        return None
    largest = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return proportion(int((largest == labels[:, None]).any(1).sum()), len(labels))


def _sqnr(reference: np.ndarray, measured: np.ndarray) -> Interval:
    """Signal to quantization noise of all outputs; the interval is over images."""
    signal = np.square(reference.astype(np.float64)).reshape(len(reference), -1).sum(1)
    error = reference.astype(np.float64) - measured
    noise = np.square(error).reshape(len(reference), -1).sum(1)

    def ratio(rows: np.ndarray) -> float:
        return decibels(float(rows[:, 0].sum()), float(rows[:, 1].sum()))

    return bootstrap(ratio, np.stack([signal, noise], axis=1))
