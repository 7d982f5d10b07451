"""oneDNN's own operators on plain uint8 tensors.

They know neither torch's global engine nor its quantized dtypes: scales and zero points are
arguments, sums are exact in 32 bits for every layer, activations and residual sums are computed in
the kernel. Weights lie in the file as int8 and are packed when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from qconvert import torchscript
from qconvert.models.operators import REARRANGING
from qconvert.quantization.affine import quantize
from qconvert.quantization.lowering.backend import FLOAT, Call, Layer
from qconvert.quantization.lowering.direct_layers import (
    DirectConvolution,
    DirectLinear,
    DirectSum,
)
from qconvert.quantization.lowering.pixels import pixels_module
from qconvert.quantization.lowering.reinterpretation import as_quint8, as_uint8
from qconvert.quantization.lowering.two_terms import in_two_terms
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.rules import ALONE, max_pool_settings, padding
from qconvert.quantization.weights import on_grid, quantized

# What a uint8 tensor can hold; a plan with fewer bits needs an explicit clamp.
_LARGEST = 255
# oneDNN's names of activations.
_POST = {
    None: "none", "relu": "relu", "saturation": "relu", "hardswish": "hardswish", "silu": "swish",
    "gelu": "gelu", "gelu_tanh": "gelu", "tanh": "tanh", "leaky_relu": "leaky_relu",
}  # fmt: skip


class DirectBackend:
    """See `backend.Backend`. A value in int8 is a plain uint8 tensor.

    `plain` graphs have no quantized dtype, also not on the way from and to float, which then takes
    longer: torch's kernels for that are those of the quantized dtypes.
    """

    form = "direct"

    def __init__(self, graph: Graph, modules: dict[str, Any], plain: bool) -> None:
        self.graph = graph
        self.modules = modules
        self._plain = plain

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        """From float, or from a quint8 tensor, whose memory is read as uint8."""
        if form != FLOAT:
            return self.graph.call_function(as_uint8, (x,))
        if dimensions == 4:
            x = self.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
        if not self._plain:
            arguments = (x, held.scale, held.zero_point, torch.quint8)
            x = self.graph.call_function(torch.quantize_per_tensor, arguments)
            return self._bounded(self.graph.call_function(as_uint8, (x,)), held)
        # As `affine.quantize` and torch's kernel: rounds before it adds the zero point.
        reciprocal = float(1.0 / torch.tensor(held.scale, dtype=torch.float32))
        x = self.graph.call_function(torch.mul, (x, reciprocal))
        x = self.graph.call_function(torch.round, (x,))
        x = self.graph.call_function(torch.add, (x, float(held.zero_point)))
        bounds = (float(held.quant_min), float(held.quant_max))
        x = self.graph.call_function(torch.clamp, (x, *bounds))
        return self.graph.call_method("to", (x, torch.uint8))

    def dequantize(self, x: Node, held: TensorParams) -> Node:
        """From uint8 to float32."""
        if not self._plain:
            arguments: tuple[Any, ...] = (x, held.scale, held.zero_point)
            x = self.graph.call_function(as_quint8, arguments)
            return self.graph.call_method("dequantize", (x,))
        x = self.graph.call_method("to", (x, torch.float32))
        x = self.graph.call_function(torch.sub, (x, float(held.zero_point)))
        return self.graph.call_function(torch.mul, (x, held.scale))

    def reads_float(self, layer: Layer) -> bool:
        """Never."""
        return False

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """A scripted module that holds the int8 weight, one for each place that calls it."""
        self.modules[layer.path] = torchscript.script(_module(layer))
        node = self.graph.call_module(layer.path, (x,) if term is None else (x, term))
        return node if layer.held is None else self._bounded(node, layer.held)

    def combine(
        self,
        operator: PlannedOperator,
        xs: Sequence[Node],
        held: Sequence[TensorParams],
        axis: int,
    ) -> Node:
        """A concatenation, whose inputs that are held otherwise are rounded anew; sums and products
        in float arithmetic. onednn::qadd and qmul are not used: on uint8 they turn what is above
        127 into 0 (torch 2.14: 200 + 200, in 64 elements or more)."""
        *sources, result = held
        if operator.kind in ALONE:
            raise AssertionError(f"{operator.name}: planned as a direct {operator.kind}")
        if operator.kind != "cat":
            terms = [self.dequantize(x, source) for x, source in zip(xs, sources, strict=True)]
            function: Any = {"add": torch.add, "mul": torch.mul}[operator.kind]
            node = self.graph.call_function(function, tuple(terms))
            if operator.activation is not None:
                node = self.graph.call_function(torch.relu, (node,))
            return self.bring(node, FLOAT, result, 0)
        parts = [
            x if source == result else self._rounded_anew(x, source, result)
            for x, source in zip(xs, sources, strict=True)
        ]
        return self.graph.call_function(torch.cat, (parts, axis))

    def normalize(
        self, operator: PlannedOperator, module: Any, path: str, x: Node, held: TensorParams
    ) -> Node:
        """Not planned: see `rules.why_impossible`."""
        raise AssertionError(f"{operator.name}: planned as a direct batch norm")

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """Activations are bounds on the integers, poolings maxima of slices, the rest torch's."""
        x = call.args[0]
        if operator.kind in ("relu", "clip"):
            low, high = operator.bounds or (0.0, held.params.maximum)
            bounds = quantize(torch.tensor([low, high]), held.params).tolist()
            return self.graph.call_function(torch.clamp, (x, *bounds))
        if operator.kind == "max_pool2d":
            return self._max_pool(x, call)
        if operator.kind == "pad":
            return self._pad(x, call, held)
        if operator.kind not in REARRANGING:
            raise AssertionError(f"{operator.name}: planned as a direct {operator.kind}")
        if call.module is not None:
            self.modules[call.target] = call.module
        return self.graph.create_node(call.op, call.target, call.args, call.kwargs)

    def pixels(self, module: Any, path: str, x: Node, held: TensorParams) -> Node:
        """As they are."""
        self.modules[path] = pixels_module(module, held)
        return self.graph.call_module(path, (x,))

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

    def _pad(self, x: Node, call: Call, held: TensorParams) -> Node:
        """With the integer that stands for zero."""
        module: Any = call.module
        given = call.args[1] if len(call.args) > 1 else call.kwargs.get("pad")
        widths = given if module is None else list(module.padding)
        arguments = (x, widths, "constant", held.zero_point)
        return self.graph.call_function(torch.nn.functional.pad, arguments)

    def _max_pool(self, x: Node, call: Call) -> Node:
        """torch has no max pooling of uint8: maxima of slices, first of rows, then of columns.

        The slices end relative to the end of their axis, so any size will do.
        """
        settings = max_pool_settings(call.module, call.args, call.kwargs)
        if settings is None:
            raise AssertionError("a pooling that slices cannot compute")
        kernel, stride, (high, wide) = settings
        if high or wide:
            # No integer is below 0.
            arguments = (x, [wide, wide, high, high], "constant", 0)
            x = self.graph.call_function(torch.nn.functional.pad, arguments)
        for axis in (0, 1):
            parts = []
            for i in range(kernel[axis]):
                end = i + 1 - kernel[axis]
                index = [slice(None)] * (2 + axis) + [slice(i, end or None, stride[axis])]
                parts.append(self.graph.call_function(_getitem, (x, tuple(index))))
            x = parts[0]
            for part in parts[1:]:
                x = self.graph.call_function(torch.maximum, (x, part))
        return x

    def _rounded_anew(self, x: Node, source: TensorParams, result: TensorParams) -> Node:
        return self.bring(self.dequantize(x, source), FLOAT, result, 0)

    def _bounded(self, node: Node, held: TensorParams) -> Node:
        """Keeps integers inside a plan's bits where these are fewer than 8."""
        if held.quant_max == _LARGEST:
            return node
        return self.graph.call_function(torch.clamp, (node, held.quant_min, held.quant_max))


def _getitem(x: Any, index: Any) -> Any:
    return x[index]


def _module(layer: Layer) -> torch.nn.Module:
    planned, held = layer.operator, layer.held
    weight = quantized(layer.module.weight, layer.weight)
    bias = on_grid(layer.module.bias, layer.x_held.scale, layer.weight)
    outputs = weight.shape[0]
    scales = torch.tensor(layer.weight.scales, dtype=torch.float32).expand(outputs).contiguous()
    bias = torch.zeros(outputs) if bias is None else bias
    x_zero_point = layer.x_held.zero_point
    if planned.kind == "linear" or not any(padding(layer.module) or ()):
        # Every sum has every weight in it, so what the zero point adds to it is constant. The
        # kernel would compute it anew at each call (1,152 to 192 channels, 7x7: 184 against 77
        # microseconds; fully in 32 bits, as here).
        sums = weight.int_repr().double().flatten(1).sum(1)
        bias = (bias.double() - x_zero_point * layer.x_held.scale * scales.double() * sums).float()
        x_zero_point = 0
    tensors = (weight.int_repr(), scales, bias)
    post, numbers = _POST[planned.activation], list[float]()
    if planned.activation == "saturation" and held is None:
        # In uint8 the range ends at the bound.
        post, numbers = "hardtanh", list(planned.bounds or ())
    elif planned.slope is not None:
        numbers = [planned.slope]
    common: dict[str, Any] = {
        "x_scale": layer.x_held.scale,
        "x_zero_point": x_zero_point,
        "scale": 1.0 if held is None else held.scale,
        "zero_point": 0 if held is None else held.zero_point,
        "post": post,
        "x_shape": [1, *layer.x_shape[1:]],
    }
    if planned.kind == "linear":
        algorithm = {"gelu": "none", "gelu_tanh": "tanh"}.get(str(planned.activation), "")
        common |= {"float_output": held is None, "numbers": numbers, "algorithm": algorithm}
        return DirectLinear(*tensors, common)
    module = layer.module
    common |= {
        "stride": list(module.stride),
        "padding": padding(module),
        "dilation": list(module.dilation),
        "groups": module.groups,
    }
    if layer.term_held is not None:
        common |= {
            "term_scale": layer.term_held.scale,
            "term_zero_point": layer.term_held.zero_point,
        }
        return DirectSum(*tensors, common)
    common |= {"float_output": held is None, "numbers": numbers}
    return DirectConvolution(*tensors, common)
