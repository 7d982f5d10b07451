"""What rounding does to a tensor: clipping told from rounding, the worst channel found."""

from __future__ import annotations

import pytest
import torch

from qconvert.quantization.affine import QuantParams
from qconvert.quantization.plan import WeightParams
from qconvert.quantization.sensitivity.tensor_error import tally, weight_error

HELD = QuantParams(scale=0.5, zero_point=0, quant_min=0, quant_max=8)  # 0 to 4


def test_clipping_is_told_from_rounding_by_channel() -> None:
    x = torch.tensor([[1.25, 3.0, 4.25], [0.5, 6.0, -1.0]])
    found = tally(x, HELD, 0).summary(4.0)
    # 1.25 is rounded by 0.25, as is 4.25: it is within half a step of the last integer.
    assert found.clipping == pytest.approx(5 / 5.125)
    assert found.clipped_values == pytest.approx(2 / 6)
    assert found.worst is not None
    assert (found.worst.channel, found.worst.channels) == (1, 2)
    assert found.worst.clipped_values == pytest.approx(2 / 3)
    assert found.worst.range_share == pytest.approx(7 / 4)
    assert found.worst.error_share == pytest.approx(5 / 5.125)
    assert found.worst.sqnr_db == pytest.approx(10 * torch.tensor(37.25 / 5).log10().item())


def test_small_channel_is_worst_though_it_has_little_of_the_error() -> None:
    x = torch.stack([torch.linspace(0, 4, 100), torch.full((100,), 0.1), torch.zeros(100)])
    found = tally(x[None], HELD, 1).summary(4.0)
    assert found.clipping == 0
    assert found.worst is not None
    assert found.worst.channel == 1
    assert found.worst.sqnr_db == pytest.approx(0, abs=1e-6)
    assert found.worst.error_share < 0.5


def test_images_add_up_and_channels_that_differ_are_left_out() -> None:
    x = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) * 5
    together = tally(x, HELD, 1).summary(4.0)
    parts = tally(x[:1], HELD, 1).with_more(tally(x[1:], HELD, 1)).summary(4.0)
    assert parts.worst is not None
    assert together.worst is not None
    assert parts.worst.channel == together.worst.channel
    assert parts.sqnr_db == pytest.approx(together.sqnr_db)
    other = tally(x, HELD, 1).with_more(tally(x, HELD, 2)).summary(4.0)
    assert other.worst is None
    assert other.sqnr_db == pytest.approx(together.sqnr_db)


def test_weight_is_compared_with_what_int8_computes_with() -> None:
    params = WeightParams(
        granularity="per_channel", scheme="symmetric", observer="percentile", quant_min=-127,
        quant_max=127, scales=(0.01, 0.001), zero_points=(0, 0), digest="",
    )  # fmt: skip
    weight = torch.tensor([[1.0, 0.004], [0.2, 0.05]])
    used = torch.tensor([[1.0, 0.01], [0.127, 0.05]])
    found = weight_error(weight, used, params)
    assert found.clipped_values == 0.25
    assert found.clipping == pytest.approx(0.073**2 / (0.073**2 + 0.006**2), rel=1e-4)
    assert found.worst is not None
    assert found.worst.channel == 1
    assert found.worst.range_share == pytest.approx(0.2)
