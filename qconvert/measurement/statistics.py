"""Figures with their spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qconvert.records import Record

CONFIDENCE = 0.95
_RESAMPLES = 1000


class Interval(Record):
    """A figure and its 95 % interval, in the figure's own unit."""

    value: float
    low: float
    high: float


def proportion(hits: int, total: int) -> Interval:
    """A share with its Wilson score interval (Wilson 1927).

    >>> share = proportion(90, 100)
    >>> round(share.low, 3), share.value, round(share.high, 3)
    (0.826, 0.9, 0.945)
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(value=hits / total, low=float(interval.low), high=float(interval.high))


def mcnemar(only_first: int, only_second: int) -> float:
    """The probability that two models which are equally often right differ at least so much, of
    images that only one of them gets right: McNemar's test, exact (McNemar 1947).

    >>> mcnemar(0, 0), mcnemar(6, 0), round(mcnemar(12, 4), 4)
    (1.0, 0.03125, 0.0768)
    """
    from scipy.stats import binomtest

    either = only_first + only_second
    return float(binomtest(only_first, either, 0.5).pvalue) if either else 1.0


def decibels(signal: float, noise: float) -> float:
    """Ten times the decimal logarithm of a ratio of energies, between -200 and 200.

    >>> decibels(100.0, 1.0), decibels(1.0, 0.0)
    (20.0, 200.0)
    """
    if noise <= 0:
        return 200.0
    ratio = min(max(signal / noise, 1e-20), 1e20)
    return 10 * math.log10(ratio)


def bootstrap(statistic: Callable[[np.ndarray], float], rows: np.ndarray) -> Interval:
    """A statistic of rows with its percentile bootstrap interval; seeded."""
    (interval,) = bootstraps(lambda drawn: (statistic(drawn),), rows)
    return interval


def bootstraps(
    statistics: Callable[[np.ndarray], Sequence[float]], rows: np.ndarray
) -> list[Interval]:
    """Several statistics of the same draws."""
    generator = np.random.default_rng(0)
    draws = [
        statistics(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(_RESAMPLES)
    ]
    # A share of nothing is NaN: a draw without any of what is counted.
    bounds = np.nanquantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return [
        Interval(value=float(value), low=float(low), high=float(high))
        for value, low, high in zip(statistics(rows), *bounds, strict=True)
    ]


def median(values: np.ndarray) -> Interval:
    """The median of measurements with the bootstrap interval of the median."""
    return bootstrap(lambda rows: float(np.median(rows)), np.asarray(values, dtype=np.float64))
