"""The plan in float arithmetic, as `simulated.py`, with weights, biases, weight scales and ranges
that learn.

What is learned is the distance from where the plan begins, in units of its own steps: zeros compute
what the simulation does, bit by bit, and one learning rate suits layers and channels of any size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import log
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from qconvert.quantization.affine import SMALLEST_SCALE
from qconvert.quantization.fake_quantization import FakeQuantizedChannels, FakeQuantizedTensor
from qconvert.quantization.lowering.backend import Call, Layer
from qconvert.quantization.lowering.simulated import SimulatedBackend
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.rules import overflows_with_vnni
from qconvert.quantization.weights import fits_in_pairs, least_scales

# One unit of a weight is a step for a 3x3 filter of one channel, and less for more inputs: what is
# learned of the inputs of a sum often has one sign, and adds up.
_INPUTS = 9
# One unit of a bias, in steps of the sums, times the root of their inputs.
_BIAS_UNIT = 32.0
# One unit of a zero point, so that it moves as far as the other end of a range does.
_ZERO_UNIT = 255.0
# Channels whose products no longer fit into 16 bits get larger scales, by so much at a time.
_COARSER = 0.01
# What a scale changes at most by following its weight.
_CHANGE, _TINY = 1e3, 1e-30
# Biases are held in 32 bits.
_LARGEST_BIAS = 2**31 - 1


class LearnedRange(nn.Module):
    """Rounds one tensor, or those that share a range. `bound` is where the range ends at most. A
    range that begins at zero, or has zero in the middle, keeps it there; a `fixed` one learns
    nothing."""

    begin: Tensor
    begin_zero: Tensor

    def __init__(self, held: TensorParams, bound: float | None, fixed: bool) -> None:
        super().__init__()
        self.quant_min, self.quant_max = held.quant_min, held.quant_max
        self.bound = bound
        self.register_buffer("begin", torch.tensor(held.scale))
        self.register_buffer("begin_zero", torch.tensor(float(held.zero_point)))
        middle = (held.quant_min + held.quant_max + 1) // 2
        self.from_zero = held.zero_point == held.quant_min
        zero_stays = fixed or self.from_zero or held.zero_point == middle
        self.growth = nn.Parameter(torch.zeros(()), requires_grad=not fixed)
        self.shift = nn.Parameter(torch.zeros(()), requires_grad=not zero_stays)

    @property
    def scale(self) -> Tensor:
        """float32, one value."""
        return self.begin * self.growth.exp()

    @property
    def zero_point(self) -> Tensor:
        """float32, one value; it is rounded where it is used."""
        moved = self.begin_zero + _ZERO_UNIT * self.shift
        return moved.clamp(self.quant_min, self.quant_max)

    def clips(self, bound: float) -> bool:
        """Whether what is rounded needs no clip to 0 and this bound before."""
        return self.from_zero and self.bound is not None and self.bound <= bound

    def forward(self, x: Tensor) -> Tensor:
        """float32 of any shape."""
        ends = self.quant_min, self.quant_max
        rounded: Tensor = FakeQuantizedTensor.apply(x, self.scale, self.zero_point, *ends)
        return rounded

    @torch.no_grad()
    def keep_within(self) -> None:
        """Takes back what went beyond the bound, or below what kernels can tell from zero."""
        begin = float(self.begin)
        largest = float("inf")
        if self.bound is not None:
            above = self.quant_max - round(float(self.zero_point))
            largest = log(max(self.bound / (max(above, 1) * begin), 1.0))
        self.growth.clamp_(min(log(SMALLEST_SCALE / begin), 0.0), largest)


class LearnedLayer(nn.Module):
    """A convolution or linear layer whose weight, bias and weight scales learn, if it `learns`.
    Unless it `rounds`, its weight is used as it is, and its scales follow at the end; then whole
    channels grow or shrink, those that it returns and those that it reads: what a layer makes
    larger, above the noise of its tensor, the next can make smaller."""

    begin_weight: Tensor
    begin_bias: Tensor
    begin_scales: Tensor
    zero_points: Tensor

    def __init__(self, layer: Layer, x_range: LearnedRange, learns: bool, rounds: bool) -> None:
        super().__init__()
        self.learns, self.rounds = learns, rounds
        module, params = layer.module, layer.weight
        self.layer = layer
        self._x_range = [x_range]  # in a list: it is no part of this one
        weight = module.weight.detach()
        self.register_buffer("begin_weight", weight)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias.detach()
        self.register_buffer("begin_bias", bias)
        self.register_buffer("begin_scales", torch.tensor(params.scales))
        self.register_buffer("zero_points", torch.tensor(params.zero_points, dtype=torch.int32))
        self._axes = [-1, *[1] * (weight.dim() - 1)]
        inputs = weight[0].numel()
        self._weight_unit = min(1.0, (_INPUTS / inputs) ** 0.5)
        self._bias_unit = _BIAS_UNIT * inputs**0.5
        self.steps = nn.Parameter(torch.zeros_like(weight), requires_grad=learns)
        self.growth = nn.Parameter(torch.zeros_like(self.begin_scales), requires_grad=learns)
        gains = torch.zeros_like(weight[:1])
        gains = (
            gains if weight.dim() == 2 else gains.flatten(2)[..., :1].view(1, -1, *self._axes[2:])
        )
        self.reading = nn.Parameter(gains, requires_grad=learns and not rounds)
        self.bias_steps = nn.Parameter(torch.zeros_like(bias), requires_grad=learns)
        narrow = layer.operator.lowering is not None and overflows_with_vnni(
            module, layer.operator.lowering, params.scheme
        )
        self._pairs = (narrow, layer.operator.fewer_bits)

    @property
    def scales(self) -> Tensor:
        """float32, one for each channel or one in all."""
        return self.begin_scales * self.growth.exp()

    @property
    def bias(self) -> Tensor:
        """float32, before it is rounded."""
        unit = self._bias_unit * self.begin_scales * self._x_range[0].begin
        bias = self.begin_bias + unit * self.bias_steps
        return bias if self.rounds else bias * self.growth.exp()

    @property
    def weight(self) -> Tensor:
        """float32, before it is rounded."""
        unit = self._weight_unit * self.begin_scales.view(self._axes)
        weight = self.begin_weight + unit * self.steps
        if self.rounds:
            return weight
        return weight * (self.growth.view(self._axes) + self.reading).exp()

    @property
    def rounded_weight(self) -> Tensor:
        """float32, on the steps of int8."""
        params = self.layer.weight
        rounded: Tensor = FakeQuantizedChannels.apply(
            self.weight, self.scales, self.zero_points, params.quant_min, params.quant_max
        )
        return rounded

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer."""
        module: Any = self.layer.module
        weight, bias = self.rounded_weight if self.rounds else self.weight, self.bias
        if isinstance(module, nn.Linear):
            return F.linear(x, weight, self._on_grid(bias))
        convolve = getattr(F, f"conv{weight.dim() - 2}d")
        settings = module.stride, module.padding, module.dilation, module.groups
        result: Tensor = convolve(x, weight, self._on_grid(bias), *settings)
        return result

    def _on_grid(self, bias: Tensor) -> Tensor:
        """As `weights.on_grid`; the gradient passes."""
        with torch.no_grad():
            step = self.scales.double() * self._x_range[0].scale.double()
            whole = (bias.double() / step).round().clamp(-_LARGEST_BIAS, _LARGEST_BIAS)
            rounded = (whole * step).float()
        return rounded + (bias - bias.detach())

    @torch.no_grad()
    def keep_within(self) -> None:
        """Makes scales larger where a bias would not fit into 32 bits, or where sums of products
        would not fit into the 16 bits that they did fit into."""
        least = least_scales(self.bias, float(self._x_range[0].scale))
        assert least is not None
        floor = least if len(self.growth) > 1 else least.max().reshape(1)
        self.growth.copy_(torch.maximum(self.growth, (floor / self.begin_scales).log()))
        while any(self._pairs):
            over = ~fits_in_pairs(self._integers(), *self._pairs)
            if not over.any():
                break
            self.growth.add_(_COARSER * (over if len(self.growth) > 1 else over.any()))

    @torch.no_grad()
    def settled(self) -> Tensor:
        """The weight that was not rounded; from here on it is, with scales that follow its
        size."""
        weight, bias = self.weight, self.bias
        before, now = (x.abs().flatten(1).amax(1) for x in (self.begin_weight, weight))
        self.begin_weight, self.begin_bias, self.rounds = weight, bias, True
        for learned in (self.steps, self.bias_steps, self.reading):
            learned.zero_()
        if len(self.growth) == 1:
            before, now = before.max().reshape(1), now.max().reshape(1)
        ratio = now.clamp(min=_TINY) / before.clamp(min=_TINY)
        self.growth.copy_(ratio.clamp(1 / _CHANGE, _CHANGE).log())
        self.keep_within()
        return weight

    def _integers(self) -> Tensor:
        scales = self.scales.view(self._axes)
        return (self.rounded_weight / scales).round() + self.zero_points.view(self._axes)


class TrainableBackend(SimulatedBackend):
    """See `backend.Backend`. `ranges` are by the observers of the plan's tensors, `learning` the
    nodes whose layers learn; these round their weights if it `rounds`. `values` are the nodes under
    construction of the results, by their names in the plan."""

    def __init__(
        self,
        graph: Graph,
        modules: dict[str, Any],
        ranges: Mapping[str, LearnedRange],
        learning: Collection[str],
        rounds: bool,
    ) -> None:
        super().__init__(graph, modules)
        self._ranges = ranges
        self._learning, self._rounds = learning, rounds
        self.values: dict[str, Node] = {}

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """A layer that learns."""
        x_range = self._ranges[layer.x_held.observer]
        learns = layer.operator.node in self._learning
        rounds = self._rounds or not learns
        self.modules[layer.path] = LearnedLayer(layer, x_range, learns, rounds)
        node = self.graph.call_module(layer.path, (x,))
        if term is not None:
            node = self.graph.call_function(torch.add, (node, term))
        return self._finished(node, layer.operator, layer.held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """The float operator."""
        node = super().same_range(operator, call, held)
        self.values[operator.value] = node
        return node

    def _finished(self, node: Node, operator: PlannedOperator, held: TensorParams | None) -> Node:
        """Without an activation that rounding does anyway: it would be another pass."""
        own = None if held is None else self._ranges[held.observer]
        if own is None or held is None or not _is_clip(operator, own):
            node = super()._finished(node, operator, held)
        else:
            node = self._rounded(node, held)
        self.values[operator.value] = node
        return node

    def _rounded(self, x: Node, held: TensorParams) -> Node:
        self.modules[held.observer] = self._ranges[held.observer]
        return self.graph.call_module(held.observer, (x,))


def _is_clip(operator: PlannedOperator, own: LearnedRange) -> bool:
    if operator.activation == "saturation" and operator.bounds is not None:
        return operator.bounds[0] == 0 and own.clips(operator.bounds[1])
    return operator.activation == "relu" and own.from_zero
