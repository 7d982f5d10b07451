"""Figures and their intervals: known values, the same at every call, covering as often as said."""

from __future__ import annotations

import numpy as np
import pytest

from qconvert.measurement.statistics import Interval, bootstrap, decibels, median, proportion


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # The mirror image of 0 of 20; and one image.
        (20, 20, 0.8389, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_proportion_has_wilsons_interval(hits: int, total: int, low: float, high: float) -> None:
    found = proportion(hits, total)
    assert found.value == hits / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_bootstrap_is_the_same_each_time_and_leaves_the_random_state() -> None:
    rows = np.random.default_rng(3).normal(size=50)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    first = bootstrap(np.mean, rows)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    np.random.seed(2)
    assert bootstrap(np.mean, rows) == first
    assert first.low < first.value < first.high


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = bootstrap(lambda rows: float(rows.mean()), generator.normal(7, 2, 40))
        covered += found.low <= 7 <= found.high
    assert 88 <= covered <= 99


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    rows = np.random.default_rng(5).normal(size=400)
    found = bootstrap(lambda sample: float(sample.mean()), rows)
    assert found.value == pytest.approx(rows.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * rows.std() / 20, rel=0.1)


def test_bootstrap_draws_whole_rows() -> None:
    """Signal is twice the noise in every row: so it is in every draw."""
    noise = np.random.default_rng(0).uniform(1, 100, 30)
    rows = np.stack([2 * noise, noise], axis=1)
    found = bootstrap(lambda drawn: float(drawn[:, 0].sum() / drawn[:, 1].sum()), rows)
    assert (found.low, found.value, found.high) == pytest.approx((2, 2, 2))


def test_median_has_the_interval_of_its_ranks() -> None:
    """Of 99 values, the ranks 40 to 60 hold the median with 95 % (binomial)."""
    values = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))
    found = median(values)
    assert found.value == 50
    assert found.low == pytest.approx(40, abs=1.5)
    assert found.high == pytest.approx(60, abs=1.5)


def test_median_is_not_moved_by_an_outlier() -> None:
    values = [*([1.0] * 5), 2.0, *([3.0] * 4), 1e9]
    assert median(np.array(values)).value == 2.0


def test_one_measurement_is_its_own_interval() -> None:
    assert median(np.array([3])) == Interval(value=3, low=3, high=3)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100, 1, 20),
        (1, 1, 0),
        (1, 10, -10),
        (2, 1, 3.0103),
        (1, 0, 200),
        (0, 0, 200),
        (0, 1, -200),
        (1e300, 1e-300, 200),
        (1e-300, 1e300, -200),
    ],
)
def test_decibels_of_a_ratio_end_at_200(signal: float, noise: float, expected: float) -> None:
    assert decibels(signal, noise) == pytest.approx(expected, abs=1e-4)
