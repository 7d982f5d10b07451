"""The plan in float arithmetic: every tensor that the plan holds in int8 is rounded as int8 would
be, and stays float32. Predicts the int8 model's answers without its kernels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from qconvert.quantization.lowering.backend import Call, Layer
from qconvert.quantization.plan import PlannedOperator, TensorParams
from qconvert.quantization.weights import on_grid, quantized

# Their result lies between the steps of their input's scale and is rounded again.
_AVERAGING = ("avg_pool2d", "adaptive_avg_pool2d")


class SimulatedBackend:
    """See `backend.Backend`."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}

    def quantize(self, x: Node, held: TensorParams, dimensions: int) -> Node:
        """Rounds to the steps of int8 and stays float."""
        return self._rounded(x, held)

    def dequantize(self, x: Node) -> Node:
        """Nothing to do."""
        return x

    def weighted(self, layer: Layer, x: Node) -> Node:
        """The float layer with rounded weights."""
        module = copy.deepcopy(layer.module)
        weight = quantized(module.weight, layer.weight).dequantize()
        module.weight = nn.Parameter(weight, requires_grad=False)
        bias = on_grid(module.bias, layer.x_held.scale, layer.weight)
        if bias is not None:
            module.bias = nn.Parameter(bias, requires_grad=False)
        self.modules[layer.path] = module
        if layer.held is None:
            return self.graph.call_module(layer.path, (self._rounded(x, layer.x_held),))
        return self._finished(self.graph.call_module(layer.path, (x,)), layer.relu, layer.held)

    def combine(
        self, operator: PlannedOperator, xs: Sequence[Node], held: TensorParams, axis: int
    ) -> Node:
        """The float addition or concatenation."""
        if operator.kind == "cat":
            node = self.graph.call_function(torch.cat, (list(xs), axis))
        else:
            node = self.graph.call_function(torch.add, tuple(xs))
        return self._finished(node, operator.activation is not None, held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """The float operator."""
        if call.module is not None:
            self.modules[call.target] = call.module
        node = self.graph.create_node(call.op, call.target, call.args, call.kwargs)
        return self._rounded(node, held) if operator.kind in _AVERAGING else node

    def _finished(self, node: Node, relu: bool, held: TensorParams) -> Node:
        """Applies the activation that the kernel would (saturation is the rounding's own)."""
        if relu:
            node = self.graph.call_function(torch.relu, (node,))
        return self._rounded(node, held)

    def _rounded(self, x: Node, held: TensorParams) -> Node:
        arguments = (x, held.scale, held.zero_point, held.quant_min, held.quant_max)
        return self.graph.call_function(torch.fake_quantize_per_tensor_affine, arguments)
