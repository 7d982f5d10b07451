"""A tensor as the sum of two that 8 bits hold: its nearest step, and what that leaves over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# What is left over is held so many times as large, in the steps of the first term. More would be of
# no use: what reads it has its weights divided by as much, in the steps of 8 bits, too.
FACTOR = 8


class TwoTerms(nn.Module):
    """float32 of any shape to twice the channels (`axis`): `nearest`, on the steps of `scale` and
    `zero_point` (uint8), then `FACTOR` times what is left over. A layer that has its weights, and
    the same divided by `FACTOR`, for the two computes what it did; with both terms in 8 bits, it
    has its input in about 11."""

    def __init__(self, scale: float, zero_point: int, axis: int) -> None:
        super().__init__()
        self.scale, self.zero_point, self.axis = scale, zero_point, axis

    def forward(self, x: Tensor) -> Tensor:
        """The second term is not rounded here."""
        ends = 0, 255
        nearest = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, *ends)
        return torch.cat([nearest, (x - nearest) * FACTOR], self.axis)


def reading_two_terms(layer: Any) -> nn.Module:
    """The Conv2d (or of another number of axes; without groups) or Linear that computes from two
    terms what `layer` computes from their sum."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        new: Any = nn.Linear(2 * layer.in_features, layer.out_features, layer.bias is not None)
    else:
        new = type(layer)(
            2 * layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
            layer.padding, layer.dilation, bias=layer.bias is not None,
        )  # fmt: skip
    new.weight = nn.Parameter(torch.cat([weight, weight / FACTOR], 1), requires_grad=False)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    module: nn.Module = new.eval()
    return module
