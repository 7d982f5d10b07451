"""The simulation of a plan in which every place that int8 rounds can be switched to float by
itself: the weight of a layer, the result of an operator, a value that is brought from float.

In float, a layer has the weight and bias of the float model: not those that recovery put on the
steps of int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.quantization.affine import fake_quantize
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.lowering.backend import Backend, Call, Layer
from qconvert.quantization.lowering.simulated import SimulatedBackend, simulated_dynamic
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams
from qconvert.quantization.rules import PIXELS


class Switch(nn.Module):
    """One step of the model in its two forms. Called like any module it computes that of int8."""

    def __init__(self, as_float: nn.Module, as_int8: nn.Module) -> None:
        super().__init__()
        self.as_float, self.as_int8 = as_float, as_int8

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The form of int8."""
        return self.as_int8(*args, **kwargs)


class Rounding(nn.Module):
    """Rounds to the steps of int8 and stays float32."""

    def __init__(self, held: TensorParams) -> None:
        super().__init__()
        self.params = held.params

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return fake_quantize(x, self.params)


@dataclass(frozen=True)
class Place:
    """A line of the plan in int8; or, without `operator`, a value that is brought from float to
    int8. `value` is its value in the float model's graph.

    `weight` and `result` are the paths of its switches, where it has them; `held` is how the result
    is held, None where it is not rounded (again).
    """

    operator: PlannedOperator | None
    value: str
    weight: str | None
    result: str | None
    held: TensorParams | None


class SwitchedBackend(SimulatedBackend):
    """See `backend.Backend`: notes the places, in the order in which they are computed."""

    def __init__(
        self, graph: Graph, modules: dict[str, Any], plan: Plan, floats: Mapping[str, Any]
    ) -> None:
        super().__init__(graph, modules)
        self.places: list[Place] = []
        self._plan, self._floats = plan, floats

    def bring(self, x: Node, form: str, held: TensorParams, dimensions: int) -> Node:
        """A place without an operator."""
        node = super().bring(x, form, held, dimensions)
        tensors = self._plan.tensors
        named = [x.name] if tensors.get(x.name) is held else []
        named += [name for name, params in tensors.items() if params is held]
        self.places.append(Place(None, named[0], None, str(node.target), held))
        return node

    def weighted(self, layer: Layer, x: Node, term: Node | None) -> Node:
        """Both the weight and the result have a switch."""
        node = super().weighted(layer, x, term)
        as_int8 = self.modules[layer.path]
        self.modules[layer.path] = Switch(self._floats[layer.operator.node], as_int8)
        return self._noted(layer.operator, node, layer.held, layer.path)

    def combine(
        self,
        operator: PlannedOperator,
        xs: Sequence[Node],
        held: Sequence[TensorParams],
        axis: int,
    ) -> Node:
        """Its result has a switch."""
        return self._noted(operator, super().combine(operator, xs, held, axis), held[-1])

    def normalize(
        self, operator: PlannedOperator, module: Any, path: str, x: Node, held: TensorParams
    ) -> Node:
        """Its result has a switch."""
        return self._noted(operator, super().normalize(operator, module, path, x, held), held)

    def same_range(self, operator: PlannedOperator, call: Call, held: TensorParams) -> Node:
        """Its result has a switch if it is rounded."""
        return self._noted(operator, super().same_range(operator, call, held), held)

    def pixels(self, module: Any, path: str, x: Node, held: TensorParams) -> Node:
        """Its result has a switch."""
        tensors, lines = self._plan.tensors, self._plan.operators
        operator = next(o for o in lines if o.kind == PIXELS and tensors[o.value] is held)
        return self._noted(operator, super().pixels(module, path, x, held), held)

    def two_terms(
        self,
        operator: PlannedOperator,
        module: Any,
        path: str,
        x: Node,
        held: TensorParams,
        dimensions: int,
    ) -> Node:
        """Its result has a switch."""
        node = super().two_terms(operator, module, path, x, held, dimensions)
        return self._noted(operator, node, held)

    def _noted(
        self,
        operator: PlannedOperator,
        node: Node,
        held: TensorParams | None,
        weight: str | None = None,
    ) -> Node:
        rounding = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(rounding, Switch) or str(node.target) == weight:
            # What is not rounded has a switch as well: it is where the result is looked at.
            held, node = None, self._switched(node, nn.Identity())
        self.places.append(Place(operator, operator.value, weight, str(node.target), held))
        return node

    def _rounded(self, x: Node, held: TensorParams) -> Node:
        return self._switched(x, Rounding(held))

    def _switched(self, x: Node, as_int8: nn.Module) -> Node:
        path = f"switch_of_int8_{len(self.modules)}"
        self.modules[path] = Switch(nn.Identity(), as_int8)
        return self.graph.call_module(path, (x,))


class Switched:
    """See `backend.Target`. `model` is the float model; what is lowered may be its corrected form,
    which has the same graph."""

    def __init__(self, model: FusedModel, plan: Plan) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}
        self.layers: dict[str, Layer] = {}
        nodes = nodes_by_name(model)
        self._floats = {
            o.node: module_of(model.graph, nodes[o.node])
            for o in plan.operators
            if nodes[o.node].op == "call_module"
        }
        self._backend = SwitchedBackend(self.graph, self.modules, plan, self._floats)

    @property
    def places(self) -> tuple[Place, ...]:
        """What can be switched, in the order in which it is computed; known after `lower`."""
        return tuple(self._backend.places)

    def backend(self, operator: PlannedOperator) -> Backend:
        """There is one."""
        return self._backend

    def of_form(self, form: str) -> Backend:
        """There is one."""
        return self._backend

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> nn.Module:
        """The weights have a switch; the result is not held in int8."""
        self._backend.places.append(Place(operator, operator.value, path, None, None))
        return Switch(self._floats[operator.node], simulated_dynamic(operator, module))
