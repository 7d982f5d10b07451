"""A part of a graph as a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node


def needed_for(result: Any) -> set[Node]:
    """The nodes that compute a result, in any nesting, with those that it is made of."""
    needed: set[Node] = set()
    waiting: list[Node] = []
    torch.fx.node.map_arg(result, waiting.append)
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting.extend(node.all_input_nodes)
    return needed


def part_of(graph: GraphModule, placeholders: Sequence[str], result: Any) -> GraphModule:
    """The part of a graph that computes `result`, with these inputs."""
    needed = needed_for(result)
    new = Graph()
    by_name = {node.name: node for node in graph.graph.nodes}
    values = {by_name[name]: new.placeholder(name) for name in placeholders}
    for node in graph.graph.nodes:
        if node in needed and node not in values:
            values[node] = new.node_copy(node, values.__getitem__)
            values[node].name = node.name
    for node, copied in values.items():
        copied.meta = node.meta
    new.output(torch.fx.node.map_arg(result, values.__getitem__))
    return GraphModule(graph, new, "Part").eval()
