"""Writes the page of operators: what the planner does with each, and the times that it goes by.

python -m qconvert.operators_reference docs
"""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.models.operators import kind_of
from qconvert.qconfig import Isa, QuantizationSection
from qconvert.quantization.costs import TABLE, Costs, Way, class_of, table
from qconvert.quantization.deciding import Decision, decide
from qconvert.quantization.layer_rules import asked_for
from qconvert.quantization.plan import Activation
from qconvert.quantization.rules import activation_of
from qconvert.quantization.units import Unit, units_of

PAGE = "operators.md"
ISAS: tuple[Isa, ...] = ("vnni", "avx512", "avx2")
Shape = tuple[int, ...]
IMAGES: tuple[Shape, ...] = ((64, 56, 56), (256, 14, 14))
TOKENS: tuple[Shape, ...] = ((197, 192), (49, 384))
STEPS: tuple[Shape, ...] = ((20, 64), (40, 256))
LINES: tuple[Shape, ...] = ((64, 128), (128, 64))
VOLUMES: tuple[Shape, ...] = ((16, 8, 8, 8), (32, 8, 8, 8))
_BESIDE = ("before", "after")


@dataclass(frozen=True)
class Example:
    """An operator of a kind, between two layers. `make` gets the number of channels or features."""

    about: str
    kind: str
    make: Callable[[int], Callable[..., Any]]
    shapes: tuple[Shape, ...] = IMAGES
    last: bool = False


class _Between(nn.Module):
    """A pointwise or linear layer, the operator, and another such layer unless it is the last."""

    def __init__(self, example: Example, shape: Shape) -> None:
        super().__init__()
        in_line = example.kind.endswith("1d")
        rows = len(shape) == 2 and not in_line
        made = example.make(shape[-1] if rows else shape[0])
        self.before = _layer((1, *shape), in_line)
        self.what = made if isinstance(made, nn.Module) else _Of(made)
        with torch.inference_mode():
            result = self.what.eval()(torch.zeros(1, *shape))
        self.after = nn.Identity() if example.last else _layer(tuple(result.shape), in_line)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.what(self.before(x)))


def _layer(shape: Shape, in_line: bool) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], min(shape[1], 512) if shape[1] <= 4096 else 8)
    if len(shape) == 3 and not in_line:
        return nn.Linear(shape[2], shape[2])
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    return kinds[len(shape)](shape[1], shape[1], 1)


class _Of(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class _Branch(nn.Module):
    """What a value and what layers make of it are joined to."""

    def __init__(self, channels: int, join: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        pair = (nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1))
        self.layers = nn.Sequential(*(layers or pair))
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.join(x, self.layers(x))


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(width, width // 64, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.heads(x, x, x, need_weights=False)[0]


class _Recurrent(nn.Module):
    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], width: int) -> None:
        super().__init__()
        self.layer = layer(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]


def _gate(c: int) -> nn.Module:
    layers = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1), nn.Hardsigmoid())
    return _Branch(c, operator.mul, *layers)


def _shuffled(x: Tensor) -> Tensor:
    c, h, w = x.shape[1:]
    return x.view(-1, 2, c // 2, h, w).transpose(1, 2).reshape(-1, c, h, w)


LAYERS = (
    Example("convolution, 1d", "conv1d", lambda c: nn.Conv1d(c, c, 3, padding=1), LINES),
    Example("convolution, 2d, 3x3", "conv2d", lambda c: nn.Conv2d(c, c, 3, padding=1)),
    Example("convolution, 2d, pointwise", "conv2d", lambda c: nn.Conv2d(c, c, 1)),
    Example("convolution, 3d", "conv3d", lambda c: nn.Conv3d(c, c, 3, padding=1), VOLUMES),
    Example("grouped", "conv2d", lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c // 8)),
    Example("dilated", "conv2d", lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2)),
    Example("depthwise", "conv2d", lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c)),
    Example("depthwise, channels no multiple of 8", "conv2d",
            lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c), ((116, 28, 28), (116, 14, 14))),
    Example("depthwise, dilated", "conv2d",
            lambda c: nn.Conv2d(c, c, 3, padding=2, dilation=2, groups=c),
            ((232, 28, 28), (960, 14, 14))),
    Example("convolution with reflected padding", "conv2d",
            lambda c: nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect")),
    Example("transposed convolution, 1d", "conv_transpose1d",
            lambda c: nn.ConvTranspose1d(c, c, 2, 2), LINES),
    Example("transposed convolution, 2d", "conv_transpose2d",
            lambda c: nn.ConvTranspose2d(c, c // 2, 2, 2)),
    Example("transposed convolution, 3d", "conv_transpose3d",
            lambda c: nn.ConvTranspose3d(c, c, 2, 2), VOLUMES),
    Example("linear, of rows", "linear", lambda c: nn.Linear(c, 4 * c), TOKENS),
    Example("linear, the last layer", "linear", lambda c: nn.Linear(c, 1000), ((512,), (2048,)),
            last=True),
    Example("attention: its linear layers", "linear", _Attention, TOKENS),
    Example("attention: its product", "attention", _Attention, TOKENS),
    Example("LSTM", "lstm", lambda c: _Recurrent(nn.LSTM, c), STEPS),
    Example("GRU", "gru", lambda c: _Recurrent(nn.GRU, c), STEPS),
)  # fmt: skip
BETWEEN = (
    Example("residual sum", "add", lambda c: _Branch(c, operator.add)),
    Example("sum, its terms read again", "add",
            lambda c: _Branch(c, lambda x, y: torch.cat([x + y, x, y], 1))),
    Example("sum with a constant", "add", lambda c: lambda x: x + 1.0),
    Example("product of two tensors", "mul", lambda c: _Branch(c, operator.mul)),
    Example("squeeze-and-excitation: its product", "mul", _gate),
    Example("concat", "cat", lambda c: _Branch(c, lambda x, y: torch.cat([x, y], 1))),
    Example("batch norm that cannot be folded", "batch_norm",
            lambda c: nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(c))),
    Example("layer norm", "layer_norm", lambda c: nn.LayerNorm(c), TOKENS),
    Example("group norm", "group_norm", lambda c: nn.GroupNorm(8, c)),
    Example("max pooling", "max_pool2d", lambda c: nn.MaxPool2d(3, 2, 1)),
    Example("average pooling", "avg_pool2d", lambda c: nn.AvgPool2d(3, 1, 1)),
    Example("adaptive average pooling, to 7x7", "adaptive_avg_pool2d",
            lambda c: nn.AdaptiveAvgPool2d(7)),
    Example("adaptive average pooling, to 1x1", "adaptive_avg_pool2d",
            lambda c: nn.AdaptiveAvgPool2d(1)),
    Example("mean over height and width", "mean", lambda c: lambda x: x.mean((2, 3))),
    Example("interpolate, nearest", "interpolate", lambda c: nn.Upsample(scale_factor=2)),
    Example("interpolate, bilinear", "interpolate",
            lambda c: nn.Upsample(scale_factor=2, mode="bilinear")),
    Example("flatten", "flatten", lambda c: nn.Flatten()),
    Example("view, reshape", "reshape", lambda c: lambda x: x.view(1, 2 * c, -1, x.shape[3])),
    Example("permute", "permute", lambda c: lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    Example("chunk, split of channels", "narrow", lambda c: lambda x: x.chunk(2, 1)[0]),
    Example("chunk, split of another axis", "chunk", lambda c: lambda x: x.chunk(2, 2)[0]),
    Example("channel shuffle", "channel_shuffle", lambda c: _shuffled),
    Example("padding with zeros", "pad", lambda c: nn.ZeroPad2d(1)),
    Example("padding, reflected", "pad", lambda c: nn.ReflectionPad2d(1)),
)  # fmt: skip
_MODULES: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "ReLU": ("relu", lambda c: nn.ReLU()),
    "ReLU6": ("clip", lambda c: nn.ReLU6()),
    "LeakyReLU": ("leaky_relu", lambda c: nn.LeakyReLU(0.1)),
    "PReLU": ("prelu", nn.PReLU),
    "ELU": ("elu", lambda c: nn.ELU()),
    "Hardswish": ("hardswish", lambda c: nn.Hardswish()),
    "SiLU": ("silu", lambda c: nn.SiLU()),
    "GELU": ("gelu", lambda c: nn.GELU()),
    "Sigmoid": ("sigmoid", lambda c: nn.Sigmoid()),
    "Hardsigmoid": ("hardsigmoid", lambda c: nn.Hardsigmoid()),
    "Tanh": ("tanh", lambda c: nn.Tanh()),
}
