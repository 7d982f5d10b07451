"""A captured graph computes what the model does, out of place, under names that people know."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from qconvert.errors import ConversionError, ModelInputError, UnsupportedError, UntraceableError
from qconvert.models.graph import capture
from qconvert.models.normal_form import REMOVED
from qconvert.models.operators import operator_name
from qconvert.models.outputs import tensors


def example(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def operators(graph: torch.fx.GraphModule) -> list[str]:
    return [operator_name(n) for n in graph.graph.nodes if n.op.startswith("call_")]


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

    def __init__(self, affine=lambda module: (module.gamma, module.beta)):
        super().__init__()
        self.affine = affine
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 0.5)

    def forward(self, x):
        y = F.linear(x.mean((2, 3)), self.weight, self.bias)
        return F.batch_norm(y, self.mean, self.variance, *self.affine(self), eps=1e-3)


class WithChild(nn.Module):
    """A block that applies its own weight as a function, and a child module after it."""

    def __init__(self):
        super().__init__()
        self.weight, self.child = nn.Parameter(torch.randn(3, 3, 1, 1)), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return self.child(F.conv2d(x, self.weight))


def relu_then_skip(x):
    y = torch.relu_(x)
    return x + y


def functional_then_skip(x):
    x = x + 1
    y = F.hardtanh(x, -0.5, 0.5, True) + F.relu(x - 0.2, inplace=True)
    return x + y


def add_in_place(x):
    y = x * 2
    y += x
    y *= y
    return y


def add_seen_by_skip(x):
    skip = x = x * 2
    x += 3
    return x * skip


def methods_in_place(x):
    skip = x
    x.add_(1).mul_(3).clamp_(0, 4)
    return x + skip


def view_before_change(x):
    x = x * 2
    flat = x.flatten(1)
    x.relu_()
    return flat


def contiguous_alias(x):
    x = x * 2
    y = x.contiguous()
    return x + y.relu_()


def seeded(factory):
    torch.manual_seed(0)
    return factory()


MODELS = {
    "residual": Residual,
    "residual in sequence": lambda: nn.Sequential(Residual(), Residual()),
    "relu_ read by a skip": lambda: Function(relu_then_skip),
    "inplace function read by a skip": lambda: Function(functional_then_skip),
    "augmented assignment": lambda: Function(add_in_place),
    "in-place methods": lambda: Function(methods_in_place),
    "padded conv": lambda: nn.Sequential(Padded(3, 4, 2), nn.ReLU(inplace=True)),
    "padded conv called twice": lambda: nn.Sequential(*[Padded(3, 3, 2)] * 2),
    "conv with a gain": lambda: nn.Sequential(Gained(3, 4, 3), nn.ReLU()),
    "functional": Functional,
    "functional in a block": lambda: nn.Sequential(Functional(), nn.ReLU()),
    "norm with a weight but no bias": lambda: Functional(lambda m: (m.gamma,)),
    "norm with a computed weight": lambda: Functional(lambda m: (m.gamma.exp(), m.beta)),
    "functional beside a child": lambda: nn.Sequential(WithChild(), nn.ReLU()),
    "shufflenet": lambda: models.get_model("shufflenet_v2_x0_5", weights=None),
    "dropout": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.9), nn.Identity()),
}
HARD_MODELS = {
    "augmented assignment seen by a skip": lambda: Function(add_seen_by_skip),
    "in-place change seen through a view": lambda: Function(view_before_change),
    "in-place change of a contiguous alias": lambda: Function(contiguous_alias),
    "weight norm": lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 1))),
}


@pytest.mark.parametrize("name", MODELS)
def test_graph_computes_what_the_model_computes(name, trained):
    model = trained(seeded(MODELS[name]))
    graph = capture(model, [example()])
    with torch.inference_mode():
        torch.testing.assert_close(graph(example()), model(example()))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", HARD_MODELS)
def test_graph_computes_what_the_model_computes_or_is_refused(name, trained):
    model = trained(seeded(HARD_MODELS[name]))
    try:
        graph = capture(model, [example()])
    except ConversionError:
        return
    with torch.inference_mode():
        torch.testing.assert_close(graph(example()), model(example()))


@pytest.mark.parametrize("name", ["residual in sequence", "padded conv called twice"])
def test_operator_names_are_unique(name, trained):
    names = operators(capture(trained(seeded(MODELS[name])), [example()]))
    assert sorted(names) == sorted(set(names))


def test_later_change_of_a_viewed_base_is_refused():
    def change(x):
        x = x * 2
        x[:, :1].relu_()
        return x

    with pytest.raises(
        ConversionError, match=r"relu_ changes memory that mul is a view of, and that is read again"
    ):
        capture(Function(change), [example()])


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (lambda: nn.Sequential(Padded(3, 4, 2, bias=False)), {"0": nn.Conv2d}),
        (Functional, {"linear": nn.Linear, "batch_norm": nn.SyncBatchNorm}),
    ],
    ids=["subclass", "functional"],
)
def test_layers_with_constant_weights_become_plain_modules(factory, expected):
    graph = capture(seeded(factory).eval(), [example()])
    modules = [node for node in graph.graph.nodes if node.op == "call_module"]
    plain = {operator_name(n): type(graph.get_submodule(n.target)) for n in modules}
    assert plain == expected


def test_operators_have_the_path_of_their_owner(trained):
    model = nn.Sequential(OrderedDict(layer=Residual()))
    assert operators(capture(trained(model), [example()])) == [
        "layer.conv1", "layer.bn1", "layer.relu", "layer.conv2", "layer.bn2",
        "layer.add", "layer.relu:2",
    ]  # fmt: skip


def test_dropout_and_identity_are_removed_and_listed():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.Identity(), nn.Dropout2d(0.1, inplace=True)
    )
    graph = capture(model.eval(), [example()])
    assert graph.meta[REMOVED] == ("1", "2", "3")
    assert operators(graph) == ["0"]


@pytest.mark.parametrize("name", ["residual", "relu_ read by a skip", "in-place methods"])
def test_graph_leaves_its_input_unchanged(name):
    graph = capture(seeded(MODELS[name]).eval(), [example()])
    x = example()
    graph(x)
    assert torch.equal(x, example())
    assert not any(getattr(module, "inplace", False) for module in graph.modules())


def test_the_users_model_is_left_unchanged():
    model = nn.Sequential(Padded(3, 3, 2), Residual(), nn.Dropout()).eval()
    before = copy.deepcopy(model)
    capture(model, [example()])
    assert str(model) == str(before)  # the modules, their settings and inplace flags
    assert type(model[0]) is Padded
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_untraceable_line_of_the_user_is_named():
    line = inspect.getsourcelines(Branch.forward)[1] + 1
    with pytest.raises(UntraceableError, match="cannot trace its code") as caught:
        capture(nn.Sequential(Branch()), [example()])
    assert f"{__file__}:{line}: return x if x.sum() > 0 else -x" in str(caught.value)


def test_input_that_does_not_fit_is_one_message_with_its_shape(capfd):
    with pytest.raises(UnsupportedError, match=r"fails on inputs of shape \[2, 1, 8, 8\]"):
        capture(Residual().eval(), [example(channels=1)])
    assert capfd.readouterr().err == ""


class TwoInputs(nn.Module):
    """Reads the size of the second input, so that their order matters."""

    def forward(self, x, y, gain=2):
        return x * y.mean() + y.size(1) * gain


def test_several_inputs_are_read_in_their_order():
    x, y = example(), example(channels=5)
    graph = capture(TwoInputs(), [x, y])
    assert torch.equal(graph(x, y), TwoInputs()(x, y))


def asserted(x):
    x = x * 2
    torch._assert(x.ndim == 4, "no batch of images")
    x.relu_()
    torch._assert(x.sum() > 0, "black")
    return x


def test_assertions_are_forgotten_with_what_is_computed_for_them():
    graph = capture(Function(asserted), [example()])
    assert operators(graph) == ["mul", "relu_"]
    assert torch.equal(graph(example()), asserted(example()))


@pytest.mark.parametrize("given", [1, 4])
def test_other_number_of_inputs_is_refused(given):
    with pytest.raises(ModelInputError) as caught:
        capture(TwoInputs(), [example()] * given)
    assert caught.value.facts == [f"the model reads 2 inputs (x, y), the images give {given}"]
    assert "data.transform" in caught.value.fix


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, x + 1),
        lambda x: {"a": x * 2, "b": (x, x + 1)},
        lambda x: [x + 1],
        lambda x: x.chunk(2),
    ],
    ids=["tuple", "dict", "list", "chunks"],
)
def test_several_outputs_are_returned_as_the_model_does(function):
    have = capture(Function(function), [example()])(example())
    want = function(example())
    assert type(have) is type(want)
    pairs = zip(tensors(want).items(), tensors(have).items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
