"""The affine map between floats and 8-bit integers."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qconvert.quantization.affine import (
    QuantParams,
    affine,
    dequantize,
    fake_quantize,
    quantize,
    symmetric,
)

INTEGERS = [(0, 255), (0, 127), (-128, 127), (-127, 127)]
scales = st.floats(2.0**-20, 2.0**20, width=32)
zero_points = st.integers(0, 255)
seeds = st.integers(0, 2**32 - 1)
ends = st.floats(0, 2.0**60, width=32)
examples = settings(max_examples=150, deadline=None, derandomize=True)


def values_around(params: QuantParams, seed: int, count: int = 70) -> torch.Tensor:
    """Numbers inside the range and beyond, and every second one close to a rounding tie."""
    drawn = np.random.default_rng(seed).uniform(-400, 400, count)
    drawn[::2] = np.floor(drawn[::2]) + 0.5
    return torch.tensor(drawn * params.scale, dtype=torch.float32)


def torch_integers(x: torch.Tensor, params: QuantParams) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = torch.quantize_per_tensor(x, params.scale, params.zero_point, torch.quint8)
    return held.int_repr().to(torch.int64)


@examples
@given(scales, zero_points, seeds)
def test_quantize_gives_the_integers_of_torch(scale, zero_point, seed):
    params = QuantParams(scale, zero_point)
    x = values_around(params, seed)
    assert torch.equal(quantize(x, params), torch_integers(x, params))


@examples
@given(scales, zero_points, seeds)
def test_round_trip_misses_by_half_a_step_at_most(scale, zero_point, seed):
    params = QuantParams(scale, zero_point)
    x = values_around(params, seed)
    inside = x[(x >= params.minimum) & (x <= params.maximum)]
    error = (dequantize(quantize(inside, params), params) - inside).double().abs()
    assert (error <= scale * 0.5001).all()


@examples
@given(scales, zero_points, seeds, st.sampled_from([127, 255]))
def test_fake_quantize_equals_the_round_trip(scale, zero_point, seed, quant_max):
    params = QuantParams(scale, min(zero_point, quant_max), 0, quant_max)
    x = values_around(params, seed)
    assert torch.equal(fake_quantize(x, params), dequantize(quantize(x, params), params))


@examples
@given(scales, zero_points)
def test_every_integer_survives_the_round_trip(scale, zero_point):
    params = QuantParams(scale, zero_point)
    integers = torch.arange(256)
    assert torch.equal(quantize(dequantize(integers, params), params), integers)


@pytest.mark.parametrize(
    ("x", "zero_point", "integer"),
    [(0.125, 1, 1), (0.125, 0, 0), (0.375, 1, 3), (-0.125, 1, 1), (-0.375, 3, 1), (0.13, 1, 2)],
)
def test_ties_round_to_even_before_the_zero_point_is_added(x, zero_point, integer):
    params = QuantParams(0.25, zero_point)
    assert quantize(torch.tensor([x]), params).tolist() == [integer]


@pytest.mark.parametrize("factor", [1.5, 1e3, 1e9, 1e18, 1e20, 1e30])
@pytest.mark.parametrize("count", [1, 64])
def test_values_outside_the_range_saturate(factor, count):
    params = QuantParams(0.25, 3, 0, 127)
    x = torch.tensor([params.minimum * factor, params.maximum * factor], dtype=torch.float32)
    x = x.repeat(count)
    assert quantize(x, params).tolist() == [0, 127] * count
    assert fake_quantize(x, params).tolist() == [params.minimum, params.maximum] * count


def test_minimum_and_maximum_belong_to_the_outermost_integers():
    params = QuantParams(0.5, 3, 0, 127)
    assert (params.minimum, params.maximum) == (-1.5, 62.0)


@examples
@given(ends, ends, st.sampled_from(INTEGERS))
def test_the_range_fills_the_integers_and_zero_is_exact(below, above, integers):
    assume(below + above > 1e-3)
    params = affine(-below, above, *integers)
    x = torch.tensor([-below, above, 0.0], dtype=torch.float32)
    assert quantize(x, params).tolist() == [*integers, params.zero_point]
    assert fake_quantize(torch.zeros(1), params).item() == 0.0
    step = (below + above) / (integers[1] - integers[0])
    assert params.scale == pytest.approx(step, rel=1e-6)
    # Both ends are reproduced as well as anything inside the range.
    assert params.minimum == pytest.approx(-below, abs=0.5001 * step)
    assert params.maximum == pytest.approx(above, abs=0.5001 * step)


@examples
@given(scales, st.data(), st.sampled_from(INTEGERS))
def test_ends_in_the_middle_of_two_steps_still_fill_the_integers(scale, data, integers):
    levels = integers[1] - integers[0]
    below = (data.draw(st.integers(0, levels - 1)) + 0.5) * scale
    above = levels * scale - below
    params = affine(-below, above, *integers)
    x = torch.tensor([-below, above, 0.0], dtype=torch.float32)
    assert quantize(x, params).tolist() == [*integers, params.zero_point]
    assert params.scale == pytest.approx(scale, rel=1e-6)


def test_a_range_of_half_a_step_below_zero_keeps_both_ends():
    for scale in (1.0, 0.1, 0.0123):
        params = affine(-0.5 * scale, 254.5 * scale)
        x = torch.tensor([-0.5 * scale, 254.5 * scale, 0.0])
        assert quantize(x, params).tolist() == [0, 255, params.zero_point]


@pytest.mark.parametrize(
    ("minimum", "maximum", "zero_point", "scale"),
    [(0, 255, 0, 1), (-255, 0, 255, 1), (-128, 127, 128, 1), (2, 51, 0, 0.2), (-51, -2, 255, 0.2)],
)
def test_known_ranges(minimum, maximum, zero_point, scale):
    params = affine(minimum, maximum)
    assert params.zero_point == zero_point
    assert params.scale == pytest.approx(scale, rel=1e-6)


@examples
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.sampled_from([127, 255]))
def test_symmetric_has_zero_in_the_middle_and_equal_steps(a, b, quant_max):
    bound = max(abs(a), abs(b))
    assume(bound > 1e-3)
    params = symmetric(min(a, b), max(a, b), 0, quant_max)
    middle = (quant_max + 1) // 2
    assert params.zero_point == middle == {127: 64, 255: 128}[quant_max]
    x = torch.linspace(-bound, bound, 101)
    integers = quantize(x, params) - middle
    assert torch.equal(integers, -integers.flip(0))
    assert (integers[0].item(), integers[-1].item()) == (1 - middle, middle - 1)


DEGENERATE = [
    (0.0, 0.0), (0.0, 1e-45), (-1e-40, 0.0), (1e-30, 1e-30), (-1e-8, 1e-8), (0.0, 1e-7),
    (-1e30, 1e30), (0.0, 1e30), (-1e30, 1e-30), (-1e-30, 1e30), (-3e38, 3e38), (7.0, 7.0),
    (-7.0, -7.0),
]  # fmt: skip


@pytest.mark.parametrize("choose", [affine, symmetric])
@pytest.mark.parametrize("integers", INTEGERS[:2])
@pytest.mark.parametrize(("minimum", "maximum"), DEGENERATE)
def test_degenerate_ranges_give_a_finite_positive_float32_scale(minimum, maximum, integers, choose):
    params = choose(minimum, maximum, *integers)
    assert params.scale > 0
    assert math.isfinite(params.scale)
    assert params.scale == float(np.float32(params.scale))
    assert integers[0] <= params.zero_point <= integers[1]
    assert fake_quantize(torch.zeros(3), params).tolist() == [0, 0, 0]
    x = torch.tensor([minimum, maximum], dtype=torch.float32)
    error = (fake_quantize(x, params) - x).abs()
    assert (error <= params.scale * 0.51).all()
