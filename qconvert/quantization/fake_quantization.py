"""Rounds to 8 bits in float arithmetic as the simulation does, with gradients for what is rounded
and for how: Esser et al. 2020 (LSQ, arXiv:1902.08153), with the offset of Bhalgat et al. 2020
(LSQ+, arXiv:2004.09576).

The gradient passes what is rounded inside the range as if it were not rounded, and stops outside.
With `y = s * (round(x / s) - z)` clipped to integers, the scale's is `(y - x) / s` inside and
`y / s` outside. Summed with the gradient of y, that is two inner products, so that a backward pass
reads each tensor about as often as that of a ReLU. LSQ divides the scale's gradient by the root of
the number of values: a factor that Adam's steps do not depend on, so it is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from qconvert.quantization.affine import QuantParams, fake_quantize


class FakeQuantizedTensor(Function):
    """float32 of any shape, a scale and a zero point (float32, one value each; the zero point is
    rounded) and the smallest and largest integer; the same bits as
    `torch.fake_quantize_per_tensor_affine`, whose kernel is not vectorized: a fifth of its time."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
    ) -> Tensor:
        """The rounded tensor."""
        step, zero = float(scale), round(float(zero_point))
        rounded = fake_quantize(x, QuantParams(step, zero, quant_min, quant_max))
        ctx.save_for_backward(x, rounded)
        low, high = quant_min - zero, quant_max - zero
        ctx.step, ctx.ends = step, ((low - 0.5) * step, (high + 0.5) * step)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the tensor, the scale and the zero point."""
        x, rounded = ctx.saved_tensors
        # The gradient between two bounds, zero outside, in one pass.
        of_x = torch.ops.aten.hardtanh_backward(grad, x, *ctx.ends)
        of_scale = of_zero = None
        if ctx.needs_input_grad[1]:
            of_scale = ((_inner(grad, rounded) - _inner(of_x, x)) / ctx.step).reshape(())
        if ctx.needs_input_grad[2]:
            of_zero = ((of_x.sum() - grad.sum()) * ctx.step).reshape(())
        return of_x, of_scale, of_zero, None, None


class FakeQuantizedChannels(Function):
    """float32 (channels, ...), a scale (float32) and a zero point (int32) for each channel, or one
    for all, and the smallest and largest integer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scales: Tensor, zero_points: Tensor, quant_min: int, quant_max: int
    ) -> Tensor:
        """The rounded tensor."""
        count = len(x)
        found: tuple[Tensor, Tensor]
        found = torch.ops.aten.fake_quantize_per_channel_affine_cachemask(
            x, scales.expand(count), zero_points.expand(count), 0, quant_min, quant_max
        )
        rounded, inside = found
        ctx.save_for_backward(x, rounded, inside, scales)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the tensor and the scales."""
        x, rounded, inside, scales = ctx.saved_tensors
        of_x = grad * inside
        sums = (grad * rounded - of_x * x).flatten(1).sum(1)
        if len(scales) == 1:
            sums = sums.sum().reshape(1)
        return of_x, sums / scales, None, None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the products, over the memory in its own order where both have the same."""
    if a.stride() == b.stride() and a.dim() == 4 and not a.is_contiguous():
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))
