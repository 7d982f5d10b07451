"""Which images widen ranges, and whether more images would."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from qconvert.quantization.audit.ranges import growth, ranges_of, stretching


def uniform(images: int, tensors: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranges that differ by a tenth."""
    random = np.random.default_rng(0)
    return -random.uniform(0.9, 1, (images, tensors)), random.uniform(0.9, 1, (images, tensors))


def test_ranges_hold_zero() -> None:
    rows = np.array([[2, 5, 3, 3], [-7, -1, -3, 3]], np.float32)
    low, high = ranges_of({"x": rows}, 2)
    assert low.tolist() == [[0], [-7]]
    assert high.tolist() == [[5], [0]]


def test_images_that_stretch_a_range_together_do_not_hide_each_other() -> None:
    low, high = uniform(60, 5)
    high[7, 2], high[31, 2], low[50, 4] = 9, 8, -5
    factors, together = stretching(low, high)
    assert np.flatnonzero((factors > 2).any(1)).tolist() == [7, 31, 50]
    usual = np.delete(high[:, 2], [7, 31]).max() - np.delete(low[:, 2], [7, 31, 50]).min()
    assert factors[7, 2] == pytest.approx((9 - low[:, 2].min()) / usual, rel=0.01)
    assert together[2] == factors[7, 2]
    assert together[[0, 1, 3]].max() < 1.2


def test_nobody_stretches_where_many_do() -> None:
    """A quarter of the images has another range: that is how the set is."""
    low, high = uniform(60, 5)
    high[::4] *= 10
    assert (stretching(low, high)[0] == 1).all()
    assert (stretching(*uniform(60, 5))[0] == 1).all()


def test_range_that_comes_from_nothing_is_stretched_by_a_finite_factor() -> None:
    low, high = np.zeros((40, 1)), np.zeros((40, 1))
    assert stretching(low, high)[1].tolist() == [1]
    high[3] = 1
    assert stretching(low, high)[1].tolist() == [1000]


@pytest.mark.parametrize("images", [2, 5, 8])
def test_growth_is_the_mean_over_all_choices_of_images(images: int) -> None:
    random = np.random.default_rng(1)
    low, high = -random.exponential(size=(images, 3)), random.exponential(size=(images, 3))
    numbers, shares = growth(low, high)
    assert numbers[0] == 1
    assert numbers[-1] == images
    width = high.max(0) - low.min(0)
    for number, share in zip(numbers, shares, strict=True):
        chosen = [list(c) for c in combinations(range(images), number)]
        widths = [high[c].max(0) - low[c].min(0) for c in chosen]
        np.testing.assert_allclose(share, np.mean(widths, axis=0) / width)


def test_growth_of_many_images_and_of_a_tensor_that_is_zero() -> None:
    low, high = uniform(3000, 2)
    low[:, 1] = high[:, 1] = 0
    _, shares = growth(low, high)
    assert (np.diff(shares[:, 0]) > 0).all()
    assert (shares[:, 1] == 1).all()
