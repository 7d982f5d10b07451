"""The plan in float arithmetic: every tensor that the plan holds in int8 is rounded as int8 would
be, and stays float32. Predicts the int8 model's answers without its kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from qconvert.quantization.lowering.backend import Call, Layer
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.rules import UNROUNDED
from qconvert.quantization.weights import on_grid, quantized


class SimulatedBackend:
    """See `backend.Backend`."""

    form = "simulated"

    def __init__(self, graph: Graph, modules: dict[str, Any]) -> None:
        self.graph = graph
        self.modules = modules

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        """Rounds to the steps of int8 and stays float."""
        return self._rounded(x, held)

    def dequantize(self, x: Node, held: TensorParams) -> Node:
        """Nothing to do."""
        return x

    def reads_float(self, layer: Layer) -> bool:
        """Never."""
        return False

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """The float layer with rounded weights, then the sum and the activation."""
        module = copy.deepcopy(layer.module)
        weight = quantized(module.weight, layer.weight).dequantize()
        module.weight = nn.Parameter(weight, requires_grad=False)
        bias = on_grid(module.bias, layer.x_held.scale, layer.weight)
        if bias is not None:
            module.bias = nn.Parameter(bias, requires_grad=False)
        self.modules[layer.path] = module
        node = self.graph.call_module(layer.path, (x,))
        if term is not None:
            node = self.graph.call_function(torch.add, (node, term))
        return self._finished(node, layer.operator, layer.held)

    def combine(
        self,
        operator: PlannedOperator,
        xs: Sequence[Node],
        held: Sequence[TensorParams],
        axis: int,
    ) -> Node:
        """The float operator."""
        functions: dict[str, Any] = {"add": torch.add, "mul": torch.mul}
        if operator.kind == "leaky_relu":
            node = self.graph.call_function(F.leaky_relu, (*xs, operator.slope))
        elif operator.kind == "cat":
            node = self.graph.call_function(torch.cat, (list(xs), axis))
        else:
            node = self.graph.call_function(functions[operator.kind], tuple(xs))
        return self._finished(node, operator, held[-1])

    def normalize(
        self, operator: PlannedOperator, module: Any, path: str, x: Node, held: TensorParams
    ) -> Node:
        """The float batch norm."""
        self.modules[path] = module
        return self._finished(self.graph.call_module(path, (x,)), operator, held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """The float operator."""
        if call.module is not None:
            self.modules[call.target] = call.module
        node = self.graph.create_node(call.op, call.target, call.args, call.kwargs)
        return node if operator.kind in UNROUNDED else self._rounded(node, held)

    def pixels(self, module: Any, path: str, x: Node, held: TensorParams) -> Node:
        """The float operator: it rounds the mean around the pixels, these are whole."""
        self.modules[path] = module
        return self._rounded(self.graph.call_module(path, (x,)), held)

    def two_terms(
        self,
        operator: PlannedOperator,
        module: Any,
        path: str,
        x: Node,
        held: TensorParams,
        dimensions: int,
    ) -> Node:
        """The float operator, whose second term is rounded."""
        self.modules[path] = module
        return self._rounded(self.graph.call_module(path, (x,)), held)

    def _finished(self, node: Node, operator: PlannedOperator, held: TensorParams | None) -> Node:
        """Applies the activation that the kernel would."""
        function, arguments, kwargs = activation_in_float(operator)
        if function is not None:
            node = self.graph.call_function(function, (node, *arguments), kwargs)
        return node if held is None else self._rounded(node, held)

    def _rounded(self, x: Node, held: TensorParams) -> Node:
        arguments = (x, held.scale, held.zero_point, held.quant_min, held.quant_max)
        return self.graph.call_function(torch.fake_quantize_per_tensor_affine, arguments)


_ACTIVATIONS: dict[Any, tuple[Any, tuple[Any, ...]]] = {
    None: (None, ()),
    "relu": (torch.relu, ()),
    "saturation": (torch.clamp, ()),
    "hardswish": (F.hardswish, ()),
    "silu": (F.silu, ()),
    "gelu": (F.gelu, ()),
    "gelu_tanh": (F.gelu, ()),
    "tanh": (torch.tanh, ()),
    "leaky_relu": (F.leaky_relu, ()),
}


def activation_in_float(operator: PlannedOperator) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The float function (or None) of the activation that an operator's kernel computes, and its
    arguments after the tensor."""
    function, arguments = _ACTIVATIONS[operator.activation]
    if operator.activation == "saturation":
        arguments = tuple(operator.bounds or ())
    elif operator.activation == "leaky_relu":
        arguments = (operator.slope,)
    kwargs = {"approximate": "tanh"} if operator.activation == "gelu_tanh" else {}
    return function, arguments, kwargs


def simulated_dynamic(operator: PlannedOperator, module: Any) -> nn.Module:
    """A layer with dynamic ranges as the float layer with rounded weights: what is rounded as the
    model runs costs little beside it."""
    module = copy.deepcopy(module)
    weights = operator.cell_weights or {}
    if operator.weight is not None:
        weights = {"weight": operator.weight}
    for name, params in weights.items():
        weight = quantized(getattr(module, name), params).dequantize()
        setattr(module, name, nn.Parameter(weight, requires_grad=False))
    return module.eval()
