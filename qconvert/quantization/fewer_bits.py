"""Which layers may need fewer than 8 bits on CPUs without VNNI, from their integers alone.

There torch's kernels sum two products of 8-bit integers in 16 bits, which saturate. Which two is
the kernels' own choice, so the bound here holds for any two of an output channel.
"""

from __future__ import annotations

from torch.fx import Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.quantization.plan import FewerBits, Plan, PlannedOperator
from qconvert.quantization.weights import overflowing, quantized


def nodes_by_name(model: FusedModel) -> dict[str, Node]:
    """The nodes of the model's graph."""
    return {node.name: node for node in model.graph.graph.nodes}


def channels_in_doubt(model: FusedModel, plan: Plan) -> dict[str, tuple[list[int], int]]:
    """Of each int8 layer in which sums could overflow: the output channels in which they could, and
    the number of all; by the name of its node."""
    nodes = nodes_by_name(model)
    found = {}
    for operator in plan.operators:
        if operator.precision == "int8" and operator.weight is not None:
            weight = module_of(model.graph, nodes[operator.node]).weight
            channels = overflowing(quantized(weight, operator.weight).int_repr())
            if channels:
                found[operator.node] = channels, len(weight)
    return found


def bounded(model: FusedModel, plan: Plan, reason: str) -> dict[str, FewerBits]:
    """What layers give up where nothing is known but their integers: every channel that could
    overflow, and the inputs of every layer with dynamic ranges."""
    could = f"sums of 8 bits could overflow without VNNI ({reason})"
    found = {
        node: FewerBits(what="weights", any_two=tuple(channels), of=of, reason=could)
        for node, (channels, of) in channels_in_doubt(model, plan).items()
    }
    found |= {
        operator.node: FewerBits(what="inputs", reason=could) for operator in dynamic_layers(plan)
    }
    return found


def dynamic_layers(plan: Plan) -> list[PlannedOperator]:
    """The layers whose ranges are found as the model runs."""
    return [operator for operator in plan.operators if operator.precision == "dynamic"]
