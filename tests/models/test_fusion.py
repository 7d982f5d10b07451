"""Folding is exact, keeps what a model computes, and says why it leaves an operator alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from qconvert.errors import QConfigError
from qconvert.models.fusion import FusedModel, fold_batch_norm, fuse
from qconvert.models.graph import capture


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def seeded(factory):
    torch.manual_seed(0)
    return factory()


def fused(model: nn.Module, groups=None, shape=(2, 3, 8, 8)) -> FusedModel:
    return fuse(capture(model, [noise(*shape)]), groups)


def kinds(result: FusedModel) -> list[str]:
    """The classes of the graph's modules, in the order of their calls."""
    graph = result.graph
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    return [type(graph.get_submodule(node.target)).__name__ for node in calls]


FOLDABLE = [
    *((getattr(nn, f"Conv{n}d"), getattr(nn, f"BatchNorm{n}d"), n, 0) for n in (1, 2, 3)),
    *((getattr(nn, f"ConvTranspose{n}d"), getattr(nn, f"BatchNorm{n}d"), n, 1) for n in (1, 2, 3)),
    (nn.Linear, nn.BatchNorm1d, 0, 0),
]
CASES = [(*row, groups) for row in FOLDABLE for groups in (1, 2) if row[2] or groups == 1]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("kind", "norm_kind", "dims", "axis", "groups"), CASES)
def test_folding_is_exact(kind, norm_kind, dims, axis, groups, bias, affine, trained):
    settings = {"kernel_size": 3, "stride": 2, "groups": groups} if dims else {}
    layer = seeded(lambda: kind(4, 6, bias=bias, **settings)).double()
    norm = trained(norm_kind(6, eps=1e-2, affine=affine)).double()
    alone = copy.deepcopy(layer)
    weight, shift = fold_batch_norm(layer.weight, layer.bias, norm, axis, groups)
    alone.weight, alone.bias = nn.Parameter(weight), nn.Parameter(shift)
    x = noise(3, 4, *[5] * dims, dtype=torch.float64)
    torch.testing.assert_close(alone(x), norm(layer(x)), rtol=1e-12, atol=1e-12)


class Padded(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Norm(nn.BatchNorm2d):
    """A batch norm of the user's own."""


class Shared(nn.Module):
    """One convolution before two batch norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.conv(self.a(self.conv(x)).relu()))


class Rows(nn.Module):
    """A linear layer of 3-d input, whose channels are not those of the batch norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 3), nn.BatchNorm1d(24)

    def forward(self, x):
        return self.norm(self.linear(x.flatten(1, 2)))


class Network(nn.Module):
    """conv + bn + relu, conv + relu6, add + relu and an activation alone."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.relu6 = nn.Conv2d(4, 4, 1), nn.ReLU6()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)))
        x = F.relu(x + self.relu6(self.conv2(x)))
        return torch.clamp(self.pool(x), 0, 1)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        return self.relu(input=self.bn(input=self.conv(input=x)))


def one_after(layer: nn.Module, norm: nn.Module) -> nn.Module:
    return nn.Sequential(layer, norm, nn.ReLU())


WHOLE = {
    "network": (Network, 1),
    "padded conv": (lambda: one_after(Padded(3, 4, 3), nn.BatchNorm2d(4)), 1),
    "own batch norm": (lambda: one_after(nn.Conv2d(3, 4, 3), Norm(4)), 1),
    "transposed": (
        lambda: one_after(nn.ConvTranspose2d(3, 6, 2, groups=3), nn.BatchNorm2d(6)), 1,
    ),
    "shared conv": (Shared, 2),
    "pair called twice": (lambda: nn.Sequential(*[nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)] * 2), 2),
    "shared norm": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), bn := nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), bn
        ), 2,
    ),
    "weight norm": (
        lambda: one_after(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), nn.BatchNorm2d(4)
        ), 1,
    ),
    "keyword inputs": (Keywords, 1),
    "resnet18": (lambda: models.resnet18(weights=None), 20),
    "mobilenet_v2": (lambda: models.mobilenet_v2(weights=None), 52),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_fused_graph_computes_what_the_model_computes(name, trained):
    factory, folds = WHOLE[name]
    model = trained(seeded(factory))
    result = fused(model)
    x = noise(1, 3, 32, 32)
    with torch.inference_mode():
        want = model(x)
        torch.testing.assert_close(result.graph(x), want, rtol=1e-4, atol=1e-5 * want.abs().max())
    assert len(result.folded) == folds
    assert "BatchNorm2d" not in kinds(result)


def test_fusing_leaves_the_captured_graph_unchanged(trained):
    graph = capture(trained(seeded(Network)), [noise(2, 3, 8, 8)])
    before = graph(noise(2, 3, 8, 8))
    weight = graph.conv.weight.clone()
    fuse(graph)
    assert torch.equal(graph.conv.weight, weight)
    assert torch.equal(graph(noise(2, 3, 8, 8)), before)


class Add(nn.Module):
    def forward(self, x):
        return x + x.abs()


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


def untracked() -> nn.Module:
    return nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize(
    ("factory", "norm", "reason"),
    [
        (lambda: nn.Sequential(nn.BatchNorm2d(3)), "0", "which is no convolution or linear"),
        (lambda: nn.Sequential(Add(), nn.BatchNorm2d(3)), "1", "it follows 0.add, which is no"),
        (ReadTwice, "norm", "conv is also read before the batch norm"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), untracked()), "1", "no running statistics"),
        (Rows, "norm", "the linear layer's features are not the batch norm's channels"),
    ],
    ids=["first", "after add", "read twice", "no running statistics", "linear of 3-d input"],
)
def test_batch_norm_stays_with_a_reason(factory, norm, reason, trained):
    model = trained(seeded(factory))
    result = fused(model)
    assert [refusal.operator for refusal in result.refused] == [norm]
    assert reason in result.refused[0].reason
    assert result.folded == ()
    with torch.inference_mode():
        torch.testing.assert_close(result.graph(noise(2, 3, 8, 8)), model(noise(2, 3, 8, 8)))


def test_pairs_are_listed_with_the_batch_norm_between(trained):
    result = fused(trained(seeded(Network)))
    assert result.folded == (("conv", "bn"),)
    assert result.paired == (("conv", "bn", "relu"), ("conv2", "relu6"), ("add", "relu:2"))
    assert [refusal.operator for refusal in result.refused] == ["clamp"]


@pytest.mark.parametrize(
    ("activation", "reason"),
    [
        (nn.Hardtanh(-1, 1), "only bounds from 0 to a positive constant"),
        (nn.Hardtanh(0, 0.5), None),
    ],
)
def test_only_a_clip_at_zero_is_paired(activation, reason):
    result = fused(nn.Sequential(nn.Conv2d(3, 4, 1), activation).eval())
    assert [reason in refusal.reason for refusal in result.refused] == [True] * bool(reason)
    assert result.paired == (() if reason else (("0", "1"),))


def test_groups_leave_the_others_alone(trained):
    model = trained(seeded(Network))
    result = fused(model, [["conv", "bn"], ["add", "relu:2"]])
    assert result.folded == (("conv", "bn"),)
    assert result.paired == (("add", "relu:2"),)
    assert {refusal.operator: refusal.reason for refusal in result.refused} == dict.fromkeys(
        ("relu", "relu6", "clamp"), "it is not in fuse.modules"
    )
    assert fused(model, [["conv", "bn", "relu"]]).paired == (("conv", "bn", "relu"),)
    assert kinds(fused(model, [])).count("BatchNorm2d") == 1


def test_wrong_groups_are_one_error_that_lists_all(trained):
    groups = [["conv", "bn", "rellu"], ["bn", "conv"], ["conv", "relu"], ["conv2"], ["conv", "bn"]]
    with pytest.raises(QConfigError) as caught:
        fused(trained(seeded(Network)), groups)
    facts = caught.value.facts
    assert len(facts) == 4
    assert facts[0] == "fuse.modules[0]: there is no operator 'rellu'; did you mean 'relu'?"
    assert facts[1].startswith("fuse.modules[1]: batch_norm + conv2d cannot be fused")
    assert facts[2] == "fuse.modules[2]: 'relu' does not read 'conv' alone"
    assert facts[3].startswith("fuse.modules[3]: conv2d cannot be fused")


@pytest.mark.parametrize(
    ("factory", "group"),
    [
        (lambda: nn.Sequential(Add(), nn.BatchNorm2d(3), nn.ReLU()), ["0.add", "1", "2"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), untracked()), ["0", "1"]),
        (Rows, ["linear", "norm"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh()), ["0", "1"]),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.ReLU()), ["0", "1"]),
    ],
    ids=["norm after add", "no running statistics", "3-d linear", "clip below 0", "transposed"],
)
def test_group_that_cannot_be_fused_is_an_error(factory, group, trained):
    with pytest.raises(QConfigError, match=r"fuse.modules\[0\]"):
        fused(trained(seeded(factory)), [group])
