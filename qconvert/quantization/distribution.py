"""Streamed distributions of tensors: exact, mergeable, independent of the order of images.

A histogram's bins are `[i * 2^k, (i + 1) * 2^k)` with the smallest `k` at which the range so far
fits into `BINS` bins. When the range grows, pairs of bins are added up: counts stay exact, and the
result depends only on the values seen, not on their order or on how they were split into parts.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BINS = 2048
# At most so many elements of one tensor of one image are counted in the histogram, evenly
# spaced; minimum and maximum are of all elements. Counting everything costs more than the model.
SAMPLED = 1 << 16
# Of many images fewer of each are enough; so many at least.
_LEAST_SAMPLED = 1 << 14
_OF_ALL_IMAGES = 1 << 20
_SMALLEST_EXPONENT = -100
_LARGE = 1e30


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

    `average_min` and `average_max` are the exponential averages of the images' ranges, which alone
    depend on the order.
    """

    images: int
    minimum: float
    maximum: float
    average_min: float
    average_max: float
    histogram: Histogram

    def __add__(self, other: Distribution) -> Distribution:
        """Of the images of both; the averages stay those of this one."""
        return replace(
            self,
            images=self.images + other.images,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            histogram=self.histogram + other.histogram,
        )


Range = tuple[float, float]


def moved(average: Range, new: Range, averaging: float) -> Range:
    """The moving average of ranges after one more, whose weight is `averaging`."""
    low, high = (a + averaging * (b - a) for a, b in zip(average, new, strict=True))
    return low, high


def averaging_to(seen: Distribution, average: Range) -> Distribution:
    """The distribution with the average of its images' ranges."""
    return replace(seen, average_min=average[0], average_max=average[1])


def outside(seen: Distribution, other: Distribution) -> float:
    """The share of the values seen that lie outside the range of another distribution, to half a
    bin."""
    centers = seen.histogram.centers.clip(seen.minimum, seen.maximum)
    beyond = (centers < other.minimum) | (centers > other.maximum)
    return float(seen.histogram.counts[beyond].sum() / seen.histogram.counts.sum())


class Glimpse(NamedTuple):
    """One image's tensor in four numbers: its range; and of the elements that are counted, the mean
    and the mean of the absolute values."""

    low: float
    high: float
    mean: float
    size: float


class Growing:
    """The distribution of a tensor to which images are added, by any number of threads: the sum of
    what `observe` finds in each, at the cost of one more array of counts."""

    def __init__(self, sampled: int = SAMPLED) -> None:
        self._lock = threading.Lock()
        self._sampled = sampled
        self.images = 0
        self._range = (math.inf, -math.inf)
        self._exponent, self._first = 0, 0
        self._counts = np.zeros(0, np.int64)

    def add(self, x: Tensor) -> Glimpse:
        """Adds an image's tensor (float32, any shape with elements), and returns what it was.

        Raises NotFiniteError for NaN or infinity; nothing is added then.
        """
        low, high = _extremes(x)
        values = np.ascontiguousarray(_sample(x, self._sampled))
        with self._lock:
            self._make_room(low, high)
            self._counts += _counts(values, self._exponent, self._first, len(self._counts))
            self._range = min(self._range[0], low), max(self._range[1], high)
            self.images += 1
        # float32 is faster, but its sums of large values are not finite.
        dtype = np.float64 if max(-low, high) > _LARGE else None
        mean = float(values.mean(dtype=dtype))
        size = abs(mean) if low >= 0 or high <= 0 else float(np.abs(values).mean(dtype=dtype))
        return Glimpse(low, high, mean, size)

    def _make_room(self, low: float, high: float) -> None:
        first, last = _bin(low, self._exponent), _bin(high, self._exponent)
        if self.images and self._first <= first and last < self._first + len(self._counts):
            return
        room = _empty(low, high)
        if self.images:
            room = Histogram(self._exponent, self._first, self._counts) + room
        self._exponent, self._first, self._counts = room.exponent, room.first, room.counts

    @property
    def distribution(self) -> Distribution:
        """Of all images so far; the averages are the whole range."""
        histogram = Histogram(self._exponent, self._first, self._counts)
        return Distribution(self.images, *self._range, *self._range, histogram)


def sampled_of(images: int) -> int:
    """How many elements of a tensor are counted of each of so many images."""
    return min(max(_OF_ALL_IMAGES // images, _LEAST_SAMPLED), SAMPLED)


def observe(x: Tensor) -> Distribution:
    """The distribution of one image's tensor: float32, any shape.

    Raises NotFiniteError for NaN or infinity.
    """
    growing = Growing()
    growing.add(x)
    return growing.distribution


def _extremes(x: Tensor) -> Range:
    low, high = torch.aminmax(x)
    # `+ 0.0` makes zero of minus zero: which of the two is the minimum depends on the order.
    found = float(low) + 0.0, float(high) + 0.0
    if not (math.isfinite(found[0]) and math.isfinite(found[1])):
        raise NotFiniteError
    return found


def _sample(x: Tensor, count: int) -> np.ndarray:
    """Evenly spaced elements, in the order of memory; every channel and position has its turn."""
    if x.dim() == 4:
        x = x.permute(0, 2, 3, 1) if x.is_contiguous(memory_format=torch.channels_last) else x
    flat: np.ndarray = x.reshape(-1).numpy()
    step = -(-len(flat) // count)
    while math.gcd(step, len(flat)) > 1:
        step += 1  # a common divisor would skip whole channels, rows or columns
    return flat[::step]


def _bin(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _empty(low: float, high: float) -> Histogram:
    """With room for a range, and nothing counted."""
    exponent = _exponent(low, high)
    first = _bin(low, exponent)
    return Histogram(exponent, first, np.zeros(_bin(high, exponent) - first + 1, np.int64))


def _counts(values: np.ndarray, exponent: int, first: int, length: int) -> np.ndarray:
    """How many values (float32) are in each of `length` bins."""
    # Powers of two divide exactly, also in float32.
    bins = values * np.float32(math.ldexp(1.0, -exponent))
    np.floor(bins, out=bins)
    return np.bincount(bins.astype(np.int64) - first, minlength=length)


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
