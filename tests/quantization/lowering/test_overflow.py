"""Trap 2: without VNNI, products of 8-bit integers overflow the 16 bits that they are summed in.

A fresh process with its instruction sets limited shows it, on any CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import Converted
from torch import nn

from qconvert import torchscript
from qconvert.measurement.cpu_classes import can_be_shown
from qconvert.measurement.limited import LimitedProcess
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.lowering import reload
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8, Simulated
from qconvert.quantization.overflow import measure_overflow
from qconvert.quantization.plan import FewerBits, Plan
from qconvert.quantization.planning import make_plan


def positive() -> nn.Module:
    """All weights and inputs positive: the sums are as large as they can be."""
    network = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 3), nn.ReLU())
    for layer in (network[0], network[2]):
        layer.weight.data = layer.weight.data.abs() + 0.5
        layer.bias.data.fill_(0.5)
    return network


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("channels", [64, 128])
def test_depthwise_layer_is_exact(converted, channels: int, scheme: str) -> None:
    """fbgemm's depthwise kernels sum in 16 bits, with VNNI too."""

    def network() -> nn.Module:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        layers = nn.Conv2d(3, channels, 1), depthwise
        for layer in layers:
            layer.weight.data = layer.weight.data.abs() + 0.5
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU())

    result = converted(network, weights={"scheme": scheme}, lowering="classic")
    with torch.inference_mode():
        difference = result.model(result.images) - result.simulated(result.images)
    step = result.plan.tensors[result.operator("2").value].scale
    assert float(difference.abs().max()) / step <= 1.01


@pytest.mark.parametrize(("isa", "exact"), [("portable", True), ("vnni", False)])
def test_portable_file_is_right_without_vnni(
    converted, tmp_path: Path, isa: str, exact: bool
) -> None:
    result = converted(positive, isa=isa)
    bright = result.images.abs()
    inputs, outputs = tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    torch.save([(bright,)], inputs)
    file = result.file(tmp_path / "model.pt")
    limited = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-I", reload.__file__, str(file), str(inputs), str(outputs)]
    subprocess.run(command, check=True, env={**os.environ, **limited}, capture_output=True)
    found = torch.load(outputs, weights_only=True)[0]
    with torch.inference_mode():
        expected = result.simulated(bright)
    step = result.plan.tensors[result.operator("2").value].scale
    largest = float((found - expected).abs().max()) / step
    assert (largest <= 1.01) == exact, f"off by {largest:.1f} steps"


def bright_and_dull() -> nn.Module:
    """The second layer overflows in its channels 1 and 5, the others have one large weight each."""
    network = positive()
    weight = torch.zeros(16, 64, 3, 3)
    weight[:, 0, 0, 0] = 1.0
    weight[[1, 5]] = network[2].weight.data[[1, 5]]
    network[2].weight.data = weight
    return network


def measured(result: Converted, classes: list[str], **settings: object) -> dict[str, FewerBits]:
    """What the layers of a converted network must give up on its images, brightened."""
    section = QuantizationSection.model_validate({"decide": "int8", **settings})

    def plan_of(fewer_bits: Mapping[str, FewerBits]) -> Plan:
        return make_plan(result.fused, result.calibration, section, fewer_bits=fewer_bits)

    return measure_overflow(result.fused, plan_of, [(result.images.abs(),)], classes)


@pytest.mark.parametrize("lowering", ["classic", "direct"])
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_channels_that_overflow_are_found_and_are_right_then(
    converted, lowering: str, isa: str
) -> None:
    needs_class(isa)
    result = converted(bright_and_dull, lowering=lowering)
    found = measured(result, [isa], lowering=lowering)
    given_up = found[result.operator("2").node]
    assert {*given_up.neighbours, *given_up.any_two} == {1, 5}
    assert isa in given_up.reason
    # What they give up is enough: with it, nothing is wrong that was not made safe.
    section = QuantizationSection.model_validate({"decide": "int8", "lowering": lowering})
    plan = make_plan(result.fused, result.calibration, section, fewer_bits=found)
    bright = result.images.abs()
    model = lower(result.fused, plan, Int8(plan))
    simulated = lower(result.fused, plan, Simulated())
    file = torchscript.to_bytes(torchscript.freeze(torchscript.trace(model, [bright])))
    with LimitedProcess(isa) as process, torch.inference_mode():
        expected = simulated(bright)
        difference = process.load(file)(bright) - expected
    held = plan.tensors.get(result.operator("2").value)  # None: the layer returns float
    step = float(expected.max()) / 255 if held is None else held.scale
    assert float(difference.abs().max()) / step <= 1.01


@pytest.mark.parametrize("lowering", ["classic", "direct"])
def test_with_vnni_nothing_overflows(converted, lowering: str) -> None:
    """Also proves the exact arithmetic that kernels are compared with: sums, activations, float
    outputs, dynamic ranges."""
    needs_class("vnni")

    def network() -> nn.Module:
        layers = positive(), nn.Flatten(), nn.Linear(16 * 22 * 22, 8), nn.ReLU(), nn.Linear(8, 4)
        return nn.Sequential(*layers)

    result = converted(network, lowering=lowering)
    assert measured(result, ["vnni"], lowering=lowering) == {}


def test_layer_with_dynamic_ranges_comes_as_near_to_float_as_with_vnni(converted) -> None:
    needs_class("avx2")

    def network() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 64), nn.ReLU(), nn.Linear(64, 4))

    rules = [{"match": "1", "precision": "dynamic"}]
    result = converted(network, layers=rules)
    result.original[1].weight.data.abs_()
    node = result.operator("1").node
    found = measured(result, ["avx2"], layers=rules)
    assert found[node].what in ("weights", "inputs")
    assert "farther from float on avx2" in found[node].reason


def needs_class(isa: str) -> None:
    """Skips on a machine that cannot be limited to a class."""
    if not can_be_shown(isa):
        pytest.skip(f"this CPU cannot show {isa}")
