"""Carries out a plan: walks the fused graph, brings each value into the form in which it is read,
asks a backend for each operator.

A value can exist in float, and in int8 as each backend holds it; a form is made where it is first
asked for, and used again after that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

FLOAT = "float"


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of the plan.

    `module` is the float layer, `path` the place of its int8 form among the modules, `x_held` and
    `held` how input and result are held in int8 (`held` is None for a float output), `term_held`
    how the tensor that it adds to its result is. `x_shape` is the input's, for one image.
    """

    operator: PlannedOperator
    path: str
    module: Any
    weight: WeightParams
    x_shape: tuple[int, ...]
    x_held: TensorParams
    held: TensorParams | None
    term_held: TensorParams | None


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


class Backend(Protocol):
    """Adds the operators of one way to compute in int8 to a graph under construction.

    `graph` and `modules` are those of the result; a backend puts its modules into `modules` under
    the operator's path. `form` names how it holds a value in int8.
    """

    graph: Graph
    modules: dict[str, Any]
    form: str

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        """From another form (float or that of another backend) to its own."""
        ...

    def dequantize(self, x: Node, held: TensorParams) -> Node:
        """From its own form to float."""
        ...

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """A convolution or linear layer, with its sum and activation."""
        ...

    def reads_float(self, layer: Layer) -> bool:
        """Whether its kernel for the layer quantizes the input by itself."""
        ...

    def combine(self, operator: PlannedOperator, xs: Sequence[Node],
                held: Sequence[TensorParams], axis: int) -> Node:  # fmt: skip
        """An addition, multiplication or concatenation (along `axis`) of int8 values; `held` has
        one more entry, for the result."""
        ...

    def normalize(self, operator: PlannedOperator, module: Any, path: str, x: Node,
                  held: TensorParams) -> Node:  # fmt: skip
        """A batch norm of an int8 value."""
        ...

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """An operator whose result is held like its input."""
        ...

    def pixels(self, module: Any, path: str, x: Node, held: TensorParams) -> Node:
        """A `PixelShares` of the model's input."""
        ...

    def two_terms(self, operator: PlannedOperator, module: Any, path: str, x: Node,
                  held: TensorParams, dimensions: int) -> Node:  # fmt: skip
        """A `TwoTerms` of a float value."""
        ...


class Target(Protocol):
    """The backends of one kind of result, which build one graph together. `layers` are those that
    were asked for, by the paths of their int8 forms."""

    graph: Graph
    modules: dict[str, Any]
    layers: dict[str, Layer]

    def backend(self, operator: PlannedOperator) -> Backend:
        """The one that computes an operator in int8."""
        ...

    def of_form(self, form: str) -> Backend:
        """The one that holds values in a form."""
        ...

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> nn.Module:
        """The form of a layer with dynamic ranges, whose place among the modules is `path`."""
        ...


def lower(
    model: FusedModel, plan: Plan, target: Target, given: Mapping[str, str] | None = None
) -> GraphModule:
    """The model that the plan describes, in the operators of `target`; float in, float out.

    `given` names the form of inputs that are not float; then results are returned as they are.
    """
    return _Lowering(model, plan, target, given).result()


class _Lowering:
    def __init__(
        self, model: FusedModel, plan: Plan, target: Target, given: Mapping[str, str] | None
    ) -> None:
        self._model = model
        self._plan = plan
        self._target = target
        self._graph, self._modules = target.graph, target.modules
        self._given = given
        # Nodes under construction by value and form.
        self._values: dict[str, dict[str, Node]] = {}
        self._nodes = {node.name: node for node in model.graph.graph.nodes}

    def result(self) -> GraphModule:
        planned = [o for o in self._plan.operators if o.precision in ("int8", "dynamic")]
        # A layer that computes an addition stands where the addition stood.
        places = {self._place(o): o for o in planned}
        absorbed = {name for o in planned for name in (o.node, o.value)} - set(places)
        for node in self._model.graph.graph.nodes:
            if node.name in places:
                self._lower(places[node.name])
            elif node.name not in absorbed:
                self._copy(node)
        lowered = GraphModule(self._modules, self._graph, "Int8Model")
        lowered.graph.eliminate_dead_code()
        lowered.graph.lint()
        lowered.recompile()
        return lowered.eval()

    def _place(self, operator: PlannedOperator) -> str:
        if operator.with_sum is None:
            return operator.node
        value = self._nodes[operator.value]
        return tensor_inputs(value)[0].name if operator.activation is not None else value.name

    def _copy(self, node: Node) -> None:
        """An operator in float, or one that computes shapes."""
        reads_shape = node.op.startswith("call_") and not computes_tensors(node)
        target = str(node.target)
        if node.op == "call_module":
            module = module_of(self._model.graph, node)
            if self._modules.get(target, module) is not module:  # its int8 form, for another call
                target = f"{target}_at_{node.name}"
            self._modules[target] = module
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(self._model.graph.get_submodule(owner), name)
            self._modules[str(node.target)] = value
        as_is = reads_shape or (node.op == "output" and self._given is not None)
        new = self._graph.node_copy(node, self._any_form if as_is else self._as_float)
        if node.op == "call_module":
            new.target = target
        form = (self._given or {}).get(node.name, FLOAT)
        self._values[node.name] = {form: new}

    def _any_form(self, node: Node) -> Node:
        return next(iter(self._values[node.name].values()))

    def _as_float(self, node: Node) -> Node:
        forms = self._values[node.name]
        if FLOAT not in forms:
            form, x = next(iter(forms.items()))
            held = self._plan.tensors[node.name]
            forms[FLOAT] = self._target.of_form(form).dequantize(x, held)
        return forms[FLOAT]

    def _in_form(self, backend: Backend, name: str) -> Node:
        forms = self._values[name]
        if backend.form not in forms:
            # From an int8 form if there is one: to quantize twice costs more.
            form, x = next(((f, x) for f, x in forms.items() if f != FLOAT), (FLOAT, None))
            held, dimensions = self._plan.tensors[name], len(shape_of(self._nodes[name]))
            forms[backend.form] = backend.bring(x or forms[FLOAT], form, held, dimensions)
        return forms[backend.form]

    def _lower(self, operator: PlannedOperator) -> None:
        node = self._nodes[operator.node]
        if operator.precision == "dynamic":
            path = self._path(operator, node)
            module = module_of(self._model.graph, node)
            self._modules[path] = self._target.dynamic(operator, module, path)
            new = self._graph.node_copy(node, self._as_float)
            new.target = path
            self._values[operator.value] = {FLOAT: new}
            return
        backend = self._target.backend(operator)
        if operator.kind in rules.INT8_WEIGHTED:
            new = self._layer(operator, node, backend)
        elif operator.kind in rules.COMBINING:
            xs = [self._in_form(backend, name) for name in operator.inputs]
            held = [self._plan.tensors[name] for name in (*operator.inputs, operator.value)]
            new = backend.combine(operator, xs, held, _axis(node) if operator.kind == "cat" else 0)
        elif operator.kind == rules.PIXELS:
            new = backend.pixels(
                module_of(self._model.graph, node),
                self._path(operator, node),
                self._any_form(node.all_input_nodes[0]),
                self._plan.tensors[operator.value],
            )
        elif operator.kind == rules.TWO_TERMS:
            new = backend.two_terms(
                operator,
                module_of(self._model.graph, node),
                self._path(operator, node),
                self._as_float(node.all_input_nodes[0]),
                self._plan.tensors[operator.value],
                len(shape_of(node)),
            )
        elif operator.kind == "batch_norm":
            new = backend.normalize(
                operator,
                module_of(self._model.graph, node),
                self._path(operator, node),
                self._in_form(backend, operator.inputs[0]),
                self._plan.tensors[operator.value],
            )
        else:
            new = self._same_range(operator, node, backend)
        form = FLOAT if operator.float_output else backend.form
        self._values[operator.value] = {form: new}

    def _same_range(self, operator: PlannedOperator, node: Node, backend: Backend) -> Node:
        first = operator.inputs[0]
        args, kwargs = torch.fx.node.map_arg(
            (node.args, node.kwargs),
            lambda n: self._in_form(backend, n.name) if n.name == first else self._any_form(n),
        )
        module = module_of(self._model.graph, node) if node.op == "call_module" else None
        call = Call(node.op, node.target, args, dict(kwargs), module)
        return backend.same_range(operator, call, self._plan.tensors[operator.value])

    def _layer(self, operator: PlannedOperator, node: Node, backend: Backend) -> Node:
        if node.op != "call_module" or operator.weight is None:
            raise AssertionError(f"{operator.name}: planned in int8 without a constant weight")
        tensors, (x, *terms) = self._plan.tensors, operator.inputs
        layer = Layer(
            operator=operator,
            path=self._path(operator, node),
            module=module_of(self._model.graph, node),
            weight=operator.weight,
            x_shape=shape_of(self._nodes[x]),
            x_held=tensors[x],
            held=None if operator.float_output else tensors[operator.value],
            term_held=tensors[terms[0]] if terms else None,
        )
        self._target.layers[layer.path] = layer
        read = self._as_float(self._nodes[x]) if backend.reads_float(layer) else (
            self._in_form(backend, x)
        )  # fmt: skip
        term = self._in_form(backend, terms[0]) if terms else None
        return backend.weighted(layer, read, term)

    def _path(self, operator: PlannedOperator, node: Node) -> str:
        """Where the operator's module goes; a module that is called at two places has two."""
        path = str(node.target)
        return f"{path}_at_{operator.node}" if path in self._modules else path


def _axis(node: Node) -> int:
    """The axis of a concatenation, which torch lets people call `dim` or `axis`."""
    axis: int = argument(node, 1, "dim", node.kwargs.get("axis", 0))
    return axis
