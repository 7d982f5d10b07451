"""Detections: boxes with a label and a score. Whether two models find the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.ops import box_iou

from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Others, Progress, Receiver, lend, map_images, no_progress
from qconvert.measurement.accuracy import Comparison, mean
from qconvert.measurement.statistics import bootstrap

# What torchvision's detection models return for each image.
KEYS = frozenset({"boxes", "labels", "scores"})
# A detection counts from this score on, and is the same as one that overlaps it by this much.
SCORE = 0.5
OVERLAP = 0.5

Detections = Mapping[str, Tensor]


def are_detections(result: Any) -> bool:
    """Whether a model's result is a list with the detections of each image."""
    return isinstance(result, (list, tuple)) and all(
        isinstance(image, Mapping) and image.keys() >= KEYS for image in result
    ) and bool(result)  # fmt: skip


def same_detections(want: Detections, have: Detections) -> float:
    """The share of detections that both models have: those matched by label and overlap, each once
    and the surest first, over the mean number of both; 1 where there are none.

    `boxes` are (N, 4) as x1, y1, x2, y2; `labels` and `scores` (N,).
    """
    wanted, found = (_sure(detections) for detections in (want, have))
    if not len(wanted["boxes"]) and not len(found["boxes"]):
        return 1.0
    overlap = box_iou(wanted["boxes"].double(), found["boxes"].double())
    overlap[wanted["labels"][:, None] != found["labels"][None]] = 0
    matched = 0
    for row in range(len(overlap)):
        best = int(overlap[row].argmax()) if overlap.shape[1] else 0
        if overlap.shape[1] and overlap[row, best] >= OVERLAP:
            matched += 1
            overlap[:, best] = 0
    return 2 * matched / sum(overlap.shape)


def _sure(detections: Detections) -> dict[str, Tensor]:
    scores = detections["scores"]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= SCORE]
    return {key: detections[key][order] for key in KEYS}


def compare_detections(
    reference: Callable[..., Any],
    measured: Callable[..., Any],
    images: ImageSet,
    read: Reader,
    *,
    batch_size: int,
    progress: Progress = no_progress,
    others: Others | None = None,
) -> Comparison:
    """Runs both models on every image; the agreement is the mean share of detections that both
    have (see `same_detections`), with its interval over images. `others` call `lend_detections`
    with the same."""
    found = map_images(
        _sharing(reference, measured), images, read,
        batch_size=batch_size, progress=progress, others=others,
    )  # fmt: skip
    shares = list(found)
    return Comparison(
        images=len(shares),
        agreement=bootstrap(mean, np.array(shares)),
    )


def lend_detections(
    reference: Callable[..., Any],
    measured: Callable[..., Any],
    images: ImageSet,
    read: Reader,
    receiver: Receiver,
    *,
    batch_size: int,
) -> None:
    """This rank's share of what rank 0 does in `compare_detections`."""
    run = _sharing(reference, measured)
    lend(lambda inputs, _: run(inputs), images, read, receiver, batch_size=batch_size)


def _sharing(
    reference: Callable[..., Any], measured: Callable[..., Any]
) -> Callable[[Inputs], float]:
    def run(inputs: Inputs) -> float:
        found: Sequence[Detections] = reference(*inputs)
        return same_detections(found[0], measured(*inputs)[0])

    return run
