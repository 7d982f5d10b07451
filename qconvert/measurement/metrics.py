"""Figures of one model against labels. Each is made of a row of numbers for each image, so that it
has an interval, and memory does not grow with the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores
from torchmetrics.functional.text import edit_distance

from qconvert.errors import LabelError, MetricError
from qconvert.images.masks import IGNORED
from qconvert.measurement.answers import Answer
from qconvert.measurement.statistics import Interval, bootstrap, proportion
from qconvert.user_code import guarded

Row = tuple[float, ...]


class Seen(NamedTuple):
    """What a model says of one image: `output` (1, …), its answer if it has one, the float model's
    output, and the label: a class's index, a text, a mask (height, width), or None."""

    output: Tensor
    answer: Answer | None
    reference: Tensor
    label: Any


class Metric:
    """A figure; the mean of rows of one number, the ratio of the sums of rows of two."""

    name: str
    higher_is_better: bool = True
    # Whether each image is right or not, one number of 1 or 0.
    of_images: bool = False

    def row(self, seen: Seen) -> Row:
        """The numbers of one image; the same count for each."""
        raise NotImplementedError

    def figure(self, rows: np.ndarray) -> float:
        """The figure of all images, (images, numbers)."""
        if rows.shape[1] == 1:
            return float(rows.mean())
        above, below = rows.sum(axis=0)
        return float(above / below) if below else math.nan

    def interval(self, rows: np.ndarray) -> Interval:
        """The figure with its interval over images."""
        return bootstrap(self.figure, rows)


class _Share(Metric):
    """Of images that are right or not."""

    of_images = True

    def interval(self, rows: np.ndarray) -> Interval:
        """See `Metric`; Wilson's."""
        return proportion(round(float(rows.sum())), len(rows))


class TopK(_Share):
    """The share of images whose class is among the `k` largest outputs of (1, classes); of equals
    the first come first."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.name = f"top{k}"

    def row(self, seen: Seen) -> Row:
        """See `Metric`."""
        order = torch.sort(seen.output[0], descending=True, stable=True).indices[: self.k]
        return (float(seen.label in order.tolist()),)


class ExactMatch(_Share):
    """The share of answers that are the label."""

    name = "exact_match"

    def row(self, seen: Seen) -> Row:
        """See `Metric`."""
        return (float(_text(seen) == seen.label),)


class CharacterErrorRate(Metric):
    """Levenshtein's distance of the texts over the length of the right ones."""

    name = "character_error_rate"
    higher_is_better = False

    def row(self, seen: Seen) -> Row:
        """See `Metric`."""
        distance = edit_distance([_text(seen)], [seen.label], reduction="sum")
        return float(distance), float(len(seen.label))


def _text(seen: Seen) -> str:
    assert seen.answer is not None
    return str(seen.answer.value)


class MeanIou(Metric):
    """Intersection over union of the pixels of each class, summed over images, and its mean over
    the classes that are anywhere. Outputs (1, classes, height, width) of another size than the mask
    are scaled to it, bilinear; pixels of `IGNORED` do not count."""

    name = "mean_iou"

    def row(self, seen: Seen) -> Row:
        """See `Metric`: the intersections of the classes, then their unions."""
        output, mask = seen.output, seen.label
        classes = output.shape[1]
        if output.shape[2:] != mask.shape:
            output = F.interpolate(output, size=tuple(mask.shape), mode="bilinear")
        counted = mask[mask != IGNORED]
        if counted.numel() and int(counted.max()) >= classes:
            raise LabelError(
                f"a mask holds {int(counted.max())}, the model has {classes} classes",
                where="data.labels",
                fix=f"count classes from 0; {IGNORED} is of no class",
            )
        scores = multiclass_stat_scores(
            output.argmax(1), mask.unsqueeze(0), classes, average=None, ignore_index=IGNORED
        )
        right, wrong, _, missed, _ = scores.T.double()
        return tuple(torch.cat([right, right + wrong + missed]).tolist())

    def figure(self, rows: np.ndarray) -> float:
        """See `Metric`."""
        above, below = np.split(rows.sum(axis=0), 2)
        there = below > 0
        return float((above[there] / below[there]).mean()) if there.any() else math.nan


class Cosine(Metric):
    """Of the angle between a model's outputs and float's."""

    name = "cosine"

    def row(self, seen: Seen) -> Row:
        """See `Metric`."""
        return (cosine(seen.reference, seen.output),)


@dataclass(frozen=True)
class Users(Metric):
    """The user's own: from the output of one image (its answer, `of_answers`) and its label to a
    number, whose mean is taken, or to two, of which the sums are divided."""

    name: str
    function: Callable[..., Any]
    of_answers: bool

    def row(self, seen: Seen) -> Row:
        """See `Metric`; raises MetricError for what is no number."""
        given = seen.answer.value if self.of_answers and seen.answer else seen.output
        with guarded("calling it", MetricError, f"benchmark.metrics: {self.name}"):
            found = self.function(given, seen.label)
        numbers = found if isinstance(found, (tuple, list)) else (found,)
        try:
            row = tuple(float(number) for number in numbers)
        except (TypeError, ValueError):
            row = ()
        if len(row) not in (1, 2) or not all(map(math.isfinite, row)):
            raise MetricError(
                f"returned {found!r:.100}",
                where=f"benchmark.metrics: {self.name}",
                fix="return a number, or two whose sums over the images are divided",
            )
        return row


def cosine(first: Tensor, second: Tensor) -> float:
    """Of the angle between two outputs; 1 where both are zero."""
    a, b = first.double().flatten(), second.double().flatten()
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths else float(torch.equal(a, b))
