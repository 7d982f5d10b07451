"""What the author of a model has done for eager-mode quantization: stubs are boundaries, and what
is quantized already is left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.ao import quantization as ao
from torch.ao.nn.quantized import FloatFunctional, dynamic
from torch.ao.quantization import DeQuantStub, QuantStub
from torchvision.models import quantization as zoo

from qconvert import torchscript
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.quantization.lowering.coverage import Coverage, check_against_plan, count
from qconvert.quantization.lowering.verification import verify

OUTSIDE = "it is not between the model's QuantStub and DeQuantStub"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:.*reduce_range:UserWarning",
)


def precisions(result: Any) -> dict[str, str]:
    return {o.name: o.precision for o in result.plan.operators}


def counted(result: Any, folder: Path) -> Coverage:
    """What the saved file runs, which must be what the plan says, beside what was there before."""
    file = torchscript.load(result.file(folder / "counted.pt"))
    found = count(file, [result.images[:1]])
    check_against_plan(found, result.plan, None, count(result.original, [result.images[:1]]))
    return found


# ---- Stubs


def stubbed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), QuantStub(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        DeQuantStub(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 20 * 20, 4),
    )  # fmt: skip


def two_regions() -> nn.Module:
    return nn.Sequential(
        QuantStub(), nn.Conv2d(3, 8, 3), DeQuantStub(), nn.Conv2d(8, 8, 3), nn.Sigmoid(),
        QuantStub(), nn.Conv2d(8, 4, 3), nn.ReLU(), DeQuantStub(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip


def test_what_is_not_between_the_stubs_is_float_with_its_reason(converted, tmp_path) -> None:
    result = converted(stubbed)
    lines = {o.name: (o.precision, o.reason) for o in result.plan.operators}
    assert list(lines) == ["0", "2", "6", "7", "8", "9"]
    assert lines["2"] == ("int8", None)
    assert lines["0"] == lines["6"] == lines["9"] == ("float32", OUTSIDE)
    assert (lines["7"][0], lines["8"][0]) == ("float32", "float32")
    found = counted(result, tmp_path)
    assert found.int8_macs == 20 * 20 * 8 * 8 * 9
    assert found.boundaries == 2


def test_rule_of_the_qconfig_is_above_the_stubs(converted) -> None:
    result = converted(stubbed, layers=[{"match": "6", "precision": "int8"}])
    assert precisions(result)["6"] == "int8"
    assert precisions(result)["0"] == "float32"
    result = converted(stubbed, layers=[{"match": "2", "precision": "float32"}])
    assert set(precisions(result).values()) == {"float32"}


def test_each_of_two_regions_is_int8(converted, tmp_path) -> None:
    result = converted(two_regions)
    assert precisions(result) == {
        "1": "int8", "3": "float32", "4": "float32", "6": "int8", "9": "float32",
    }  # fmt: skip
    assert counted(result, tmp_path).boundaries == 4


class Functional(nn.Module):
    """Operators as eager mode wants them: modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.second, self.last = (nn.Conv2d(i, 8, 1) for i in (3, 8, 16))
        self.plus, self.times, self.join, self.rest = (FloatFunctional() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.quant(x))
        y = self.second(x)
        x = self.rest.add_relu(x, y)
        y = self.times.mul(y, self.plus.add(x, y))
        y = self.last(self.join.cat([x, y], dim=1))
        return self.dequant(self.plus.add_scalar(self.times.mul_scalar(y, 0.5), 0.25))


def test_float_functionals_are_the_operators_that_they_stand_for(converted, tmp_path) -> None:
    result = converted(Functional, lowering="classic")
    found = precisions(result)
    assert {found[name] for name in ("conv", "second", "last")} == {"int8"}
    kinds = {o.kind: o for o in result.plan.operators}
    assert {"add", "mul", "cat"} <= set(kinds)
    assert kinds["cat"].precision == "int8"
    (summed,) = [o for o in result.plan.operators if o.with_activation and o.kind == "add"]
    assert summed.activation == "relu"
    counted(result, tmp_path)
    assert result.sqnr_db() > 25


# ---- Models that are prepared for eager mode


def test_torchvisions_quantizable_model_is_captured_as_its_float_one(trained) -> None:
    torch.manual_seed(0)
    model = trained(zoo.resnet18(weights=None, quantize=False))
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    graph = capture(model, [x])
    kinds = [str(n.target) for n in graph.graph.nodes if n.op.startswith("call_")]
    assert not any("quant" in kind for kind in kinds)
    assert not any("outside of the stubs" in n.meta for n in graph.graph.nodes if n.op != "output"
                   and n.op != "placeholder")  # fmt: skip
    fused = fuse(graph)
    assert len(fused.folded) == 20
    assert sum("add" in names[0] for names in fused.paired) == 8
    with torch.inference_mode():
        torch.testing.assert_close(fused.graph(x), model(x), rtol=1e-3, atol=1e-3)


class Block(nn.Module):
    """As in torchvision's, with a name for each module to fuse."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.end = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        return self.dequant(self.head(self.end(self.last(x)).mean((2, 3))))


def prefused() -> nn.Module:
    """By torch's own `fuse_modules`: modules of torch.ao.nn.intrinsic."""
    groups = [["conv", "bn", "relu"], ["last", "end"]]
    return ao.fuse_modules(Block().eval(), groups)


def test_modules_that_torch_has_fused_are_layers_with_their_activation(converted, tmp_path) -> None:
    result = converted(prefused)
    lines = {o.kind: o for o in result.plan.operators}
    assert not {"conv_relu2d", "ConvReLU2d"} & set(lines)
    layers = [o for o in result.plan.operators if o.kind in ("conv2d", "linear")]
    assert [o.precision for o in layers] == ["int8"] * 3
    assert [o.activation for o in layers] == ["relu", "relu", None]
    counted(result, tmp_path)
    assert result.sqnr_db() > 25


# ---- What is quantized in the source


def quantized_conv(inputs: int, outputs: int, relu: bool = False) -> nn.Module:
    """With weights and a scale of its own."""
    made = (torch.ao.nn.intrinsic.quantized.ConvReLU2d if relu else nnq.Conv2d)(inputs, outputs, 3)
    weight = torch.randn(outputs, inputs, 3, 3) * 0.1
    made.set_weight_bias(
        torch.quantize_per_tensor(weight, 0.01, 0, torch.qint8), torch.zeros(outputs)
    )
    made.scale, made.zero_point = 0.1, 64
    return made


def quantized_linear(inputs: int, outputs: int) -> nn.Module:
    made = nnq.Linear(inputs, outputs)
    weight = torch.quantize_per_tensor(torch.randn(outputs, inputs) * 0.1, 0.01, 0, torch.qint8)
    made.set_weight_bias(weight, torch.zeros(outputs))
    made.scale, made.zero_point = 0.005, 128
    return made


class Summed(nn.Module):
    """A sum of quantized tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = nnq.Quantize(0.05, 128, torch.quint8)
        self.conv, self.end = quantized_conv(3, 3), nn.Conv2d(3, 4, 3)
        self.sum = nnq.QFunctional()
        self.sum.scale, self.sum.zero_point = 0.1, 128

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.quant(x))
        return self.end(self.sum.add(y, y).dequantize())


def quantized_before_and_after() -> nn.Module:
    return nn.Sequential(
        nnq.Quantize(0.05, 128, torch.quint8), quantized_conv(3, 8), quantized_conv(8, 8, True),
        nnq.DeQuantize(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nnq.Quantize(0.05, 0, torch.quint8), quantized_linear(8, 4), nnq.DeQuantize(),
    )  # fmt: skip


def dynamic_linear() -> nn.Module:
    made = dynamic.Linear(8, 4)
    weight = torch.quantize_per_tensor(torch.randn(4, 8) * 0.1, 0.01, 0, torch.qint8)
    made.set_weight_bias(weight, torch.zeros(4))
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), made)


def whole_model() -> nn.Module:
    """Converted by torch.ao in eager mode."""
    model = prefused()
    model.qconfig = ao.get_default_qconfig("x86")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = ao.prepare(model)
        prepared(torch.randn(4, 3, 24, 24))
        return ao.convert(prepared)


KERNELS: dict[Callable[[], nn.Module], tuple[set[str], set[str]]] = {
    quantized_before_and_after: (
        {"quantized::conv2d", "quantized::conv2d_relu", "quantized::linear"}, {"4"},
    ),
    Summed: ({"quantized::conv2d", "quantized::add"}, {"end"}),
    dynamic_linear: ({"quantized::linear_dynamic"}, {"0"}),
}  # fmt: skip


@pytest.mark.parametrize("network", KERNELS)
def test_what_the_user_has_quantized_is_left_alone(
    converted, tmp_path: Path, network: Callable[[], nn.Module]
) -> None:
    """The rest is converted, and the file has the kernels of both."""
    kernels, converted_layers = KERNELS[network]
    result = converted(network)
    found = precisions(result)
    assert {name for name, precision in found.items() if precision == "int8"} >= converted_layers
    given = [o for o in result.plan.operators if o.precision == "given"]
    if network is not dynamic_linear:
        assert given
        assert {o.reason for o in given} == {"it is quantized in the source already"}
    assert kernels <= set(counted(result, tmp_path).operators)
    assert result.sqnr_db() > 20
    if network is Summed:
        verify(result.file(tmp_path / "model.pt"), result.model, result.inputs(3), result.original)


def test_model_that_is_quantized_already_keeps_all_its_kernels(converted, tmp_path: Path) -> None:
    result = converted(whole_model)
    assert "int8" not in precisions(result).values()
    found = counted(result, tmp_path)
    assert {"quantized::conv2d_relu", "quantized::linear"} <= set(found.operators)
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    with torch.inference_mode():
        assert torch.equal(file(result.images), result.original(result.images))
