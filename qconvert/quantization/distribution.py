"""Streamed distributions of tensors: exact, mergeable, independent of the order of images.

A histogram's bins are `[i * 2^k, (i + 1) * 2^k)` with the smallest `k` at which the range so far
fits into `BINS` bins. When the range grows, pairs of bins are added up: counts stay exact, and the
result depends only on the values seen, not on their order or on how they were split into parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BINS = 2048
# At most so many elements of one tensor of one image are counted in the histogram, evenly
# spaced; minimum and maximum are of all elements. Counting everything costs more than the model.
SAMPLED = 1 << 16
_SMALLEST_EXPONENT = -100


class NotFiniteError(ValueError):
    """A tensor holds NaN or infinity."""


@dataclass(frozen=True)
class Histogram:
    """Counts (int64) of the bins `first`, `first + 1`, … of width `2**exponent`."""

    exponent: int
    first: int
    counts: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin (float64)."""
        return (np.arange(len(self.counts)) + self.first + 0.5) * 2.0**self.exponent

    def coarser(self, exponent: int) -> Histogram:
        """The same counts in bins of width `2**exponent`, which is not smaller."""
        shift = exponent - self.exponent
        if shift == 0:
            return self
        bins = (np.arange(len(self.counts), dtype=np.int64) + self.first) >> min(shift, 62)
        first = int(bins[0])
        counts = np.zeros(int(bins[-1]) - first + 1, np.int64)
        np.add.at(counts, bins - first, self.counts)
        return Histogram(exponent, first, counts)

    def __add__(self, other: Histogram) -> Histogram:
        exponent = max(self.exponent, other.exponent)
        while True:
            a, b = self.coarser(exponent), other.coarser(exponent)
            first = min(a.first, b.first)
            last = max(a.first + len(a.counts), b.first + len(b.counts))
            if last - first <= BINS:
                break
            exponent += 1
        counts = np.zeros(last - first, np.int64)
        for part in (a, b):
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return Histogram(exponent, first, counts)


@dataclass(frozen=True)
class Distribution:
    """What is known of a tensor: of one image, or of many after `+`.

    `channel_min` and `channel_max` (float32) run along axis 1; of images that differ in its length
    (the steps of a line of text) there is one value. `average_min` and `average_max` are
    the exponential averages of the images' ranges, which alone depend on the order.
    """

    images: int
    minimum: float
    maximum: float
    average_min: float
    average_max: float
    channel_min: np.ndarray
    channel_max: np.ndarray
    histogram: Histogram

    def merged(self, later: Distribution, averaging: float) -> Distribution:
        """This distribution and one more image's; `averaging` is the weight of the new image."""
        return Distribution(
            self.images + later.images,
            min(self.minimum, later.minimum),
            max(self.maximum, later.maximum),
            averaged(self.average_min, later.average_min, averaging),
            averaged(self.average_max, later.average_max, averaging),
            _joined(np.minimum, self.channel_min, later.channel_min),
            _joined(np.maximum, self.channel_max, later.channel_max),
            self.histogram + later.histogram,
        )


def averaged(old: float, new: float, averaging: float) -> float:
    """The moving average `old` after one more value, whose weight is `averaging`."""
    return old + averaging * (new - old)


def _joined(extreme: np.ufunc, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape != b.shape:
        a, b = (extreme.reduce(side, keepdims=True) for side in (a, b))
    joined: np.ndarray = extreme(a, b)
    return joined


def observe(x: Tensor) -> Distribution:
    """The distribution of one image's tensor: float32, (1, channels, …).

    Raises NotFiniteError for NaN or infinity.
    """
    axes = tuple(axis for axis in range(x.dim()) if axis != 1) or (0,)
    # `+ 0.0` makes zero of minus zero: which of the two is the minimum depends on the order.
    channel_min, channel_max = x.amin(axes) + 0.0, x.amax(axes) + 0.0
    minimum, maximum = float(channel_min.min()), float(channel_max.max())
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        raise NotFiniteError
    return Distribution(
        1, minimum, maximum, minimum, maximum,
        channel_min.reshape(-1).numpy().copy(), channel_max.reshape(-1).numpy().copy(),
        _count(_sample(x), minimum, maximum),
    )  # fmt: skip


def _sample(x: Tensor) -> Tensor:
    """Evenly spaced elements, in the order of memory; every channel and position has its turn."""
    if x.dim() == 4:
        x = x.permute(0, 2, 3, 1) if x.is_contiguous(memory_format=torch.channels_last) else x
    flat = x.reshape(-1)
    step = -(-flat.numel() // SAMPLED)
    while math.gcd(step, flat.numel()) > 1:
        step += 1  # a common divisor would skip whole channels, rows or columns
    return flat[::step]


def _count(values: Tensor, minimum: float, maximum: float) -> Histogram:
    exponent = _exponent(minimum, maximum)
    width = math.ldexp(1.0, exponent)
    first, last = math.floor(minimum / width), math.floor(maximum / width)
    # Powers of two divide exactly, also in float32.
    bins = (values * (1.0 / width)).floor_().to(torch.int64).sub_(first)
    return Histogram(exponent, first, torch.bincount(bins, minlength=last - first + 1).numpy())


def _exponent(minimum: float, maximum: float) -> int:
    """The smallest exponent at which the bins from minimum to maximum are at most BINS.

    A constant would fit into any: its bin is so narrow that other images set the exponent.
    """
    width = (maximum - minimum) / BINS or abs(minimum) * 2.0**-40
    exponent = max(math.frexp(width)[1] - 1, _SMALLEST_EXPONENT) if width else _SMALLEST_EXPONENT
    while (
        math.floor(math.ldexp(maximum, -exponent)) - math.floor(math.ldexp(minimum, -exponent))
        >= BINS
    ):
        exponent += 1
    return exponent
