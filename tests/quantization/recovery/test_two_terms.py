"""Tensors in two terms of 8 bits: exact in float, nearly so in int8, and chosen where it pays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qconvert.models.fusion import FusedModel
from qconvert.models.two_terms import FACTOR, TwoTerms, reading_two_terms
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.affine import fake_quantize
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8, Simulated
from qconvert.quantization.plan import Plan
from qconvert.quantization.planning import make_plan
from qconvert.quantization.recovery.tensor_noise import noise_of_tensors
from qconvert.quantization.recovery.two_terms import (
    Maker,
    candidates,
    choose,
    params_for,
    with_two_terms,
)
from qconvert.quantization.training.features import block_outputs
from qconvert.quantization.training.student import Student


class Outlier(nn.Module):
    """One channel between two layers is 100 times the others, and hardly read; the sum after them
    has nothing of the kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.shortcut, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 8)
        with torch.no_grad():
            self.first.weight[0] *= 100
            self.second.weight[:, 0] /= 100

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) + self.shortcut(x)
        x = F.relu(self.last(F.relu(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Tokens(nn.Module):
    """Linear layers over tokens, whose input is float: it comes from a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, 16, 8, 8)
        self.norm, self.first, self.head = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.cut(x).flatten(2).transpose(1, 2)
        return self.head(F.relu(self.first(self.norm(tokens))).mean(1))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1, bias=False)]
)
def test_two_terms_are_the_whole_in_float(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 9, 9)
    terms = TwoTerms(0.05, 120, 1)(x)
    assert torch.allclose(reading_two_terms(layer)(terms), layer(x), atol=1e-5)
    assert terms.shape == (2, 12, 9, 9)
    # The second is what the first leaves over, of half a step at most.
    inside = (x > -5.9) & (x < 6.7)
    assert float((terms[:, 6:] / FACTOR)[inside].abs().max()) <= 0.025 + 1e-6


@pytest.mark.parametrize(
    ("network", "value"), [(Outlier, "first"), (Outlier, "relu"), (Tokens, "norm")]
)
@pytest.mark.parametrize("lowering", ["auto", "direct"])
def test_a_tensor_in_two_terms_is_hardly_rounded(
    converted: Any, network: type[nn.Module], value: str, lowering: str
) -> None:
    """The noise of the tensor falls by more than 10 dB, and kernels compute what is simulated."""
    result = converted(network, lowering=lowering)
    readers = candidates(result.fused, result.plan)
    assert value in readers
    params = {value: params_for(result.calibration, value)}
    model = with_two_terms(result.fused, params, readers)
    section = QuantizationSection(decide="int8", isa=result.plan.isa, lowering=lowering)
    plan = make_plan(model, result.calibration, section)
    assert value not in plan.tensors
    images = result.inputs(6)
    before = noise_of_tensors(result.fused, result.plan, images)[value]
    after = noise_of_tensors(model, plan, images)[f"two_terms_{value}"]
    assert after < before / 10
    with torch.inference_mode():
        simulated = lower(model, plan, Simulated())(result.images)
        computed = lower(model, plan, Int8(plan))(result.images)
        assert torch.allclose(model.graph(result.images), result.fused.graph(result.images),
                              atol=1e-4)  # fmt: skip
    error = float((simulated - computed).abs().max())
    assert error < 0.02 * float(simulated.abs().max())


def relu_in_two_terms(result: Any) -> tuple[FusedModel, Plan]:
    """The model whose sum is read in two terms, and its plan."""
    readers = candidates(result.fused, result.plan)
    model = with_two_terms(result.fused, {"relu": params_for(result.calibration, "relu")}, readers)
    section = QuantizationSection(decide="int8", isa=result.plan.isa)
    plan = make_plan(model, result.calibration, section)
    return model, plan


def test_what_is_read_in_two_terms_is_made_in_float(converted: Any) -> None:
    """The sum, and the two layers that it adds: none of them is rounded."""
    result = converted(Outlier)
    _, plan = relu_in_two_terms(result)
    lines = {o.name: o for o in plan.operators}
    assert lines["second"].float_output
    assert lines["shortcut"].float_output
    assert lines["add"].precision == "float32"
    assert "two terms" in str(lines["add"].reason)
    assert lines["last"].precision == "int8"
    assert lines["last"].inputs == ("two_terms_relu",)
    assert not {"second", "shortcut", "add", "relu"} & set(plan.tensors)
    assert plan.int8_macs == 1.0


def test_a_model_with_two_terms_can_be_trained(converted: Any) -> None:
    """Its student begins as the simulation, and shows values that the teacher has."""
    result = converted(Outlier)
    model, plan = relu_in_two_terms(result)
    names = block_outputs(model, plan)
    with torch.no_grad():
        found, features = Student(model, plan, names)(result.images)
        wanted = lower(model, plan, Simulated())(result.images)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    assert names
    assert list(features) == names


def test_noise_is_foreseen(converted: Any) -> None:
    """Within a quarter of what errors like those of rounding, but small, do."""
    result = converted(Outlier)
    foreseen = noise_of_tensors(result.fused, result.plan, result.inputs(12))
    layer = result.fused.graph.get_submodule("first")
    params = result.plan.tensors["first"]
    with torch.inference_mode():
        want = result.fused.graph(result.images)
        hook = layer.register_forward_hook(
            lambda module, args, x: x + 0.01 * (fake_quantize(x, params.params) - x)
        )
        have = result.fused.graph(result.images)
        hook.remove()
    measured = 1e4 * float((have - want).square().sum() / want.square().sum())
    assert foreseen["first"] == pytest.approx(measured, rel=0.25)


def test_the_tensor_that_costs_most_is_chosen(converted: Any) -> None:
    """And none where it would cost too much time, or where little noise is left."""
    result = converted(Outlier)
    images = result.inputs(6)
    section = QuantizationSection(decide="int8", isa=result.plan.isa)

    def microseconds(for_each: float) -> Any:
        def count(model: Any) -> float:
            return 100 + for_each * sum("two_terms" in n.name for n in model.graph.graph.nodes)

        return count

    def chosen(for_each: float, least: float) -> set[str]:
        make = Maker(
            lambda model: make_plan(model, result.calibration, section), microseconds(for_each)
        )
        return set(choose(result.fused, result.calibration, make, images, least).params)

    assert "first" in chosen(1.0, 0.0)
    assert chosen(9.0, 0.0) == set()
    assert chosen(1.0, 1.0) == set()
