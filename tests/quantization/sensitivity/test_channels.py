"""Where channels are, in each of the layouts that networks use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qconvert.models.graph import capture
from qconvert.models.operators import operator_name
from qconvert.quantization.sensitivity.channels import channel_axes


class Layouts(nn.Module):
    """A convolution, then tokens, then images whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens, self.last = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        tokens = self.tokens(x.flatten(2).transpose(1, 2))
        rows = self.last(x.permute(0, 2, 3, 1))
        rows = rows + torch.sigmoid(rows)
        return rows.mean((1, 2)) + tokens.mean(1)[:, :4]


def test_channels_are_found_in_each_layout() -> None:
    graph = capture(Layouts().eval(), [torch.zeros(1, 3, 6, 6)])
    axes = channel_axes(graph)
    found = {operator_name(node): axes.get(node.name) for node in graph.graph.nodes}
    assert {name: found[name] for name in ("x", "conv", "relu", "tokens", "last", "add")} == {
        "x": 1, "conv": 1, "relu": 1, "tokens": 2, "last": 3, "add": 3,
    }  # fmt: skip
    assert found["mean"] == 1
