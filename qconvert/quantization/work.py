"""How much an operator multiplies and accumulates, whether it has a weight or not."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils.flop_counter import FlopCounterMode

from qconvert.models.operators import (
    is_constant,
    kind_of,
    multiply_accumulates,
    shape_of,
    tensor_inputs,
)

_PRODUCTS = ("matmul", "bmm")


def macs_of(graph: GraphModule, node: Node) -> int:
    """Multiply-accumulates of one image: of layers, and of the products that attention is made of,
    which a plan does not count since they have no constant weight."""
    kind = kind_of(graph, node)
    sources = [n for n in tensor_inputs(node) if len(first_shape(n)) > 1]
    if kind == "attention" and len(sources) >= 3:
        keys = shape_of(sources[1])[-2]
        return prod(shape_of(sources[0])) * keys + prod(first_shape(node)) * keys
    if kind in _PRODUCTS and len(sources) == 2 and not is_constant(node):
        return prod(first_shape(node)) * shape_of(sources[0])[-1]
    return multiply_accumulates(graph, node)


class _Counting(Interpreter):
    """Counts what torch multiplies in each node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.macs: dict[str, int] = {}

    def run_node(self, node: Node) -> Any:
        """Counts a multiplication and an addition as one."""
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(node)
        self.macs[node.name] = counter.get_total_flops() // 2
        return result


def counted_by_running(graph: GraphModule, example: Sequence[Tensor] = ()) -> dict[str, int]:
    """Multiply-accumulates of each node by its name, also of what is inside of functions and of
    modules that are not traced: the graph is run once, on noise where the example is not what it
    reads. Empty where it does not run so."""
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
        with torch.inference_mode():
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
