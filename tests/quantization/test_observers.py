"""Observers: the range that each chooses from what was seen."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.quantization.affine import affine, fake_quantize
from qconvert.quantization.distribution import Distribution, averaging_to, moved, observe
from qconvert.registry import ACTIVATION_OBSERVERS

examples = settings(max_examples=100, deadline=None, derandomize=True)
values_of_an_image = st.lists(
    st.floats(-1000, 1000, width=32, allow_subnormal=False), min_size=2, max_size=60, unique=True
)


def seen(*images) -> Distribution:
    parts = [observe(torch.tensor(np.float32(i)).reshape(1, 1, -1)) for i in images]
    ranges = [(part.minimum, part.maximum) for part in parts]
    average = reduce(lambda a, b: moved(a, b, 0.1), ranges)
    return averaging_to(reduce(lambda a, b: a + b, parts), average)


def chosen(observer: str, distribution: Distribution, percentile=0.9999, levels=255):
    """The range, by the name that a qconfig uses."""
    observe_range = ACTIVATION_OBSERVERS[observer].load()
    return observe_range(distribution, percentile=percentile, levels=levels)


def squared_error(values, ends, levels=255) -> float:
    """Of a real round trip of the values through the integers."""
    x = torch.tensor(np.float32(values))
    held = fake_quantize(x, affine(*ends, 0, levels))
    return float(((held.double() - x.double()) ** 2).sum())


def gaussian(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def test_minmax_is_the_smallest_and_the_largest_value_of_all_images():
    assert chosen("minmax", seen([1.5, 2.0], [-3.25, 0.0], [7.0, 1.0])) == (-3.25, 7.0)
    assert chosen("minmax", seen([2.0, 5.0])) == (2.0, 5.0)


def test_moving_average_moves_a_share_towards_each_image():
    distribution = seen([0.0, 10.0], [-10.0, 20.0], [-1.0, 1.0])
    # -10 weighs 0.1, then all moves by 0.1 to -1; 10 becomes 11 and then 10.
    assert chosen("moving_average", distribution) == pytest.approx((-1.0, 10.0))


@examples
@given(values_of_an_image, st.floats(0.51, 1.0))
def test_percentile_is_the_narrowest_range_that_holds_its_share(values, percentile):
    distribution = seen(values)
    low, high = chosen("percentile", distribution, percentile)
    values = np.float32(values).astype(np.float64)
    allowed = (1 - percentile) * len(values) + 1e-6
    width = 2.0**distribution.histogram.exponent
    assert values.min() <= low <= high <= values.max()
    assert (values < low).sum() <= allowed
    assert (values > high).sum() <= allowed
    # One bin less at either end leaves out too many.
    assert (values < low + width).sum() > allowed - 2e-6
    assert (values >= high - width).sum() > allowed - 2e-6


def test_percentile_leaves_out_outliers_at_both_ends():
    values = np.concatenate([np.linspace(-1, 1, 998), [-1000.0, 900.0]])
    low, high = chosen("percentile", seen(values), 0.998)
    width = 1900 / 1024  # of one bin, at most
    assert -1 - width <= low <= -1
    assert 1 <= high <= 1 + width


@pytest.mark.parametrize("end", [-1000.0, 1000.0])
def test_percentile_leaves_out_a_lone_outlier_at_one_end(end):
    low, high = chosen("percentile", seen([*np.linspace(0, 100, 1000), end]), 0.998)
    assert low >= -1
    assert high <= 101


def test_percentile_one_holds_everything():
    values = gaussian(5000)
    assert chosen("percentile", seen(values), 1.0) == (values.min(), values.max())


@pytest.mark.parametrize(
    ("count", "percentile"), [(100, 0.99), (1000, 0.999), (10, 0.9), (20, 0.95), (10_000, 0.9999)]
)
def test_percentile_leaves_out_one_outlier_in_as_many_values_as_it_says(count, percentile):
    """1 - 0.9 of 10 values is one value, although floating point says 0.9999999999999998."""
    values = [-100.0, *np.linspace(-1, 1, count - 2), 100.0]
    low, high = chosen("percentile", seen(values), percentile)
    assert low == pytest.approx(-1, abs=200 / 1024)
    assert high == pytest.approx(1, abs=200 / 1024)


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("outlier", [-60.0, 60.0])
def test_least_squares_clips_a_lone_far_outlier(outlier, levels):
    # Clipping costs some 55^2, once; keeping it costs a million times (64/255)^2 / 12 and more.
    values = np.append(np.tile(gaussian(10_000), 100), np.float32(outlier))
    distribution = seen(*np.array_split(values, 20))
    low, high = chosen("histogram", distribution, levels=levels)
    assert -60 < low < -3
    assert 3 < high < 60
    kept = squared_error(values, (distribution.minimum, distribution.maximum), levels)
    assert squared_error(values, (low, high), levels) < 0.7 * kept


def test_least_squares_keeps_an_outlier_whose_clipping_costs_more():
    values = np.append(gaussian(100), np.float32(20.0))
    low, high = chosen("histogram", seen(values))
    assert high == pytest.approx(20.0, rel=0.02)
    assert low <= values.min() * 0.9


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 6.0), (-6.0, 0.0), (2.0, 5.0), (-3.0, 1.0)])
def test_least_squares_keeps_the_range_of_evenly_spread_values(ends, levels):
    values = np.random.default_rng(0).uniform(*ends, 20_000)
    low, high = chosen("histogram", seen(values), levels=levels)
    below, above = min(ends[0], 0), max(ends[1], 0)
    steps = (above - below) / levels
    assert low == pytest.approx(below, abs=3 * steps)
    assert high == pytest.approx(above, abs=3 * steps)


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("draw", ["normal", "laplace", "lognormal", "uniform"])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_least_squares_error_is_not_above_that_of_minmax(draw, shift, levels):
    values = getattr(np.random.default_rng(3), draw)(size=20_000) - shift
    distribution = seen(values)
    least = squared_error(values, chosen("histogram", distribution, levels=levels), levels)
    most = squared_error(values, chosen("minmax", distribution), levels)
    assert least <= most * 1.001


@examples
@given(values_of_an_image, st.sampled_from([127, 255]))
def test_least_squares_error_of_few_values_is_within_a_bin_of_minmax(values, levels):
    """The search sees bins: each value may err by at most their width more."""
    distribution = seen(values)
    least = squared_error(values, chosen("histogram", distribution, levels=levels), levels)
    most = squared_error(values, chosen("minmax", distribution), levels)
    width = 2.0**distribution.histogram.exponent
    root_mean = np.sqrt(np.array([least, most]) / len(values))
    assert root_mean[0] <= root_mean[1] + width * 1.001


@pytest.mark.parametrize("draw", ["normal", "laplace"])
def test_least_squares_comes_close_to_the_best_of_all_ranges(draw):
    values = getattr(np.random.default_rng(5), draw)(size=4000)
    distribution = seen(values)
    least = squared_error(values, chosen("histogram", distribution, levels=127), 127)
    shares = np.linspace(0.4, 1, 40)
    best = min(
        squared_error(values, (a * values.min(), b * values.max()), 127)
        for a in shares
        for b in shares
    )
    assert least <= best * 1.05


@pytest.mark.parametrize("observer", sorted(ACTIVATION_OBSERVERS))
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_constant_can_be_held_exactly_whatever_the_observer(observer, value):
    distribution = seen([value] * 5, [value] * 5)
    assert squared_error([value], chosen(observer, distribution)) < 1e-12
