"""What layers read at drawn places, against the layers themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qconvert.quantization.recovery.drawn import drawn

LAYERS = [
    (nn.Conv2d(6, 4, 3, padding=1), (1, 6, 9, 8)),
    (nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (1, 6, 9, 8)),
    (nn.Conv2d(6, 6, 5, padding="same", groups=6), (1, 6, 9, 8)),
    (nn.Conv2d(6, 9, 1, groups=3), (2, 6, 5, 5)),
    (nn.Linear(7, 5), (1, 7)),
    (nn.Linear(7, 5), (1, 6, 7)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("places", [5, 10_000])
def test_rows_and_weight_give_what_is_wanted(layer, shape, places: int) -> None:
    xs = [torch.randn(shape) for _ in range(3)]
    with torch.no_grad():
        found = drawn(layer, xs, [layer(x) for x in xs], places)
        groups = getattr(layer, "groups", 1)
        weight = layer.weight.flatten(1).unflatten(0, (groups, -1))
        computed = found.rows @ weight.mT + layer.bias.unflatten(0, (groups, 1, -1))
    assert torch.allclose(computed, found.wanted, atol=1e-5)
    assert len(found.rows) == groups
    assert found.rows.shape[1] >= min(places, 3)


def test_other_layers_are_left() -> None:
    assert drawn(nn.Conv1d(2, 2, 1), [torch.zeros(1, 2, 3)], [torch.zeros(1, 2, 3)], 4) is None
