"""Values inside of a model at which a student is compared with its teacher: those that everything
before passes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import Graph, GraphModule, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import is_tensor, shape_of
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
    held = {o.value: o for o in plan.operators if o.precision == "int8" and not o.float_output}
    found, macs, done = list[tuple[str, int]](), {o.value: o.macs for o in plan.operators}, 0
    open_until = -1
    for i, node in enumerate(nodes):
        done += macs.get(node.name, 0)
        # Nothing computed before is read after this.
        if open_until <= i and node.name in held and len(shape_of(node)) > 1:
            found.append((node.name, done))
        open_until = max(open_until, last.get(node, -1))
    return _spread([(name, work) for name, work in found if work])


def _spread(found: Sequence[tuple[str, int]]) -> list[str]:
    if len(found) <= _MOST:
        return [name for name, _ in found]
    total = found[-1][1]
    wanted = [total * (i + 1) / _MOST for i in range(_MOST)]
    chosen = [min(found, key=lambda item: abs(item[1] - work))[0] for work in wanted]
    return list(dict.fromkeys(chosen))


def with_features(graph: GraphModule, shown: Mapping[str, Node]) -> GraphModule:
    """The model, which also returns these values of its graph: (result, {name: value})."""
    copies: dict[Node, Node] = {}
    new = Graph()
    result: Any = new.graph_copy(graph.graph, copies)
    new.output((result, {name: copies[node] for name, node in shown.items()}))
    return GraphModule(graph, new)
