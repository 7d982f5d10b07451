"""How tensors and weights are held where ranges meet: shared, bounded, or nearly without width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bounded(nn.Module):
    """A ReLU6 beside a wider branch of a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.a.weight.data *= 20
        self.b.weight.data *= 30

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.relu6(self.a(x)), self.b(x)], 1))


class Branches(nn.Module):
    """Three branches that only the concatenation reads."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3))
        self.head = nn.Conv2d(12, 4, 1)
        for factor, branch in zip((1, 3, 9), self.branches, strict=True):
            branch.weight.data *= factor

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([F.relu(branch(x)) for branch in self.branches], 1))


@pytest.mark.parametrize("lowering", ["classic", "direct", "auto"])
def test_relu6_stays_bounded_beside_a_wider_branch(converted, lowering: str) -> None:
    """The end of its range is what bounds it: it cannot take the concatenation's."""
    result = converted(Bounded, lowering=lowering)
    assert result.plan.tensors[result.operator("a").value].range_max <= 6
    assert result.sqnr_db() > 30


@pytest.mark.parametrize("lowering", ["classic", "direct"])
def test_branches_are_held_like_their_concatenation(converted, lowering: str) -> None:
    """Its integers are then copied, not rounded a second time."""
    result = converted(Branches, lowering=lowering)
    tensors, joined = result.plan.tensors, result.operator("cat")
    assert {tensors[name].scale for name in joined.inputs} == {tensors[joined.value].scale}
    assert result.sqnr_db() > 30


def nearly_dead() -> nn.Module:
    """What folding leaves of batch norms with tiny weights: hardly a weight, and a bias of 3."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 1)
    )
    for tensor in (network[0].weight, network[0].bias):
        tensor.data *= 0.02
    network[2].weight.data[:5] *= 1e-6
    network[2].bias.data[:5] = 3
    return network


@pytest.mark.parametrize("lowering", ["classic", "direct"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_bias_of_a_nearly_dead_channel_is_kept(converted, lowering: str, granularity: str) -> None:
    """In steps of such small weights it would need more than 32 bits."""
    weights = {"observer": "histogram", "granularity": granularity}
    result = converted(nearly_dead, lowering=lowering, weights=weights)
    assert result.sqnr_db() > 25


class CalledTwice(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.elu(self.conv(F.relu(self.first(x)))))


@pytest.mark.parametrize("call", ["conv:2", "conv"])
def test_module_may_be_int8_at_one_call_and_float_at_another(converted, call: str) -> None:
    rule = {"match": call, "precision": "float32"}
    result = converted(CalledTwice, layers=[rule] if call == "conv:2" else [
        rule, {"match": "conv:2", "precision": "int8"}
    ])  # fmt: skip
    precisions = [o.precision for o in result.plan.operators if o.name.startswith("conv")]
    assert sorted(precisions) == ["float32", "int8"]
    assert result.sqnr_db() > 25
