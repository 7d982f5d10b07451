"""How ranges come about from the images: which image widens which, and whether more would.

A range is from the smallest to the largest value and holds zero, as int8 does. Observers may choose
narrower ones; those change less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.special import gammaln

# An image that widens a range by more than this costs it a bit.
STRETCHING = 2.0
# At most this share of the images is looked for among those that stretch.
_FEW = 0.05
# Where more than this share stretches something, there is nothing that is usual.
_SOME = 0.25
# Ranges that come from nothing are said to be so much wider.
_MOST = 1000.0


def ranges_of(tensors: Mapping[str, np.ndarray], images: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of each tensor in each image, float64: lower and upper ends, (images, tensors);
    `tensors` are those of `SetFacts`."""
    rows = np.zeros((images, len(tensors), 2))
    for i, found in enumerate(tensors.values()):
        rows[:, i] = found[:, :2]
    return np.minimum(rows[..., 0], 0.0), np.maximum(rows[..., 1], 0.0)


def stretching(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images widen which ranges: a factor for each image and tensor, beside those images that
    widen none by more than `STRETCHING`; and for each tensor that of all together.

    At most one image in twenty (or one) is looked for, so that two that stretch the same tensor do
    not hide each other."""
    count = len(low)
    few = max(1, int(_FEW * count))
    if count <= 2 * few:
        return np.ones_like(low), np.ones(low.shape[1])
    usual_low = np.partition(low, few, axis=0)[few]
    usual_high = np.partition(high, count - 1 - few, axis=0)[count - 1 - few]
    found = _factors(low, high, usual_low, usual_high)
    while True:
        apart = (found > STRETCHING).any(1)
        if apart.mean() > _SOME:
            return np.ones_like(low), np.ones(low.shape[1])
        rest_low, rest_high = low[~apart].min(0), high[~apart].max(0)
        found = _factors(low, high, rest_low, rest_high)
        found[~apart] = 1.0
        # Beside those that were let off, others may stretch less.
        if ((found > STRETCHING).any(1) == apart).all():
            break
    together = _factors(low.min(0)[None], high.max(0)[None], rest_low, rest_high)[0]
    return found, together


def _factors(
    low: np.ndarray, high: np.ndarray, usual_low: np.ndarray, usual_high: np.ndarray
) -> np.ndarray:
    """How much wider ranges are with an image than without."""
    without = usual_high - usual_low
    together = np.maximum(high, usual_high) - np.minimum(low, usual_low)
    factors = together / np.where(without > 0, without, 1.0)
    return np.where(without > 0, factors, np.where(together > 0, _MOST, 1.0)).clip(max=_MOST)


def growth(low: np.ndarray, high: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Numbers of images, and the width of each range with so many of them as a share of what it is
    with all: (numbers, tensors), the mean over all choices of images."""
    count = len(low)
    numbers = sorted({max(1, count >> halved) for halved in range(count.bit_length())})
    weights = np.stack([_of_largest(count, number) for number in numbers])
    upper = weights @ np.sort(high, axis=0)
    lower = weights @ -np.sort(-low, axis=0)
    width = high.max(0) - low.min(0)
    shares = (upper - lower) / np.where(width > 0, width, 1.0)
    return numbers, np.where(width > 0, shares, 1.0)


def _of_largest(count: int, number: int) -> np.ndarray:
    """How likely each of `count` values, sorted, is the largest of `number` that are drawn."""
    place = np.arange(1, count + 1)
    ways = np.where(place >= number, _log_choices(np.maximum(place - 1, number - 1), number - 1),
                    -np.inf)  # fmt: skip
    found: np.ndarray = np.exp(ways - _log_choices(np.array(count), number))
    return found / found.sum()


def _log_choices(of: np.ndarray, number: int) -> np.ndarray:
    found: np.ndarray = gammaln(of + 1) - gammaln(number + 1) - gammaln(of - number + 1)
    return found
