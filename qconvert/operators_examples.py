"""The operators of which the generated page tells: each in a small model, between two layers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
IMAGES: tuple[Shape, ...] = ((64, 56, 56), (256, 14, 14))
ODD: tuple[Shape, ...] = ((116, 28, 28), (122, 14, 14))
WIDE: tuple[Shape, ...] = ((232, 28, 28), (960, 14, 14))
LINES: tuple[Shape, ...] = ((64, 128), (128, 64))
VOLUMES: tuple[Shape, ...] = ((16, 8, 8, 8), (32, 8, 8, 8))
TOKENS: tuple[Shape, ...] = ((197, 192), (49, 384))
STEPS: tuple[Shape, ...] = ((20, 64), (40, 256))
FEATURES: tuple[Shape, ...] = ((512,), (2048,))


@dataclass(frozen=True)
class Example:
    """An operator of a kind, between two layers. `make` gets the number of channels or features."""

    about: str
    kind: str
    make: Callable[[int], nn.Module]
    shapes: tuple[Shape, ...] = IMAGES


class _Of(nn.Module):
    """A function of the input, and of what it is given to compute with."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


class Between(nn.Module):
    """A pointwise or linear layer, the operator, and another such layer unless it is the last."""

    def __init__(self, example: Example, shape: Shape) -> None:
        super().__init__()
        in_line = example.kind.endswith("1d")
        self.before = layer_of((1, *shape), in_line)
        self.what = example.make(shape[-1] if shape in TOKENS + STEPS else shape[0]).eval()
        result = self.what(torch.zeros(1, *shape))
        last = example.shapes == FEATURES
        self.after = nn.Identity() if last else layer_of(tuple(result.shape), in_line)

    def forward(self, x: Tensor) -> Any:
        return self.after(self.what(self.before(x)))


def layer_of(shape: Shape, in_line: bool) -> nn.Module:
    if len(shape) == 2 or (len(shape) == 3 and not in_line):
        return nn.Linear(shape[-1], min(shape[-1], 4096))
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    return kinds[len(shape)](shape[1], shape[1], 1)


def _conv(c: int, kind: Any = nn.Conv2d, **settings: Any) -> nn.Module:
    return kind(c, c, 3, **{"padding": 1, **settings})


def _joined(c: int, join: Callable[..., Any]) -> nn.Module:
    return _Of(lambda x, f: join(x, f(x)), nn.Sequential(_conv(c), _conv(c)))


def _gated(c: int) -> nn.Module:
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1), nn.Hardsigmoid())
    return _Of(lambda x, f: x * f(x), gate)


def _first(x: Tensor, layer: nn.Module) -> Any:
    return layer(x)[0]


def _attention(c: int) -> nn.Module:
    heads = nn.MultiheadAttention(c, c // 64, batch_first=True)
    return _Of(lambda x, f: f(x, x, x, need_weights=False)[0], heads)


def _pooled(make: Callable[[int], nn.Module], c: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(3, 1, 1), make(c))


def _shuffled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


LAYERS = (
    Example("convolution, 1d", "conv1d", lambda c: _conv(c, nn.Conv1d), LINES),
    Example("convolution, 2d, 3x3", "conv2d", _conv),
    Example("convolution, 2d, pointwise", "conv2d", lambda c: nn.Conv2d(c, c, 1)),
    Example("convolution, 3d", "conv3d", lambda c: _conv(c, nn.Conv3d), VOLUMES),
    Example("grouped", "conv2d", lambda c: _conv(c, groups=c // 8)),
    Example("dilated", "conv2d", lambda c: _conv(c, dilation=2)),
    Example("depthwise", "conv2d", lambda c: _conv(c, groups=c)),
    Example("depthwise, channels no multiple of 8", "conv2d", lambda c: _conv(c, groups=c), ODD),
    Example("depthwise, dilated", "conv2d", lambda c: _conv(c, dilation=2, groups=c), WIDE),
    Example("with reflected padding", "conv2d", lambda c: _conv(c, padding_mode="reflect")),
    Example("transposed, 1d", "conv_transpose1d", lambda c: _conv(c, nn.ConvTranspose1d), LINES),
    Example("transposed, 2d", "conv_transpose2d", lambda c: nn.ConvTranspose2d(c, c // 2, 2, 2)),
    Example("transposed, 3d", "conv_transpose3d", lambda c: _conv(c, nn.ConvTranspose3d), VOLUMES),
    Example("linear, of rows", "linear", lambda c: nn.Linear(c, 4 * c), TOKENS),
    Example("linear, the last layer", "linear", lambda c: nn.Linear(c, 1000), FEATURES),
    Example("attention: its linear layers", "linear", _attention, TOKENS),
    Example("attention: its product", "attention", _attention, TOKENS),
    Example("LSTM", "lstm", lambda c: _Of(_first, nn.LSTM(c, c, batch_first=True)), STEPS),
    Example("GRU", "gru", lambda c: _Of(_first, nn.GRU(c, c, batch_first=True)), STEPS),
)  # fmt: skip
BETWEEN = (
    Example("residual sum", "add", lambda c: _joined(c, operator.add)),
    Example("sum, its terms read again", "add",
            lambda c: _joined(c, lambda x, y: torch.cat([x + y, x, y], 1))),
    Example("sum with a constant", "add", lambda c: _Of(lambda x: x + 1.0)),
    Example("product of two tensors", "mul", lambda c: _joined(c, operator.mul)),
    Example("squeeze-and-excitation: its product", "mul", _gated),
    Example("concat", "cat", lambda c: _joined(c, lambda x, y: torch.cat([x, y], 1))),
    Example("batch norm, not folded", "batch_norm", partial(_pooled, nn.BatchNorm2d)),
    Example("layer norm", "layer_norm", nn.LayerNorm, TOKENS),
    Example("group norm", "group_norm", lambda c: nn.GroupNorm(8, c)),
    Example("softmax", "softmax", lambda c: nn.Softmax(-1), TOKENS),
    Example("max pooling", "max_pool2d", lambda c: nn.MaxPool2d(3, 2, 1)),
    Example("average pooling", "avg_pool2d", lambda c: nn.AvgPool2d(3, 1, 1)),
    Example("adaptive pooling, to 7 x 7", "adaptive_avg_pool2d", lambda c: nn.AdaptiveAvgPool2d(7)),
    Example("adaptive pooling, to 1 x 1", "adaptive_avg_pool2d", lambda c: nn.AdaptiveAvgPool2d(1)),
    Example("mean over height and width", "mean", lambda c: _Of(lambda x: x.mean((2, 3)))),
    Example("interpolate, nearest", "interpolate", lambda c: nn.Upsample(scale_factor=2)),
    Example("interpolate, bilinear", "interpolate", lambda c: nn.Upsample(None, 2, "bilinear")),
    Example("flatten", "flatten", lambda c: nn.Flatten()),
    Example("view, reshape", "reshape", lambda c: _Of(lambda x: x.view(1, 2 * c, -1, x.shape[3]))),
    Example("permute", "permute", lambda c: _Of(lambda x: x.permute(0, 1, 3, 2))),
    Example("chunk, split of channels", "narrow", lambda c: _Of(lambda x: x.chunk(2, 1)[0])),
    Example("chunk, split of another axis", "chunk", lambda c: _Of(lambda x: x.chunk(2, 2)[0])),
    Example("channel shuffle", "channel_shuffle", lambda c: _Of(_shuffled)),
    Example("padding with zeros", "pad", lambda c: nn.ZeroPad2d(1)),
    Example("padding, reflected", "pad", lambda c: nn.ReflectionPad2d(1)),
)  # fmt: skip
_ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda c: nn.ReLU(), "clip": lambda c: nn.ReLU6(),
    "leaky_relu": lambda c: nn.LeakyReLU(), "prelu": nn.PReLU, "elu": lambda c: nn.ELU(),
    "hardswish": lambda c: nn.Hardswish(), "silu": lambda c: nn.SiLU(),
    "gelu": lambda c: nn.GELU(), "sigmoid": lambda c: nn.Sigmoid(),
    "hardsigmoid": lambda c: nn.Hardsigmoid(), "tanh": lambda c: nn.Tanh(),
}  # fmt: skip


@cache
def activations(shapes: tuple[Shape, ...], pooled: bool = False) -> tuple[Example, ...]:
    """Each activation after a layer, or on its own after a pooling."""
    return tuple(
        Example(type(make(1)).__name__, kind, partial(_pooled, make) if pooled else make, shapes)
        for kind, make in _ACTIVATIONS.items()
        if kind != "prelu" or shapes is IMAGES
    )
