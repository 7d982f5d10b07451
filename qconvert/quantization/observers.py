"""Observers: the range of a tensor from its distribution. Ranges are widened to hold zero later.

Each takes a `Distribution` and the settings of the scheme, and returns (minimum, maximum).
"""

from __future__ import annotations

import math

import numpy as np

from qconvert.quantization.distribution import Distribution

# The candidates of the least-squares search: these shares of each end of the range.
_SHARES = np.linspace(0.1, 1.0, 91)


def minmax(seen: Distribution, *, percentile: float, levels: int) -> tuple[float, float]:
    """The smallest and the largest value of all images."""
    return seen.minimum, seen.maximum


def moving_average(seen: Distribution, *, percentile: float, levels: int) -> tuple[float, float]:
    """The images' ranges, averaged exponentially."""
    return seen.average_min, seen.average_max


def percentile(seen: Distribution, *, percentile: float, levels: int) -> tuple[float, float]:
    """The narrowest range that leaves out at most `1 - percentile` of the values at each end."""
    counts, total = seen.histogram.counts, int(seen.histogram.counts.sum())
    outside = left_out(percentile, total)
    if outside == 0:  # the histogram counts a sample, the ends are those of all values
        return seen.minimum, seen.maximum
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    first = int(np.searchsorted(below, outside, side="right"))
    last = len(counts) - 1 - int(np.searchsorted(above, outside, side="right"))
    width = 2.0**seen.histogram.exponent
    low = (seen.histogram.first + min(first, len(counts) - 1)) * width
    high = (seen.histogram.first + max(last, 0) + 1) * width
    return max(low, seen.minimum), min(high, seen.maximum)


def left_out(percentile: float, total: int) -> int:
    """How many of `total` values may lie outside at each end.

    >>> left_out(0.9, 10)
    1
    """
    # 1 - 0.9 is 0.09999999999999998.
    return math.floor(round((1 - percentile) * total, 6))


def least_squares(seen: Distribution, *, percentile: float, levels: int) -> tuple[float, float]:
    """The range whose `levels` + 1 steps reproduce the values with the least squared error.

    The ends are searched in turn, on the histogram; wide outliers are clipped where the finer
    steps for all other values are worth it.
    """
    centers = seen.histogram.centers.clip(seen.minimum, seen.maximum)
    counts = seen.histogram.counts.astype(np.float64)
    used = counts > 0
    centers, counts = centers[used], counts[used]
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    for _ in range(2 if low < 0 < high else 1):
        if high > 0:
            tried = _SHARES * max(seen.maximum, 0.0)
            high = float(tried[_errors(centers, counts, np.full_like(tried, low), tried, levels)])
        if low < 0:
            tried = _SHARES * min(seen.minimum, 0.0)
            low = float(tried[_errors(centers, counts, tried, np.full_like(tried, high), levels)])
    return low, high


def _errors(
    centers: np.ndarray, counts: np.ndarray, low: np.ndarray, high: np.ndarray, levels: int
) -> int:
    """The index of the candidate range with the least squared error."""
    scale = np.maximum((high - low) / levels, 1e-30)[:, None]
    zero_point = np.round(-low[:, None] / scale)
    integers = np.clip(np.round(centers / scale) + zero_point, 0, levels)
    errors = ((integers - zero_point) * scale - centers) ** 2 @ counts
    return int(errors.argmin())
