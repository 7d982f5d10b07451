"""Values inside of a model at which a student is compared with its teacher: those that everything
before passes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch.fx import Graph, GraphModule, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import is_tensor, shape_of
from qconvert.quantization import rules
from qconvert.quantization.plan import Plan

# So many at most, spread evenly over the multiply-accumulates before them.
_MOST = 8


def block_outputs(model: FusedModel, plan: Plan) -> list[str]:
    """Results of int8 operators at which the graph is one value wide, as at the end of a block."""
    nodes = list(model.graph.graph.nodes)
    places = {node: i for i, node in enumerate(nodes)}
    last = {
        node: max((places[user] for user in node.users), default=-1)
        for node in nodes
        if is_tensor(node)
    }
    held = {
        o.value
        for o in plan.operators
        if o.precision == "int8" and not o.float_output and o.kind not in rules.HELD_AS_THEY_ARE
    }
    macs, done = {o.value: o.macs for o in plan.operators}, 0
    found = list[tuple[int, int, str]]()
    open_until = -1
    for i, node in enumerate(nodes):
        done += macs.get(node.name, 0)
        # Nothing computed before is read after this.
        if open_until <= i and node.name in held and len(shape_of(node)) > 1 and done:
            found.append((done, prod(shape_of(node)), node.name))
        open_until = max(open_until, last.get(node, -1))
    return _spread(found)


def _spread(found: Sequence[tuple[int, int, str]]) -> list[str]:
    """Of each equal part of the work the smallest value, and of these the last."""
    total = found[-1][0] if found else 1
    chosen: dict[int, tuple[int, int, str]] = {}
    for one in found:
        part = min(_MOST * one[0] // total, _MOST - 1)
        if part not in chosen or one[1] <= chosen[part][1]:
            chosen[part] = one
    return [name for _, _, name in chosen.values()]


def with_features(graph: GraphModule, shown: Mapping[str, Node]) -> GraphModule:
    """The model, which also returns these values of its graph: (result, {name: value})."""
    copies: dict[Node, Node] = {}
    new = Graph()
    result: Any = new.graph_copy(graph.graph, copies)
    new.output((result, {name: copies[node] for name, node in shown.items()}))
    return GraphModule(graph, new)
