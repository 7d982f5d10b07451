"""Trap 2: without VNNI, products of 8-bit integers overflow the 16 bits that they are summed in.

A fresh process with its instruction sets limited shows it, on any CPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qconvert.quantization.lowering import reload


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
