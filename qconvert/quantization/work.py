"""How much each node of a graph multiplies and accumulates, whether it has a weight or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qconvert.models.assembly import AS_WRITTEN, CALLS
from qconvert.models.execution import Executed, float_macs, watch


class _Counting(Interpreter):
    """Counts what torch multiplies in each node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.macs: dict[str, int] = {}

    def run_node(self, node: Node) -> Any:
        """What is inside of a function counts too; not what is in code that is kept, which has
        parts in it."""
        found = 0

        def visit(executed: Executed) -> None:
            nonlocal found
            found += float_macs(executed)

        result = watch(lambda: super(_Counting, self).run_node(node), (), visit)
        if AS_WRITTEN not in node.meta:
            self.macs[node.name] = found * node.meta.get(CALLS, 1)
        return result


def counted_by_running(graph: GraphModule, example: Sequence[Tensor] = ()) -> dict[str, int]:
    """Multiply-accumulates of each node for one image, by its name: the graph is run once, on noise
    where the example is not what it reads. Empty where it does not run so."""
    metas = [n.meta["tensor_meta"] for n in graph.graph.nodes if n.op == "placeholder"]
    inputs = list(example)
    if [x.shape for x in inputs] != [meta.shape for meta in metas]:
        inputs = [
            (torch.rand if meta.dtype.is_floating_point else torch.zeros)(
                tuple(meta.shape), dtype=meta.dtype
            )
            for meta in metas
        ]
    counting = _Counting(graph)
    try:
        counting.run(*inputs)
    except Exception:  # code that reads values can refuse noise
        return {}
    return counting.macs


def first_shape(node: Node) -> tuple[int, ...]:
    """Of a tensor, or of the first of a tuple."""
    meta = node.meta.get("tensor_meta")
    while isinstance(meta, (tuple, list)) and not hasattr(meta, "shape") and meta:
        meta = meta[0]
    return tuple(getattr(meta, "shape", ()))
