"""The affine map between real numbers and 8-bit integers, as torch's CPU kernels compute it.

`q = clamp(round(x / scale) + zero_point)` and `x = (q - zero_point) * scale` (Jacob et al. 2018,
arXiv:1712.05877). The division is a multiplication by the float32 reciprocal of the scale, ties
round to even, and the zero point is added after rounding, as in torch.

>>> from torch import tensor
>>> params = QuantParams(scale=0.25, zero_point=4)
>>> quantize(tensor([0.7, 0.5, -0.7, -1.5]), params).tolist()
[7, 6, 1, 0]
>>> fake_quantize(tensor([0.7, -0.7]), params).tolist()
[0.75, -0.75]

A tie tells `round(x / scale) + zero_point` from `round(x / scale + zero_point)` when the zero
point is odd: 0.125 / 0.25 is 0.5, which rounds to 0, and 0.5 + 1 would round to 2.

>>> quantize(tensor([0.125]), QuantParams(scale=0.25, zero_point=1)).tolist()
[1]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A range narrower than this cannot be told from zero in float32 arithmetic of the kernels.
SMALLEST_SCALE = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class QuantParams:
    """One scale (a float32 value) and zero point, and the integers that may occur."""

    scale: float
    zero_point: int
    quant_min: int = 0
    quant_max: int = 255

    @property
    def minimum(self) -> float:
        """The smallest number that has an integer of its own."""
        return (self.quant_min - self.zero_point) * self.scale

    @property
    def maximum(self) -> float:
        """The largest number that has an integer of its own."""
        return (self.quant_max - self.zero_point) * self.scale


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Float32 of any shape to integers (int64) of the same shape, saturating."""
    reciprocal = 1.0 / torch.tensor(params.scale, dtype=torch.float32)
    # Saturates before it becomes an integer: a large float has no int64.
    low, high = params.quant_min - params.zero_point, params.quant_max - params.zero_point
    return torch.round(x * reciprocal).clamp(low, high).to(torch.int64) + params.zero_point


def dequantize(integers: Tensor, params: QuantParams) -> Tensor:
    """Integers back to float32."""
    return (integers - params.zero_point).to(torch.float32) * params.scale


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """What remains of float32 values after a round trip through the integers: what
    `torch.fake_quantize_per_tensor_affine` returns, in less time."""
    low, high = params.quant_min - params.zero_point, params.quant_max - params.zero_point
    reciprocal = float(np.float32(1) / np.float32(params.scale))
    return (x * reciprocal).round_().clamp_(low, high).mul_(params.scale)


def affine(minimum: float, maximum: float, quant_min: int = 0, quant_max: int = 255) -> QuantParams:
    """The map under which the range, widened to hold zero, fills the integers.

    Zero has an integer of its own. The smaller end maps to `quant_min` and the larger one to
    `quant_max` (where the two roundings disagree, the scale gives way by a last place).

    >>> params = affine(-1.0, 1.55)
    >>> params.zero_point, round(params.scale, 6)
    (100, 0.01)
    """
    minimum, maximum = min(minimum, 0.0), max(maximum, 0.0)
    levels = quant_max - quant_min
    scale = np.float32(max((maximum - minimum) / levels, SMALLEST_SCALE))
    ends = torch.tensor([minimum, maximum], dtype=torch.float32)
    wanted = [quant_min, quant_max]
    for _ in range(8):
        zero_point = quant_min - round(minimum / float(scale))
        zero_point = min(max(zero_point, quant_min), quant_max)
        params = QuantParams(float(scale), zero_point, quant_min, quant_max)
        if maximum - minimum < levels * SMALLEST_SCALE or quantize(ends, params).tolist() == wanted:
            break
        scale = np.nextafter(scale, np.float32(0))
    return params


def symmetric(
    minimum: float, maximum: float, quant_min: int = 0, quant_max: int = 255
) -> QuantParams:
    """The map with zero in the middle of the integers and equal steps to both sides.

    >>> symmetric(-1.0, 0.5).zero_point
    128
    """
    middle = (quant_min + quant_max + 1) // 2
    bound = max(abs(minimum), abs(maximum))
    scale = np.float32(max(bound / (quant_max - middle), SMALLEST_SCALE))
    return QuantParams(float(scale), middle, quant_min, quant_max)
