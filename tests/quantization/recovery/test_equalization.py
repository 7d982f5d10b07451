"""Equalization, of networks whose channels differ by known factors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.quantization.recovery.equalization import equalized, groups_of

SIZES = torch.tensor([1.0, 0.25, 0.04, 1.0])


class TwoLayers(nn.Module):
    """The channels between two layers are as large as `SIZES` says."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 5, 1)
        self.first.weight.data = SIZES.view(4, 1, 1, 1) * torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


class Residuals(nn.Module):
    """A stem, depthwise layers and two additions into the same sum, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Sequential(
            nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
            nn.Conv2d(16, 8, 1),
        )  # fmt: skip
        self.b = nn.Sequential(nn.Conv2d(8, 12, 1), nn.SiLU(), nn.Conv2d(12, 8, 1))
        self.head = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.a(x)
        x = x + self.b(F.max_pool2d(F.relu(x), 3, 1, 1))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def of(network: nn.Module, x: Tensor) -> FusedModel:
    return fuse(capture(network.eval().requires_grad_(False), [x]))


def peaks(model: FusedModel, x: Tensor) -> Tensor:
    first = model.graph.get_submodule("first")
    return first(x).abs().amax((0, 2, 3))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.MaxPool2d(2), nn.Dropout()])
def test_channels_come_half_way(activation: nn.Module) -> None:
    """A channel that is 25 times smaller becomes 5 times smaller; the result stays."""
    x = torch.rand(2, 3, 8, 8)
    model = of(TwoLayers(activation), x[:1])
    after = equalized(model, [(x,)])
    found = peaks(after, x) / peaks(model, x)
    assert torch.allclose(found, torch.tensor([1.0, 2.0, 5.0, 1.0]), rtol=1e-4)
    assert torch.allclose(after.graph(x), model.graph(x), atol=1e-5)


def test_clip_leaves_room() -> None:
    """ReLU6: a channel that reaches 1 may become 3 at most."""
    x = torch.rand(1, 3, 32, 32)
    x[0, 0, 0, 0] = 25.0  # the others reach 6.25, 1 and 25
    model = of(TwoLayers(nn.ReLU6()), x)
    found = peaks(equalized(model, [(x,)]), x) / peaks(model, x)
    assert torch.allclose(found, torch.tensor([1.0, 1.0, 6**0.5, 1.0]), rtol=1e-4)
    assert torch.allclose(equalized(model, [(x,)]).graph(x), model.graph(x), atol=1e-5)


def test_sums_are_scaled_as_one_and_compute_the_same() -> None:
    x = torch.randn(4, 3, 12, 12)
    model = of(Residuals(), x[:1])
    (sums,) = [group for group in groups_of(model) if len(group.writers) > 1]
    assert sums.writers == ("stem", "a_4", "b_2")
    assert sums.readers == ("a_0", "b_0", "head")
    after = equalized(model, [(x,)])
    assert not torch.allclose(after.graph.stem.weight, model.graph.stem.weight)
    assert torch.allclose(after.graph(x), model.graph(x), atol=1e-4)
    # SiLU lets no factor pass, and what the model returns keeps its size.
    assert torch.equal(after.graph.head.bias, model.graph.head.bias)
    assert all("b_0" not in group.writers for group in groups_of(model))
