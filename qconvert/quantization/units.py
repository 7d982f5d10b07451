"""The operators of a fused model as the plan sees them: one unit for what one kernel computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import get_args

from torch.fx import GraphModule, Node

from qconvert.models.assembly import AS_WRITTEN
from qconvert.models.fusion import FusedModel
from qconvert.models.normal_form import OUTSIDE
from qconvert.models.operators import (
    REARRANGING,
    is_tensor,
    kind_of,
    module_of,
    operator_name,
    shape_of,
    tensor_inputs,
)
from qconvert.qconfig import QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.costs import Costs
from qconvert.quantization.layer_rules import Asked
from qconvert.quantization.plan import Activation, Lowering


@dataclass(frozen=True)
class Unit:
    """An operator, and the activation that its kernels compute with it.

    `lowerings` are the families that have a kernel for it; `impossible` says why there is none.
    `not_dynamic` says why there is none with dynamic ranges. `given` units work on tensors that the
    user has quantized. `product` units are convolutions that are products (`rules.is_product`).
    """

    node: Node
    follower: Node | None
    kind: str
    activation: Activation | None
    inputs: tuple[Node, ...]
    lowerings: tuple[Lowering, ...]
    impossible: str | None
    not_dynamic: str | None
    asked: Asked
    given: bool = False
    product: bool = False

    @property
    def value(self) -> Node:
        """The node whose value is the unit's result."""
        return self.follower or self.node

    @property
    def name(self) -> str:
        """For people."""
        return operator_name(self.node)

    @property
    def weighted(self) -> bool:
        """Whether it has a weight that becomes int8 with static ranges."""
        return self.kind in rules.INT8_WEIGHTED

    def kernel_kind(self, lowering: Lowering) -> str:
        """The kind of layer whose kernel computes it."""
        return "linear" if self.product and lowering == "classic" else self.kind

    def returns_float(self, lowering: Lowering) -> bool:
        """Whether its kernel can return float."""
        return rules.returns_float(self.kernel_kind(lowering), lowering, self.activation)


def units_of(
    model: FusedModel,
    section: QuantizationSection,
    asked: Mapping[str, Asked],
    split: frozenset[str],
    costs: Costs | None = None,
) -> list[Unit]:
    """All units in the order of the graph. A layer is paired with its activation, unless it is in
    `split`. Where no family that the qconfig allows computes them together, only a ReLU or a clip
    stays with its layer: what is between them was not observed. By `costs`, an activation that only
    one family computes with the layer is on its own where that is cheaper."""
    allowed: tuple[Lowering, ...] = (
        get_args(Lowering) if section.lowering == "auto" else (section.lowering,)
    )
    nodes = {n.name: n for n in model.graph.graph.nodes if n.name in asked}
    absorbed: set[str] = set()
    found = []
    for node in nodes.values():
        if node.name in absorbed:
            continue
        follower = None
        if node.name in model.pairs and node.name not in split:
            follower = nodes[model.pairs[node.name]]
        unit = _unit(model.graph, node, follower, allowed, asked[node.name])
        together = unit.activation in ("relu", "saturation") or (
            bool(unit.lowerings)
            and unit.asked.precision != "dynamic"
            and (costs is None or _is_cheaper_together(model.graph, unit, allowed, costs))
        )
        if follower is not None and not together:
            unit = _unit(model.graph, node, None, allowed, asked[node.name])
        elif follower is not None:
            absorbed.add(follower.name)
        found.append(unit)
    return found


def apart(graph: GraphModule, unit: Unit) -> list[Unit]:
    """A layer and the activation after it as two units."""
    if unit.follower is None:
        return [unit]
    kind = kind_of(graph, unit.follower)
    layer = replace(unit, follower=None, activation=None)
    follower = replace(
        layer,
        node=unit.follower,
        kind=kind,
        inputs=(unit.node,),
        lowerings=("classic",) if kind in rules.ALONE else (),
        not_dynamic=_why_not_dynamic(graph, unit.follower, kind),
    )
    return [layer, follower]


def _is_cheaper_together(
    graph: GraphModule, unit: Unit, allowed: tuple[Lowering, ...], costs: Costs
) -> bool:
    """Whether one kernel for a layer and its activation is faster than a layer of a family that
    does not know the activation, and the activation on its own."""
    others = [family for family in allowed if family not in unit.lowerings]
    written = prod(shape_of(unit.value))
    if not others or unit.follower is None:
        return True
    joined = min(
        costs.of(graph, unit.node, family) + costs.activation(str(unit.activation), family, written)
        for family in unit.lowerings
    )
    layer = min(costs.of(graph, unit.node, family) for family in others)
    after = costs.crossing("dequantize", written) + costs.of(graph, unit.follower, "float32")
    if any(kind_of(graph, user) in rules.INT8_WEIGHTED for user in unit.value.users):
        after += costs.crossing("quantize", written)
        if "classic" in others and kind_of(graph, unit.follower) in rules.ALONE:
            after = min(after, costs.of(graph, unit.follower, "classic"))
    return joined <= layer + after


def _unit(
    graph: GraphModule,
    node: Node,
    follower: Node | None,
    allowed: tuple[Lowering, ...],
    asked: Asked,
) -> Unit:
    kind = kind_of(graph, node)
    activation = rules.activation_of(graph, follower) if follower is not None else None
    left = _why_left(node, asked)
    reasons: dict[Lowering, str | None] = {
        family: left or rules.why_impossible(graph, node, kind, family, asked.weights)
        for family in allowed
    }
    possible = tuple(
        family
        for family, reason in reasons.items()
        if reason is None and (activation is None or rules.computes_with(kind, family, activation))
    )
    return Unit(
        node=node,
        follower=follower,
        kind=kind,
        activation=activation,
        inputs=tuple(tensor_inputs(node)),
        lowerings=possible,
        impossible=None if possible else _why_not(reasons, activation),
        not_dynamic=left or _why_not_dynamic(graph, node, kind),
        asked=asked,
        given=is_given(node),
        product=node.op == "call_module" and rules.is_product(module_of(graph, node), node),
    )


def is_given(node: Node) -> bool:
    """Whether the node works on tensors that the user has quantized."""
    values = [node, *node.all_input_nodes]
    return any(getattr(v.meta.get("tensor_meta"), "is_quantized", False) for v in values)


def _why_left(node: Node, asked: Asked) -> str | None:
    """Why a node stays as it is, whatever kernels there are."""
    if is_given(node):
        return "it is quantized in the source already"
    if AS_WRITTEN in node.meta:
        return f"its code stays as it is written: {node.meta[AS_WRITTEN]}"
    if OUTSIDE in node.meta and asked.precision == "auto":
        return "it is not between the model's QuantStub and DeQuantStub"
    return None


def _why_not(reasons: dict[Lowering, str | None], activation: Activation | None) -> str:
    found = next((reason for reason in reasons.values() if reason is not None), None)
    return found or f"no int8 kernel computes {activation} with it"


def _why_not_dynamic(graph: GraphModule, node: Node, kind: str) -> str | None:
    if kind not in rules.DYNAMIC or node.op != "call_module":
        return "torch quantizes linear layers, LSTM and GRU dynamically, nothing else"
    return rules.why_not_dynamic(module_of(graph, node))


class Readers:
    """Who reads each value, and at which place in the order of the graph."""

    def __init__(self, units: list[Unit], output: Node) -> None:
        self._units = units
        self.makers = {unit.value.name: i for i, unit in enumerate(units)}
        self.returned = {node.name for node in output.all_input_nodes}
        self._readers: dict[str, list[int]] = {}
        for i, unit in enumerate(units):
            for source in unit.inputs:
                self._readers.setdefault(source.name, []).append(i)

    def of(self, value: Node) -> list[int]:
        """The indices of the units that read a value."""
        return self._readers.get(value.name, [])

    def values(self) -> list[Node]:
        """Every tensor that a unit reads or makes."""
        found = {node.name: node for unit in self._units for node in (*unit.inputs, unit.value)}
        return [node for node in found.values() if is_tensor(node)]

    def root(self, value: Node) -> Node:
        """The value whose memory a chain of slices and reshapes may look at."""
        while value.name in self.makers:
            unit = self._units[self.makers[value.name]]
            if unit.kind not in REARRANGING or not unit.inputs:
                break
            value = unit.inputs[0]
        return value
