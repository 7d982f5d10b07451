"""Accuracy of a model against its float original, on images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qconvert.errors import LabelError, NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Progress, map_images, no_progress
from qconvert.measurement.statistics import Interval, bootstrap, decibels, proportion
from qconvert.records import Record

# Maps the inputs of one image to the output that is measured.
Model = Callable[..., Tensor]


class Comparison(Record):
    """One model against float. Shares are fractions; SQNR is of the outputs, in dB; cosine is of
    the angle between the two outputs of an image.

    What needs labels or answers is None where there is none. `agreement` is the share of images
    with the same answer, or of pixels where there is one answer a pixel. Detections have an
    agreement and nothing else: their number differs from model to model.
    """

    images: int
    float_top1: Interval | None
    top1: Interval | None
    float_top5: Interval | None
    top5: Interval | None
    agreement: Interval | None
    cosine: Interval | None
    lowest_cosine: float | None
    sqnr_db: Interval | None

    @property
    def top1_drop(self) -> float | None:
        """Float top-1 minus this model's; None without labels."""
        if self.float_top1 is None or self.top1 is None:
            return None
        return self.float_top1.value - self.top1.value


class _Seen(NamedTuple):
    """What is kept of one image: energies and cosine of the outputs, the share of equal answers,
    and the five largest outputs of each model, largest first (none where there is no one
    answer)."""

    signal: float
    noise: float
    cosine: float
    agreement: float
    float_top: tuple[int, ...]
    top: tuple[int, ...]


def compare(
    reference: Model,
    measured: Model,
    images: ImageSet,
    read: Reader,
    *,
    answers: bool,
    batch_size: int,
    progress: Progress = no_progress,
) -> Comparison:
    """Runs both models on every image and compares their outputs; memory does not grow with them.

    `answers`: the largest output along axis 1 is the answer, of the image (1, classes) or of each
    pixel (1, classes, height, width); else outputs are numbers without classes.

    Raises NotFiniteImageError that names the images on which `reference` is not finite.
    """

    def run(inputs: Inputs) -> _Seen:
        return _seen(reference(*inputs), measured(*inputs), answers)

    rows = list(map_images(run, images, read, batch_size=batch_size, progress=progress))
    wrong = [p for p, row in zip(images.files, rows, strict=True) if not math.isfinite(row.signal)]
    if wrong:
        raise NotFiniteImageError(
            [f"{path}: the float model computes NaN or infinity" for path in wrong]
        )
    cosines = np.array([row.cosine for row in rows])
    energies = np.array([(row.signal, row.noise) for row in rows])
    one_answer = answers and bool(rows[0].top)
    five = one_answer and len(rows[0].top) == _FIVE
    float_top = [row.float_top for row in rows] if one_answer else None
    top = [row.top for row in rows] if one_answer else None
    return Comparison(
        images=len(rows),
        float_top1=_share_right(float_top, images, 1),
        top1=_share_right(top, images, 1),
        float_top5=_share_right(float_top, images, 5) if five else None,
        top5=_share_right(top, images, 5) if five else None,
        agreement=_agreement(rows, one_answer) if answers else None,
        cosine=bootstrap(mean, cosines),
        lowest_cosine=float(cosines.min()),
        sqnr_db=bootstrap(_ratio, energies),
    )


# Top-5 is worth a line where there are more classes than five.
_FIVE = 5


def check_classes(images: ImageSet, outputs: int) -> None:
    """Raises LabelError when the labels cannot be the model's classes."""
    if images.labels is None:
        return
    fix = (
        "name all classes in `data.classes`, in the model's order, or `labels: none`; "
        "`model.answers: none` if the outputs are no classes"
    )
    if images.classes is None:
        if max(images.labels) >= outputs:
            raise LabelError(
                f"there is a label {max(images.labels)}, the model has {outputs} outputs",
                where=str(images.root),
                fix="count labels from 0; " + fix,
            )
    elif len(images.classes) != outputs:
        raise LabelError(
            f"there are {len(images.classes)} classes, the model has {outputs} outputs",
            where=str(images.root),
            fix=fix,
        )


def _seen(reference: Tensor, measured: Tensor, answers: bool) -> _Seen:
    """One image's outputs, (1, ...), compared."""
    want, have = reference.double().flatten(), measured.double().flatten()
    lengths = float(want.norm() * have.norm())
    agreement = 0.0
    if answers:
        agreement = float((reference.argmax(1) == measured.argmax(1)).double().mean())
    return _Seen(
        signal=float(want.square().sum()),
        noise=float((want - have).square().sum()),
        cosine=float(want @ have) / lengths if lengths else float(torch.equal(want, have)),
        agreement=agreement,
        float_top=_largest(reference) if answers else (),
        top=_largest(measured) if answers else (),
    )


def _largest(output: Tensor) -> tuple[int, ...]:
    """The indices of the largest outputs of one row, largest first; of equals the first comes
    first. Empty for maps."""
    if output.dim() != 2:
        return ()
    count = _FIVE if output.shape[1] > _FIVE else 1
    return tuple(torch.sort(output[0], descending=True, stable=True).indices[:count].tolist())


def _share_right(tops: list[tuple[int, ...]] | None, images: ImageSet, k: int) -> Interval | None:
    """The share of images whose label is among the `k` largest outputs."""
    if tops is None or images.labels is None:
        return None
    hits = sum(label in top[:k] for label, top in zip(images.labels, tops, strict=True))
    return proportion(hits, len(tops))


def _agreement(rows: list[_Seen], one_answer: bool) -> Interval:
    if one_answer:
        return proportion(round(sum(row.agreement for row in rows)), len(rows))
    # The pixels of an image are not independent: the interval is over images.
    return bootstrap(mean, np.array([row.agreement for row in rows]))


def mean(values: np.ndarray) -> float:
    """For a bootstrap."""
    return float(values.mean())


def _ratio(energies: np.ndarray) -> float:
    return decibels(float(energies[:, 0].sum()), float(energies[:, 1].sum()))
