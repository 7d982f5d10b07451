"""What a plan is lowered to: an int8 model, its simulation, or a simulation that learns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, Node

from qconvert.quantization.lowering.backend import Backend, Layer
from qconvert.quantization.lowering.classic import ClassicBackend
from qconvert.quantization.lowering.direct import DirectBackend
from qconvert.quantization.lowering.dynamic import DynamicLinear, DynamicRecurrent
from qconvert.quantization.lowering.simulated import SimulatedBackend, simulated_dynamic
from qconvert.quantization.lowering.trainable import LearnedRange, TrainableBackend
from qconvert.quantization.plan import Plan, PlannedOperator


class Int8:
    """See `backend.Target`: torch's int8 operators, of the family that the plan names for each."""

    def __init__(self, plan: Plan) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}
        self.layers: dict[str, Layer] = {}
        # Layers with dynamic ranges and their float modules, by the paths of their int8 forms.
        self.dynamic_layers: dict[str, tuple[PlannedOperator, Any]] = {}
        self._backends: dict[str, Backend] = {
            "classic": ClassicBackend(self.graph, self.modules),
            "direct": DirectBackend(self.graph, self.modules, plan.plain),
        }

    def backend(self, operator: PlannedOperator) -> Backend:
        """That of the operator's family."""
        return self._backends[str(operator.lowering)]

    def of_form(self, form: str) -> Backend:
        """Forms are named as families."""
        return self._backends[form]

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> nn.Module:
        """Linear, LSTM or GRU with int8 weights."""
        self.dynamic_layers[path] = operator, module
        return dynamic_form(operator, module)


def dynamic_form(operator: PlannedOperator, module: Any) -> nn.Module:
    """A layer with int8 weights and dynamic ranges."""
    given_up = operator.fewer_bits
    reduce_range = given_up is not None and given_up.what == "inputs"
    if operator.weight is not None:
        return DynamicLinear(module, operator.weight, reduce_range=reduce_range)
    return DynamicRecurrent(module, operator.cell_weights or {}, reduce_range=reduce_range)


class Simulated:
    """See `backend.Target`: the plan in float arithmetic."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}
        self.layers: dict[str, Layer] = {}
        self._backend = SimulatedBackend(self.graph, self.modules)

    def backend(self, operator: PlannedOperator) -> Backend:
        """There is one."""
        return self._backend

    def of_form(self, form: str) -> Backend:
        """There is one."""
        return self._backend

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> nn.Module:
        """The float layer with rounded weights."""
        return simulated_dynamic(operator, module)


class Trainable:
    """See `backend.Target`: the simulation, in which the layers of the nodes `learning` learn, and
    the `ranges`; these are by the observers of the plan's tensors. Unless it `rounds`, what learns
    has weights as they are."""

    def __init__(
        self, ranges: Mapping[str, LearnedRange], learning: Collection[str], rounds: bool = True
    ) -> None:
        self.graph = Graph()
        self.modules: dict[str, Any] = {}
        self.layers: dict[str, Layer] = {}
        self._backend = TrainableBackend(self.graph, self.modules, ranges, learning, rounds)

    @property
    def values(self) -> Mapping[str, Node]:
        """The nodes of the results of int8 operators, by their names in the plan."""
        return self._backend.values

    def backend(self, operator: PlannedOperator) -> Backend:
        """There is one."""
        return self._backend

    def of_form(self, form: str) -> Backend:
        """There is one."""
        return self._backend

    def dynamic(self, operator: PlannedOperator, module: Any, path: str) -> nn.Module:
        """The float layer with rounded weights, which stay."""
        return simulated_dynamic(operator, module)
