"""What is said of a graph's operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from qconvert.models.operators import is_constant

# More operators in a row than Python may call functions inside each other.
DEEP = 3000


class Chain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(DEEP):
            x = x + 1
        return x


def test_networks_may_be_deeper_than_python_recurses() -> None:
    """As EfficientNet-B6 is."""
    graph = symbolic_trace(Chain())
    *_, last, _ = graph.graph.nodes
    assert not is_constant(last)


def test_what_is_computed_from_weights_alone_is_constant() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight.abs() + self.weight
            return x * scale

    graph: GraphModule = symbolic_trace(Scaled())
    constant = {node.name: is_constant(node) for node in graph.graph.nodes}
    assert constant == {"x": False, "weight": True, "abs_1": True, "add": True, "mul": False,
                        "output": False}  # fmt: skip
