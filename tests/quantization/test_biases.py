"""Biases on the grid of the kernels' integer sums: multiples of input scale times weight scale."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qconvert.quantization.plan import WeightParams
from qconvert.quantization.weights import on_grid

examples = settings(max_examples=120, deadline=None, derandomize=True)


def weights_held(scales) -> WeightParams:
    return WeightParams(
        granularity="per_channel" if len(scales) > 1 else "per_tensor",
        scheme="symmetric", observer="minmax", digest="", quant_min=-127, quant_max=127,
        scales=tuple(scales), zero_points=(0,) * len(scales),
    )  # fmt: skip


@examples
@given(st.floats(2.0**-16, 16, width=32), st.integers(0, 2**32 - 1), st.booleans())
def test_bias_on_grid_is_the_nearest_multiple_of_the_step(input_scale, seed, per_channel):
    random = np.random.default_rng(seed)
    scales = np.float32(2.0 ** random.uniform(-12, 0, 8 if per_channel else 1)).tolist()
    bias = torch.tensor(random.normal(size=8), dtype=torch.float32)
    found = on_grid(bias, input_scale, weights_held(scales))
    steps = np.broadcast_to(np.array(scales) * input_scale, 8)
    multiples = np.rint(found.double().numpy() / steps)
    assume(np.abs(multiples).max() < 2**22)
    assert np.array_equal(found.numpy(), np.float32(multiples * steps))
    assert (np.abs(found.double().numpy() - bias.double().numpy()) <= steps * 0.501).all()


def test_bias_on_grid_by_hand():
    params = weights_held([0.5, 0.25, 2.0])
    found = on_grid(torch.tensor([0.3, 0.3, -7.9]), 0.25, params)
    assert found.tolist() == [0.25, 0.3125, -8.0]
    assert found.dtype == torch.float32
    assert on_grid(None, 0.25, params) is None


def test_bias_beyond_32_bits_saturates():
    found = on_grid(torch.tensor([1e9, -1e9]), 2.0**-10, weights_held([2.0**-10]))
    assert found.tolist() == [2048.0, -2048.0]
