"""A captured graph computes what the model does, out of place, under names that people know."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert.errors import ConversionError
from qconvert.models.graph import REMOVED, capture, operator_name
from qconvert.models.operators import kind_of

EXAMPLE = (2, 3, 8, 8)


def example(shape: tuple[int, ...] = EXAMPLE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def operators(graph: torch.fx.GraphModule) -> list[str]:
    return [operator_name(n) for n in graph.graph.nodes if n.op.startswith("call_")]


def kinds(graph: torch.fx.GraphModule) -> list[str]:
    return [kind_of(graph, n) for n in graph.graph.nodes if n.op.startswith("call_")]


class Function(nn.Module):
    """A model that is one function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))


class Padded(nn.Conv2d):
    def forward(self, x):
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Gained(nn.Conv2d):
    def __init__(self, *args):
        super().__init__(*args)
        self.gain = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias) * self.gain


class Functional(nn.Module):
    """A linear layer and a batch norm, both as functions of this module's own tensors."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, x):
        y = F.linear(x.mean((2, 3)), self.weight, self.bias)
        return F.batch_norm(y, self.mean, self.variance, self.gamma, self.beta, False, 0.1, 1e-3)


class Partial(Functional):
    """Batch norms that have a weight without a bias, and one that is computed."""

    def forward(self, x):
        y = F.linear(x.mean((2, 3)), self.weight, self.bias)
        y = F.batch_norm(y, self.mean, self.variance, weight=self.gamma)
        return F.batch_norm(y, self.mean, self.variance, self.gamma.exp(), self.beta)


class WithChild(nn.Module):
    """A block that applies its own weight as a function, and a child module after it."""

    def __init__(self):
        super().__init__()
        self.weight, self.child = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.child(F.conv2d(x, self.weight))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 3, 1, 1), torch.randn(4, 3, 3, 3)])

    def forward(self, x):
        for weight in self.weights:
            x = F.conv2d(x, weight)
        return x


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(input=self.conv(input=x))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


def relu_then_skip(x):
    x = x + 1
    y = torch.relu_(x)
    return x + y


def functional_then_skip(x):
    x = x + 1
    y = F.hardtanh(x, -0.5, 0.5, True) + F.relu(x - 0.2, inplace=True)
    return x + y


def add_in_place(x):
    skip = x = x * 2
    x += 3
    x *= x
    return x + skip


def methods_in_place(x):
    skip = x = x * 2
    x.add_(1).mul_(3).clamp_(0, 4)
    return x + skip


def view_before_change(x):
    x = x * 2
    flat = x.flatten(1)
    x.relu_()
    return flat


def twice(module):
    return lambda x: module(module(x))


def seeded(factory, *args):
    torch.manual_seed(0)
    return factory(*args)


MODELS = {
    "residual": Residual,
    "residual in sequence": lambda: nn.Sequential(Residual(), Residual()),
    "relu_ read by a skip": lambda: Function(relu_then_skip),
    "inplace function read by a skip": lambda: Function(functional_then_skip),
    "augmented assignment": lambda: Function(add_in_place),
    "in-place methods": lambda: Function(methods_in_place),
    "in-place seen through a view": lambda: Function(view_before_change),
    "padded conv": lambda: nn.Sequential(Padded(3, 4, 2), nn.ReLU(inplace=True)),
    "padded conv called twice": lambda: nn.Sequential(*[Padded(3, 3, 2)] * 2),
    "conv with a gain": lambda: nn.Sequential(Gained(3, 4, 3), nn.ReLU()),
    "functional": Functional,
    "functional in a block": lambda: nn.Sequential(Functional(), nn.ReLU()),
    "norm with weight but no bias": Partial,
    "functional beside a child": lambda: nn.Sequential(WithChild(), nn.ReLU()),
    "functional with a list of weights": Listed,
    "inputs by keyword": Keywords,
    "dropout": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.9), nn.Identity()),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_graph_computes_what_the_model_computes(name, trained):
    model = trained(seeded(MODELS[name]))
    graph = capture(model, example())
    with torch.inference_mode():
        torch.testing.assert_close(graph(example()), model(example()))


@pytest.mark.parametrize("name", MODELS)
def test_operator_names_are_unique(name, trained):
    names = operators(capture(trained(seeded(MODELS[name])), example()))
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_torchvision_models_are_captured(name, trained):
    from torchvision import models

    torch.manual_seed(0)
    model = trained(models.get_model(name, weights=None))
    graph = capture(model, example((1, 3, 32, 32)))
    with torch.inference_mode():
        x = example((2, 3, 32, 32))
        torch.testing.assert_close(graph(x), model(x))


def test_later_change_of_a_viewed_base_is_refused():
    def change(x):
        x = x * 2
        x[:, :1].relu_()
        return x

    with pytest.raises(ConversionError, match="relu_ changes a view of a tensor .* read again"):
        capture(Function(change), example())


@pytest.mark.parametrize(
    ("factory", "kind", "name"),
    [
        (lambda: Padded(3, 4, 2, bias=False), nn.Conv2d, "0"),
        (Functional, nn.Linear, None),
        (Functional, nn.BatchNorm2d, None),
    ],
)
def test_functional_layers_become_plain_modules(factory, kind, name):
    graph = capture(nn.Sequential(seeded(factory)).eval(), example())
    plain = [
        operator_name(node)
        for node in graph.graph.nodes
        if node.op == "call_module" and type(graph.get_submodule(node.target)) is kind
    ]
    assert len(plain) == 1
    assert name is None or plain == [name]


def test_operators_have_the_path_of_their_owner(trained):
    model = nn.ModuleDict({"layer": Residual()})
    model.forward = lambda x: model["layer"](x).flatten(1)
    block = nn.Sequential()
    block.add_module("layer", Residual())
    assert operators(capture(trained(block), example())) == [
        "layer.conv1", "layer.bn1", "layer.relu", "layer.conv2", "layer.bn2",
        "layer.add", "layer.relu:2",
    ]  # fmt: skip


def test_dropout_and_identity_are_removed_and_listed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Identity(), nn.Dropout2d(0.1, inplace=True)
    )
    graph = capture(model.eval(), example())
    assert graph.meta[REMOVED] == ("1", "2", "3")
    assert operators(graph) == ["0"]


def test_nothing_stays_in_place():
    for name in MODELS:
        if "view" not in name:
            graph = capture(seeded(MODELS[name]).eval(), example())
            assert not any(kind.endswith("_") for kind in kinds(graph)), name
            assert not any(getattr(m, "inplace", False) for m in graph.modules()), name


def test_the_users_model_is_left_unchanged():
    model = nn.Sequential(Padded(3, 3, 2), Residual(), nn.Dropout()).eval()
    before = copy.deepcopy(model)
    capture(model, example())
    assert str(model) == str(before)  # the modules, their settings and inplace flags
    assert type(model[0]) is Padded
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_untraceable_line_of_the_user_is_named():
    line = inspect.getsourcelines(Branch.forward)[1] + 1
    with pytest.raises(ConversionError, match="cannot trace the model") as caught:
        capture(nn.Sequential(Branch()), example())
    assert f"{__file__}:{line}: return x if x.sum() > 0 else -x" in str(caught.value)


def test_input_that_does_not_fit_is_refused_with_its_shape():
    with pytest.raises(ConversionError, match=r"fails on an input of shape \[1, 1, 8, 8\]"):
        capture(Residual().eval(), example((1, 1, 8, 8)))


def test_two_inputs_are_refused():
    with pytest.raises(ConversionError, match="reads 2 inputs"):
        capture(TwoInputs(), example())


@pytest.mark.parametrize(
    "function",
    [lambda x: (x, x + 1), lambda x: {"a": x * 2}, lambda x: [x + 1], lambda x: x.chunk(2)],
    ids=["tuple", "dict", "list", "chunks"],
)
def test_several_outputs_are_refused(function):
    with pytest.raises(ConversionError, match="returns several values"):
        capture(Function(function), example())
