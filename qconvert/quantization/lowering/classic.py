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

from qconvert.quantization.kernels import FLOAT_LINEAR, operator
from qconvert.quantization.lowering.backend import FLOAT, Call, Layer
from qconvert.quantization.lowering.pixels import pixels_module
from qconvert.quantization.lowering.reinterpretation import as_quint8
from qconvert.quantization.lowering.two_terms import in_two_terms
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.rules import padding
from qconvert.quantization.weights import on_grid, quantized

_OPERATORS = torch.ops.quantized
# What a quint8 tensor can hold; a plan with fewer bits needs an explicit clamp.
_LARGEST = 255


class ClassicBackend:
    """See `backend.Backend`. A value in int8 is a quint8 tensor."""

    form = "classic"

    def __init__(self, graph: Graph, modules: dict[str, Any]) -> None:
        self.graph = graph
        self.modules = modules

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        """From float, or from a plain uint8 tensor, which gets its scale."""
        if form != FLOAT:
            arguments: tuple[Any, ...] = (x, held.scale, held.zero_point)
            return self.graph.call_function(as_quint8, arguments)
        if dimensions == 4:
            # The kernels work on channels-last memory: convert while it is the input's few bytes.
            x = self.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
        arguments = (x, held.scale, held.zero_point, torch.quint8)
        return self._bounded(self.graph.call_function(torch.quantize_per_tensor, arguments), held)

    def dequantize(self, x: Node, held: TensorParams) -> Node:
        """From quint8 to float32."""
        return self.graph.call_method("dequantize", (x,))

    def reads_float(self, layer: Layer) -> bool:
        """The linear layer with float output quantizes by itself."""
        return layer.operator.kernel == FLOAT_LINEAR

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """A module that holds the packed weight, one for each place that calls it."""
        packed, kernel = _packed(layer), str(layer.operator.kernel)
        module: nn.Module = (
            FloatOutputLinear(packed, layer.x_held)
            if layer.held is None
            else Int8Layer(kernel, packed, layer.held)
        )
        if layer.operator.kind != "linear" and _computes_linear(layer):
            module = OverChannels(module)
        self.modules[layer.path] = module
        if layer.held is None:
            return self.graph.call_module(layer.path, (x,))
        return self._bounded(self.graph.call_module(layer.path, (x,)), layer.held)

    def combine(
        self,
        operator: PlannedOperator,
        xs: Sequence[Node],
        held: Sequence[TensorParams],
        axis: int,
    ) -> Node:
        """`quantized::add`, `mul`, `cat` or an activation: rounds once, to the result's scale."""
        result = held[-1]
        operands: tuple[Any, ...] = tuple(xs)
        if operator.kind == "cat":
            operands = (list(xs), axis)
        elif operator.kind == "leaky_relu":
            operands = (*xs, operator.slope, False)  # not in place
        function = _function(operator)
        node = self.graph.call_function(function, (*operands, result.scale, result.zero_point))
        return self._bounded(node, result)

    def normalize(
        self, operator: PlannedOperator, module: Any, path: str, x: Node, held: TensorParams
    ) -> Node:
        """`quantized::batch_norm2d` with its statistics in a module."""
        self.modules[path] = Int8BatchNorm(str(operator.kernel), module, held)
        return self._bounded(self.graph.call_module(path, (x,)), held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """The operators of torch that take quint8 tensors as they are."""
        if operator.kind == "clip":
            if operator.bounds is None:
                raise AssertionError(f"{operator.name}: planned in int8 without bounds")
            return self.graph.call_function(torch.clamp, (call.args[0], *operator.bounds))
        if call.module is not None:
            self.modules[call.target] = call.module
        return self.graph.create_node(call.op, call.target, call.args, call.kwargs)

    def pixels(self, module: Any, path: str, x: Node, held: TensorParams) -> Node:
        """With their scale, for which torch copies them once."""
        self.modules[path] = pixels_module(module, held)
        node = self.graph.call_module(path, (x,))
        return self.bring(node, "direct", held, 4)

    def two_terms(
        self,
        operator: PlannedOperator,
        module: Any,
        path: str,
        x: Node,
        held: TensorParams,
        dimensions: int,
    ) -> Node:
        """Each term is quantized by itself."""
        return in_two_terms(self, module, x, held, dimensions)

    def _bounded(self, node: Node, held: TensorParams) -> Node:
        """Keeps integers inside a plan's bits where these are fewer than 8."""
        if held.quant_max == _LARGEST:
            return node
        bounds = (held.params.minimum, held.params.maximum)
        return self.graph.call_function(torch.clamp, (node, *bounds))


class Int8Layer(nn.Module):
    """A layer on quint8 tensors with its weight packed for the kernels."""

    def __init__(self, kernel: str, packed: Any, held: TensorParams) -> None:
        super().__init__()
        self.kernel = kernel
        self.packed = packed
        self.scale = held.scale
        self.zero_point = held.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """quint8 in, quint8 out, in the layout of the float layer."""
        return operator(self.kernel)(x, self.packed, self.scale, self.zero_point)


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
        return operator(FLOAT_LINEAR)(x, self.scale, self.zero_point, self.packed)


class OverChannels(nn.Module):
    """A linear layer in the place of a 1x1 convolution, at every place of the image."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H, W), which lies channels last."""
        result: Tensor = self.layer(x.permute(0, 2, 3, 1))
        return result.permute(0, 3, 1, 2)


class Int8BatchNorm(nn.Module):
    """A batch norm of a quint8 tensor, in the statistics of the float layer."""

    def __init__(self, kernel: str, module: Any, held: TensorParams) -> None:
        super().__init__()
        self.kernel = kernel
        mean = module.running_mean
        weight, bias = module.weight, module.bias
        self.register_buffer("weight", torch.ones_like(mean) if weight is None else weight.detach())
        self.register_buffer("bias", torch.zeros_like(mean) if bias is None else bias.detach())
        self.register_buffer("mean", mean)
        self.register_buffer("variance", module.running_var)
        self.eps = module.eps
        self.scale = held.scale
        self.zero_point = held.zero_point

    def forward(self, x: Tensor) -> Tensor:
        """quint8 in, quint8 out."""
        return operator(self.kernel)(
            x, self.weight, self.bias, self.mean, self.variance, self.eps, self.scale,
            self.zero_point,
        )  # fmt: skip


def _function(planned: PlannedOperator) -> Any:
    return operator(str(planned.kernel))


def _computes_linear(layer: Layer) -> bool:
    return "::linear" in str(layer.operator.kernel)


def _packed(layer: Layer) -> Any:
    """The weight in qint8 and the bias on the grid of qint32, packed by torch."""
    module, kind = layer.module, layer.operator.kind
    bias = on_grid(module.bias, layer.x_held.scale, layer.weight)
    if _computes_linear(layer):
        return _OPERATORS.linear_prepack(quantized(module.weight.flatten(1), layer.weight), bias)
    weight = quantized(module.weight, layer.weight)
    return getattr(_OPERATORS, f"{kind}_prepack")(
        weight, bias, list(module.stride), padding(module), list(module.dilation), module.groups
    )
