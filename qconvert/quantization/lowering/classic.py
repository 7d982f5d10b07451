"""The classic int8 operators of torch: `quantized::conv2d` and its family, on quint8 tensors.

They work under torch's default engine, which picks oneDNN or fbgemm by shape and CPU when the
weights are packed. Weights travel packed inside the TorchScript file. Nothing of torch.ao is
used, and no global setting is read or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from qconvert.quantization.lowering.backend import Call, Layer
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.rules import padding
from qconvert.quantization.weights import on_grid, quantized

_OPERATORS = torch.ops.quantized
# What a quint8 tensor can hold; a plan with fewer bits needs an explicit clamp.
_LARGEST = 255


class ClassicBackend:
    """See `backend.Backend`."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}

    def quantize(self, x: Node, held: TensorParams, dimensions: int) -> Node:
        """The kernels work on channels-last memory: convert while it is the input's few bytes."""
        if dimensions == 4:
            x = self.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
        arguments = (x, held.scale, held.zero_point, torch.quint8)
        return self._bounded(self.graph.call_function(torch.quantize_per_tensor, arguments), held)

    def dequantize(self, x: Node) -> Node:
        """From quint8 to float32."""
        return self.graph.call_method("dequantize", (x,))

    def weighted(self, layer: Layer, x: Node) -> Node:
        """A module that holds the packed weight, one for each place that calls it."""
        packed = _packed(layer)
        if layer.held is None:
            self.modules[layer.path] = FloatOutputLinear(packed, layer.x_held)
            return self.graph.call_module(layer.path, (x,))
        operator = layer.kind + ("_relu" if layer.relu else "")
        self.modules[layer.path] = Int8Layer(operator, packed, layer.held)
        return self._bounded(self.graph.call_module(layer.path, (x,)), layer.held)

    def combine(
        self, operator: PlannedOperator, xs: Sequence[Node], held: TensorParams, axis: int
    ) -> Node:
        """`quantized::add`, `add_relu` or `cat`: rounds once, to the result's scale."""
        relu = "_relu" if operator.activation is not None else ""
        function = getattr(_OPERATORS, operator.kind + relu)
        operands = (list(xs), axis) if operator.kind == "cat" else tuple(xs)
        node = self.graph.call_function(function, (*operands, held.scale, held.zero_point))
        return self._bounded(node, held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """The operators of torch that take quint8 tensors as they are."""
        if operator.kind == "clip":
            if operator.bounds is None:
                raise AssertionError(f"{operator.name}: planned in int8 without bounds")
            return self.graph.call_function(torch.clamp, (call.args[0], *operator.bounds))
        if call.module is not None:
            self.modules[call.target] = call.module
        return self.graph.create_node(call.op, call.target, call.args, call.kwargs)

    def _bounded(self, node: Node, held: TensorParams) -> Node:
        """Keeps integers inside a plan's bits where these are fewer than 8."""
        if held.quant_max == _LARGEST:
            return node
        bounds = (held.params.minimum, held.params.maximum)
        return self.graph.call_function(torch.clamp, (node, *bounds))


class Int8Layer(nn.Module):
    """A layer on quint8 tensors with its weight packed for the kernels."""

    def __init__(self, operator: str, packed: Any, held: TensorParams) -> None:
        super().__init__()
        self.operator = operator
        self.packed = packed
        self.scale = held.scale
        self.zero_point = held.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """quint8 in, quint8 out, in the layout of the float layer."""
        return getattr(_OPERATORS, self.operator)(x, self.packed, self.scale, self.zero_point)


class FloatOutputLinear(nn.Module):
    """A linear layer that computes in int8 and returns its 32-bit sums as float."""

    def __init__(self, packed: Any, x_held: TensorParams) -> None:
        super().__init__()
        self.packed = packed
        self.scale = x_held.scale
        self.zero_point = x_held.zero_point
        self.limits = (x_held.params.minimum, x_held.params.maximum)
        self.fewer_bits = x_held.quant_max != _LARGEST

    def forward(self, x: Tensor) -> Tensor:
        """Float in, float out; the input is quantized inside."""
        if self.fewer_bits:
            x = x.clamp(*self.limits)
        return _OPERATORS.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, self.scale, self.zero_point, self.packed
        )


def _packed(layer: Layer) -> Any:
    """The weight in qint8 and the bias on the grid of qint32, packed by torch."""
    module = layer.module
    weight = quantized(module.weight, layer.weight)
    bias = on_grid(module.bias, layer.x_held.scale, layer.weight)
    if layer.kind == "linear":
        return _OPERATORS.linear_prepack(weight, bias)
    return getattr(_OPERATORS, f"{layer.kind}_prepack")(
        weight, bias, list(module.stride), padding(module), list(module.dilation), module.groups
    )
