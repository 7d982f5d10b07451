"""A fused model that shows its values as it computes them."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qconvert.models.fusion import FusedModel

# Called with the name of a value and the value.
See = Callable[[str, Tensor], None]


class _Eye(nn.Module):
    """Shows what it is called with."""

    def __init__(self, name: str, see: See) -> None:
        super().__init__()
        self._name, self._see = name, see

    def forward(self, value: Any) -> None:
        """Anything but a tensor with elements is passed over."""
        if isinstance(value, Tensor) and value.numel():
            self._see(self._name, value)


def watched(model: FusedModel, wanted: Set[str], see: See) -> Callable[..., Any]:
    """The model, which shows the `wanted` values of its graph; it shares the weights, and may be
    called by several threads at once if `see` may be."""

    def part(body: GraphModule) -> GraphModule:
        graph, copies = Graph(), dict[Node, Node]()
        found = graph.graph_copy(body.graph, copies)
        graph.output(found)
        watching = GraphModule(body, graph)
        for node in body.graph.nodes:
            if node.name in wanted and node in copies:
                place = f"eye_of_{node.name}"
                watching.add_submodule(place, _Eye(node.name, see))
                with graph.inserting_after(copies[node]):
                    graph.call_module(place, (copies[node],))
        watching.recompile()
        return watching.eval()

    run: Callable[..., Any] = model.assembly.eager(model.graph, part)

    def called(*inputs: Tensor) -> Any:
        with torch.inference_mode():
            return run(*inputs)

    return called
