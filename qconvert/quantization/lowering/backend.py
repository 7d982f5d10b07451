"""Carries out a plan: walks the fused graph, places the boundaries, asks a backend for each
operator.

A value can exist in float and in int8; a boundary is made where the missing form is first asked
for, and used again after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    argument,
    computes_tensors,
    module_of,
    shape_of,
    tensor_inputs,
)
from qconvert.quantization import rules
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams, WeightParams


class Backend(Protocol):
    """Adds the operators of one way to compute in int8 to a graph under construction.

    `graph` and `modules` are those of the result; a backend puts its modules into `modules` under
    the operator's path.
    """

    graph: Graph
    modules: dict[str, Any]

    def quantize(self, x: Node, held: TensorParams, dimensions: int) -> Node:
        """From float to int8."""
        ...

    def dequantize(self, x: Node) -> Node:
        """From int8 to float."""
        ...

    def weighted(self, layer: Layer, x: Node) -> Node:
        """A convolution or linear layer. Without `layer.held` it reads and returns float."""
        ...

    def combine(self, operator: PlannedOperator, xs: Sequence[Node], held: TensorParams,
                axis: int) -> Node:  # fmt: skip
        """An addition or concatenation (along `axis`) of int8 values."""
        ...

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """An operator whose result is held like its input."""
        ...


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the plan.

    `module` is the float layer, `path` the place of its int8 form among the modules, `x_held` and
    `held` how input and result are held in int8 (`held` is None for a float output).
    """

    kind: str
    path: str
    module: Any
    relu: bool
    weight: WeightParams
    x_held: TensorParams
    held: TensorParams | None


@dataclass(frozen=True)
class Call:
    """A call of the fused graph with its arguments in the graph under construction.

    `module` is the float module of a `call_module`. `args[0]` is the int8 input.
    """

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None


def lower(model: FusedModel, plan: Plan, backend: Backend) -> GraphModule:
    """The model that the plan describes, in the operators of `backend`; float in, float out."""
    return _Lowering(model, plan, backend).result()


class _Lowering:
    def __init__(self, model: FusedModel, plan: Plan, backend: Backend) -> None:
        self._model = model
        self._plan = plan
        self._backend = backend
        self._float: dict[str, Node] = {}
        self._int8: dict[str, Node] = {}
        self._dimensions: dict[str, int] = {}

    def result(self) -> GraphModule:
        operators = {o.node: o for o in self._plan.operators if o.precision == "int8"}
        absorbed = {o.value for o in operators.values() if o.value != o.node}
        for node in self._model.graph.graph.nodes:
            if "tensor_meta" in node.meta and hasattr(node.meta["tensor_meta"], "shape"):
                self._dimensions[node.name] = len(shape_of(node))
            if node.name in absorbed:
                continue
            if node.name in operators:
                self._lower(operators[node.name], node)
            else:
                self._copy(node)
        backend = self._backend
        lowered = GraphModule(backend.modules, backend.graph, "Int8Model")
        lowered.graph.eliminate_dead_code()
        lowered.graph.lint()
        lowered.recompile()
        return lowered.eval()

    def _copy(self, node: Node) -> None:
        """An operator in float, or one that computes shapes."""
        reads_shape = node.op.startswith("call_") and not computes_tensors(node)
        if node.op == "call_module":
            self._backend.modules[str(node.target)] = self._model.graph.get_submodule(
                str(node.target)
            )
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(self._model.graph.get_submodule(owner), name)
            self._backend.modules[str(node.target)] = value
        read = self._either if reads_shape else self._as_float
        self._float[node.name] = self._backend.graph.node_copy(node, read)

    def _either(self, node: Node) -> Node:
        return self._int8.get(node.name) or self._float[node.name]

    def _as_float(self, node: Node) -> Node:
        if node.name not in self._float:
            self._float[node.name] = self._backend.dequantize(self._int8[node.name])
        return self._float[node.name]

    def _as_int8(self, name: str) -> Node:
        if name not in self._int8:
            self._int8[name] = self._backend.quantize(
                self._float[name], self._plan.tensors[name], self._dimensions[name]
            )
        return self._int8[name]

    def _lower(self, operator: PlannedOperator, node: Node) -> None:
        graph, tensors = self._model.graph, self._plan.tensors
        module = module_of(graph, node) if node.op == "call_module" else None
        first = operator.inputs[0]
        if operator.kind in rules.INT8_WEIGHTED:
            layer = self._layer(operator, node, module)
            x = self._as_int8(first) if layer.held else self._as_float(tensor_inputs(node)[0])
            new = self._backend.weighted(layer, x)
            if layer.held is None:
                self._float[operator.value] = new
                return
        elif operator.kind in rules.COMBINING:
            xs = [self._as_int8(name) for name in operator.inputs]
            axis = _axis(node) if operator.kind == "cat" else 0
            new = self._backend.combine(operator, xs, tensors[operator.value], axis)
        else:
            args, kwargs = torch.fx.node.map_arg(
                (node.args, node.kwargs),
                lambda n: self._as_int8(n.name) if n.name == first else self._either(n),
            )
            call = Call(node.op, node.target, args, dict(kwargs), module)
            new = self._backend.same_range(operator, call, tensors[operator.value])
        self._int8[operator.value] = new

    def _layer(self, operator: PlannedOperator, node: Node, module: Any) -> Layer:
        if module is None or operator.weight is None:
            raise AssertionError(f"{operator.name}: planned in int8 without a constant weight")
        path = str(node.target)
        if path in self._backend.modules:  # a module that is called at two places
            path = f"{path}_at_{operator.node}"
        return Layer(
            kind=operator.kind,
            path=path,
            module=module,
            relu=operator.activation is not None,
            weight=operator.weight,
            x_held=self._plan.tensors[operator.inputs[0]],
            held=None if operator.float_output else self._plan.tensors[operator.value],
        )


def _axis(node: Node) -> int:
    """The axis of a concatenation, which torch lets people call `dim` or `axis`."""
    axis: int = argument(node, 1, "dim", node.kwargs.get("axis", 0))
    return axis
