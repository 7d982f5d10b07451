"""Whether a model knows when it is right: calibration error, and the share of images that it may
answer alone.

A model that decides alone when it is sure, and asks a human when it is not, accepts an image when
its confidence reaches a threshold (selective classification: Geifman and El-Yaniv 2017,
arXiv:1705.08500). Its automation rate is the largest share of images that can be accepted so that
the required share of the accepted answers is right.
"""

from __future__ import annotations

import math

import numpy as np

from qconvert.measurement.statistics import Interval, bootstrap, bootstraps
from qconvert.records import Record

_BINS = 15
# Of the curve in the report; more could not be seen.
_POINTS = 200


class Automation(Record):
    """Images whose confidence is at least `threshold`: their share of all (`rate`), and the share
    of right answers among them. Without a threshold none is accepted."""

    threshold: float | None
    rate: Interval
    accuracy: float | None


class Confidence(Record):
    """Float against another model; shares are fractions.

    `reference` and `measured` have the threshold that gives each model its largest rate at
    `required_accuracy` on these images; `carried` is the measured model at float's threshold.
    `drop` is float's rate minus the other's, each with its own threshold. Calibration errors are
    the expected difference between confidence and accuracy, in 15 bins of confidence. Curves are
    points (rate, accuracy), from the surest image to all.
    """

    required_accuracy: float
    reference_calibration_error: Interval
    calibration_error: Interval
    reference: Automation
    measured: Automation
    carried: Automation
    drop: Interval
    reference_curve: tuple[tuple[float, float], ...]
    curve: tuple[tuple[float, float], ...]


def compare_confidence(
    reference: np.ndarray, measured: np.ndarray, required_accuracy: float
) -> Confidence:
    """Of rows (images, 2): confidence from 0 to 1, and whether the answer is right, 0 or 1."""
    required = required_accuracy
    float_threshold, threshold = (_threshold(rows, required) for rows in (reference, measured))

    def rates(both: np.ndarray) -> tuple[float, float, float, float]:
        first, second = both[:, :2], both[:, 2:]
        carried, own = (_threshold(rows, required) for rows in (first, second))
        before, after = _share(first, carried), _share(second, own)
        return before, after, _share(second, carried), before - after

    before, after, carried, drop = bootstraps(rates, np.hstack([reference, measured]))
    return Confidence(
        required_accuracy=required,
        reference_calibration_error=bootstrap(calibration_error, reference),
        calibration_error=bootstrap(calibration_error, measured),
        reference=_automation(reference, float_threshold, before),
        measured=_automation(measured, threshold, after),
        carried=_automation(measured, float_threshold, carried),
        drop=drop,
        reference_curve=curve(reference),
        curve=curve(measured),
    )


def calibration_error(rows: np.ndarray) -> float:
    """Expected calibration error (Naeini et al. 2015, Guo et al. 2017) of rows (confidence, right):
    the mean distance of the two in a bin, by the bin's images. torchmetrics gives the same figure
    and takes 9 ms for it, a thousand times for an interval."""
    bins = np.minimum((rows[:, 0] * _BINS).astype(int), _BINS - 1)
    sums = (np.bincount(bins, weights=column, minlength=_BINS) for column in rows.T)
    return float(np.abs(next(sums) - next(sums)).sum()) / len(rows)


def curve(rows: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Accuracy of the accepted images against their share, for each threshold, at most `_POINTS`
    of them."""
    _, counts, right = _accepted(rows)
    points = np.unique(np.linspace(0, len(counts) - 1, _POINTS).round().astype(int))
    return tuple((counts[i] / len(rows), right[i] / counts[i]) for i in points.tolist())


def _accepted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each confidence, the highest first: how many images have at least that, and how many of
    their answers are right."""
    rows = rows[np.argsort(-rows[:, 0])]
    # Images that are equally sure are accepted together.
    ends = np.flatnonzero(np.append(rows[1:, 0] != rows[:-1, 0], True))
    return rows[ends, 0], ends + 1, rows[:, 1].cumsum()[ends]


def _threshold(rows: np.ndarray, required: float) -> float:
    """The lowest confidence from which on the required share of answers is right; infinite when
    there is none."""
    values, counts, right = _accepted(rows)
    # 0.99 of 100 is 99, not a little less.
    enough = np.flatnonzero(right >= required * counts - 1e-9)
    return float(values[enough[-1]]) if len(enough) else math.inf


def _share(rows: np.ndarray, threshold: float) -> float:
    return float((rows[:, 0] >= threshold).mean())


def _automation(rows: np.ndarray, threshold: float, rate: Interval) -> Automation:
    accepted = rows[rows[:, 0] >= threshold]
    return Automation(
        threshold=threshold if math.isfinite(threshold) else None,
        rate=rate,
        accuracy=float(accepted[:, 1].mean()) if len(accepted) else None,
    )
