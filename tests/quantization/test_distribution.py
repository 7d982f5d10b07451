"""Streamed distributions: exact, whatever the order and the grouping of the images."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.quantization.distribution import (
    BINS,
    SAMPLED,
    Distribution,
    Growing,
    Histogram,
    NotFiniteError,
    moved,
    observe,
)

examples = settings(max_examples=150, deadline=None, derandomize=True)
numbers = st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.integers(-3000, 3000)
images = st.lists(numbers, min_size=2, max_size=12, unique=True)
images_or_constants = images | st.lists(numbers, min_size=1, max_size=1)


def observed(values) -> Distribution:
    return observe(torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1))


def averaged(parts, weight: float) -> tuple[float, float]:
    """The moving average of the ranges of images."""
    ranges = [(seen.minimum, seen.maximum) for seen in map(observed, parts)]
    return reduce(lambda a, b: moved(a, b, weight), ranges)


def merge(a: Distribution, b: Distribution) -> Distribution:
    return a + b


def facts(seen: Distribution) -> tuple:
    """Everything that must not depend on the order of the images."""
    histogram = seen.histogram
    return (
        seen.images, seen.minimum, seen.maximum,
        histogram.exponent, histogram.first, histogram.counts.tolist(),
    )  # fmt: skip


def counted(histogram: Histogram) -> dict[int, int]:
    """How many values each bin holds that holds any."""
    used = np.flatnonzero(histogram.counts)
    return {int(i) + histogram.first: int(histogram.counts[i]) for i in used}


def recounted(values, exponent: int) -> dict[int, int]:
    bins = np.floor(np.asarray(values, np.float32).astype(np.float64) / 2.0**exponent)
    return {int(k): int(n) for k, n in zip(*np.unique(bins, return_counts=True), strict=True)}


@examples
@given(st.lists(images_or_constants, min_size=1, max_size=6))
def test_bins_hold_exactly_the_values_of_all_images(parts):
    seen = reduce(merge, map(observed, parts))
    histogram, values = seen.histogram, np.float32([v for part in parts for v in part])
    assert counted(histogram) == recounted(values, histogram.exponent)
    assert histogram.counts.sum() == len(values)
    assert histogram.counts.dtype == np.int64
    assert len(histogram.counts) <= BINS
    assert (seen.minimum, seen.maximum) == (values.min(), values.max())
    assert seen.images == len(parts)


@examples
@given(st.lists(images, min_size=1, max_size=6))
def test_bins_are_as_fine_as_fit(parts):
    seen = reduce(merge, map(observed, parts))
    finer = 2.0 ** (seen.histogram.exponent - 1)
    bins = np.floor(seen.maximum / finer) - np.floor(seen.minimum / finer) + 1
    assert bins > BINS or finer < 2.0**-100  # no bin is narrower than that


@examples
@given(st.lists(images_or_constants, min_size=2, max_size=7), st.randoms(use_true_random=False))
def test_order_and_grouping_of_images_change_nothing(parts, random):
    expected = facts(reduce(merge, map(observed, parts)))
    rest = [observed(part) for part in parts]
    while len(rest) > 1:  # any two of those left, in any order: every tree of merges
        random.shuffle(rest)
        rest.append(merge(rest.pop(), rest.pop()))
    assert facts(rest[0]) == expected


@examples
@given(st.lists(images, min_size=2, max_size=7))
def test_splitting_values_into_images_changes_nothing_but_their_number(parts):
    together = observed([v for part in parts for v in part])
    assert facts(reduce(merge, map(observed, parts)))[1:] == facts(together)[1:]


@pytest.mark.parametrize("a", [0.0, 5.0, -5.0, 1e-20, 4.0])
@pytest.mark.parametrize("b", [0.0, 5.1, 0.1, -1e-4, 1e6, 3.9999998, 2047.0])
def test_images_of_one_repeated_number_count_as_all_values_in_one_image(a, b):
    """A constant image must not make the bins of all other images coarser."""
    expected = facts(observed([a, a, b, b]))[1:]
    assert facts(merge(observed([a, a]), observed([b, b])))[1:] == expected
    assert facts(merge(observed([a]), observed([a, b, b])))[1:] == expected


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e30, -1e30, 1e-30, -1e-42, 3.4e38])
def test_a_constant_fills_one_bin(value):
    seen = observed([value] * 10)
    stored = float(np.float32(value))
    assert (seen.minimum, seen.maximum) == (stored, stored)
    assert counted(seen.histogram) == recounted([value] * 10, seen.histogram.exponent)
    assert len(seen.histogram.counts) == 1
    assert abs(seen.histogram.centers[0] - stored) <= max(abs(stored) / 500, 1e-30)


def test_all_zero_images_merge_with_others():
    zeros, other = observed([0.0] * 7), observed([-1.0, 2.0])
    both = merge(zeros, other)
    assert facts(both) == facts(merge(other, zeros))
    assert counted(both.histogram) == recounted([0.0] * 7 + [-1.0, 2.0], both.histogram.exponent)


@pytest.mark.parametrize("ends", [(-3e38, 3e38), (1e38, 3e38), (1.0, 1.0000001), (0.0, 2048.0)])
def test_extreme_ranges_stay_within_the_bins(ends):
    histogram = observed(ends).histogram
    assert len(histogram.counts) <= BINS
    assert counted(histogram) == recounted(ends, histogram.exponent)


def test_far_apart_images_keep_every_count():
    parts = [[1e-30, 2e-30], [-3e38, 3e38], [0.5, 0.75], [1e-30, 2e-30, -4e-30]]
    histogram = reduce(merge, map(observed, parts)).histogram
    assert histogram.counts.sum() == 9
    assert len(histogram.counts) <= BINS
    # Bin 0 holds the small positive numbers, bin -1 the small negative one.
    assert counted(histogram)[0] == 6
    assert counted(histogram)[-1] == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(1, 5), (1, 3, 4, 4), (1, 2, 200_000)])
def test_one_number_that_is_not_finite_is_an_error(wrong, shape):
    x = torch.zeros(shape)
    x.view(-1)[-2] = wrong
    with pytest.raises(NotFiniteError):
        observe(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_tensors_have_exact_ends_and_an_even_sample(layout):
    x = torch.rand(1, 8, 130, 130, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout)
    x[0, 5, 77, 3], x[0, 2, 129, 129] = -9.0, 17.0
    seen = observe(x)
    assert (seen.minimum, seen.maximum) == (-9.0, 17.0)
    counts, centers = seen.histogram.counts, seen.histogram.centers
    assert SAMPLED // 3 <= counts.sum() <= SAMPLED
    below = counts[centers < 0.5].sum() / counts.sum()
    assert below == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(3, 224, 224), (192, 28, 28), (16, 112, 112)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_sample_of_a_large_tensor_takes_all_channels(shape, layout):
    channels = shape[0]
    x = torch.arange(float(channels)).reshape(1, -1, 1, 1).expand(1, *shape)
    histogram = observe(x.contiguous(memory_format=layout)).histogram
    assert (histogram.counts > 0).sum() == channels


def test_the_sample_of_large_token_embeddings_takes_all_features():
    """1 x 197 x 768, as in a ViT-B/16."""
    histogram = observe(torch.arange(768.0).expand(1, 197, 768)).histogram
    assert (histogram.counts > 0).sum() == 768


def test_memory_layout_changes_nothing():
    x = torch.randn(1, 6, 9, 7, generator=torch.Generator().manual_seed(1))
    expected = facts(observe(x))
    assert facts(observe(x.contiguous(memory_format=torch.channels_last))) == expected
    wide = torch.full((1, 6, 9, 14), 99.0)
    wide[..., ::2] = x
    assert facts(observe(wide[..., ::2])) == expected
    assert facts(observe(x.transpose(2, 3).contiguous().transpose(2, 3))) == expected


@examples
@given(st.lists(images, min_size=1, max_size=6), st.sampled_from([0.01, 0.3, 1.0]))
def test_moving_average_weighs_each_new_image(parts, weight):
    """In closed form: image i of n has weight c (1 - c)^(n - 1 - i), the first one the rest."""
    average = averaged(parts, weight)
    n = len(parts)
    shares = [weight * (1 - weight) ** (n - 1 - i) for i in range(n)]
    shares[0] = (1 - weight) ** (n - 1)
    low = sum(s * float(np.float32(min(p))) for s, p in zip(shares, parts, strict=True))
    high = sum(s * float(np.float32(max(p))) for s, p in zip(shares, parts, strict=True))
    assert average == pytest.approx((low, high), rel=1e-9, abs=1e-6)


def test_moving_average_depends_on_the_order():
    a, b = [-1.0, 2.0], [-3.0, 10.0]
    assert averaged([a, b], 0.01) == pytest.approx((-1.02, 2.08))
    assert averaged([b, a], 0.01) == pytest.approx((-2.98, 9.92))


def test_zero_has_no_sign() -> None:
    """Or the extremes of many images would depend on which of them came first."""
    one = observe(torch.tensor([[-0.0, -0.0], [1.0, 1.0]]).reshape(1, 2, 2, 1))
    other = observe(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).reshape(1, 2, 2, 1))
    for first, second in ((one, other), (other, one)):
        assert math.copysign(1, (first + second).minimum) == 1


@examples
@given(st.lists(images_or_constants, min_size=1, max_size=6))
def test_images_that_are_added_to_one_another_count_as_their_sum(parts):
    growing = Growing()
    for part in parts:
        growing.add(torch.tensor(part, dtype=torch.float32))
    assert facts(growing.distribution) == facts(reduce(merge, map(observed, parts)))


def test_threads_that_add_to_one_distribution_lose_nothing():
    images = [torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(i)) * 2.0**(i % 9)
              for i in range(200)]  # fmt: skip
    growing = Growing()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(growing.add, images))
    assert facts(growing.distribution) == facts(reduce(merge, map(observe, images)))


def test_image_that_is_refused_leaves_nothing():
    growing = Growing()
    growing.add(torch.tensor([1.0, 2.0]))
    with pytest.raises(NotFiniteError):
        growing.add(torch.tensor([5.0, float("nan")]))
    assert facts(growing.distribution) == facts(observed([1.0, 2.0]))
