"""Distributions of images whose axis 1 differs in length, as lines of text do in their steps."""

from __future__ import annotations

from functools import reduce
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.quantization.distribution import Distribution, observe

examples = settings(max_examples=100, deadline=None, derandomize=True)
numbers = st.integers(-3000, 3000).map(lambda n: n / 8)


def observed(rows: list[list[float]]) -> Distribution:
    """One image, (1, steps, values)."""
    return observe(torch.tensor(rows, dtype=torch.float32).unsqueeze(0))


def merged(parts: list[Distribution]) -> Distribution:
    return reduce(lambda a, b: a.merged(b, 0.01), parts)


def facts(seen: Distribution) -> tuple:
    """Everything that must not depend on the order of the images."""
    histogram = seen.histogram
    return (
        seen.images, seen.minimum, seen.maximum,
        seen.channel_min.tolist(), seen.channel_max.tolist(),
        histogram.exponent, histogram.first, histogram.counts.tolist(),
    )  # fmt: skip


TWO = [[1.0, -2.0], [3.0, 0.5]]
THREE = [[0.0, 1.0], [-7.0, 2.0], [5.0, 4.0]]
ONE = [[-1.0, 9.0]]


def test_images_of_one_length_keep_their_channels() -> None:
    seen = merged([observed(TWO), observed([[0.0, 2.0], [8.0, -4.0]])])
    assert seen.channel_min.tolist() == [-2, -4]
    assert seen.channel_max.tolist() == [2, 8]


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
def test_images_that_differ_in_length_have_one_range(order: tuple[int, ...]) -> None:
    """In any order; two of them are of one length."""
    parts = [observed(rows) for rows in (TWO, THREE, ONE, [[6.0, 6.0], [6.0, 6.0]])]
    seen = merged([parts[i] for i in order])
    assert seen.channel_min.tolist() == [-7]
    assert seen.channel_max.tolist() == [9]
    assert (seen.images, seen.minimum, seen.maximum) == (4, -7, 9)
    assert seen.channel_min.dtype == seen.channel_max.dtype == np.float32
    assert facts(seen) == facts(merged(parts))


def test_image_of_one_step_does_not_stretch_over_others() -> None:
    """Numpy would take its one value for each of the three."""
    seen = merged([observed(THREE), observed(ONE)])
    assert (seen.channel_min.tolist(), seen.channel_max.tolist()) == ([-7], [9])


def test_every_value_is_counted() -> None:
    seen = merged([observed(TWO), observed(THREE), observed(ONE)])
    assert int(seen.histogram.counts.sum()) == 4 + 6 + 2


@examples
@given(
    st.lists(
        st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=4),
        min_size=2,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
    st.integers(1, 4),
)
def test_order_and_grouping_change_nothing(images: list, random, split: int) -> None:
    parts = [observed(rows) for rows in images]
    want = merged(parts)
    lengths = {len(rows) for rows in images}
    assert len(want.channel_min) == (lengths.pop() if len(lengths) == 1 else 1)
    random.shuffle(parts)
    assert facts(merged(parts)) == facts(want)
    split = min(split, len(parts) - 1)
    assert facts(merged([merged(parts[:split]), merged(parts[split:])])) == facts(want)
