"""The traps of a naive conversion: each network is converted, reloaded in a fresh process that
sets nothing, compared at two batch sizes, and stays as near to float as its plan predicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from torch import nn

from qconvert import torchscript
from qconvert.quantization.lowering.coverage import check_against_plan, count
from qconvert.quantization.lowering.verification import verify

# Network, least SQNR in dB (8 bits give 20 to 40 on such networks), share of work in int8.
CASES: list[tuple[Callable[[], nn.Module], float, float]] = [
    (networks.plain, 25, 1.0),
    (networks.Residual, 25, 1.0),
    (networks.Prelu, 25, 1.0),
    (networks.subclassed, 25, 1.0),
    (networks.relu6, 25, 1.0),
    (networks.odd_depthwise, 25, 0.75),
    (networks.dilated_depthwise, 25, 0.75),
    (networks.Recurrent, 25, 0.3),
    (networks.dead_channel, 25, 1.0),
    (networks.transposed, 25, 0.75),
    (networks.OneDimension, 25, 1.0),
    (networks.ThreeDimensions, 25, 1.0),
    (networks.SkipSeesInPlace, 25, 1.0),
    (networks.wide_depthwise, 25, 1.0),
    (networks.Chunks, 25, 1.0),
    (networks.Constants, 25, 1.0),
    (networks.pooled_map, 25, 1.0),
]


@pytest.mark.parametrize(
    ("network", "sqnr_db", "int8"), CASES, ids=lambda c: getattr(c, "__name__", None)
)
def test_file_is_right_in_a_fresh_process(
    converted, tmp_path: Path, network: Callable[[], nn.Module], sqnr_db: float, int8: float
) -> None:
    result = converted(network)
    file = result.file(tmp_path / "model.int8.pt")
    verification = verify(file, result.model, result.inputs(5), result.original)
    assert verification.largest_difference < 1e-4
    assert result.sqnr_db() > sqnr_db
    assert abs(result.sqnr_db() - result.sqnr_db("simulated")) < 1.5
    coverage = count(torchscript.load(file), [result.images[:1]])
    check_against_plan(coverage, result.plan)
    assert coverage.int8_macs_share >= int8


@pytest.mark.parametrize(
    ("network", "operator", "reason"),
    [
        (networks.Prelu, "act1", "no int8 PReLU"),
        (networks.odd_depthwise, "3", "116 channels"),
        (networks.dilated_depthwise, "3", "dilation"),
        (networks.transposed, "3", "transposed"),
        (networks.Recurrent, "lstm", "no int8 LSTM"),
        (networks.Residual, "head", None),
    ],
)
def test_every_operator_has_a_line_with_its_reason(
    converted, network: Callable[[], nn.Module], operator: str, reason: str | None
) -> None:
    line = converted(network).operator(operator)
    assert (
        (line.precision, line.reason) == ("int8", None)
        if reason is None
        else (line.precision == "float32" and reason in (line.reason or ""))
    )


def test_relu6_is_saturation(converted) -> None:
    """No operator computes it: the range ends at 6, where the integers do."""
    result = converted(networks.relu6)
    line = result.operator("0")
    assert (line.with_activation, line.activation) == ("1", "saturation")
    held = result.plan.tensors[line.value]
    assert held.range_max <= 6
    largest = _quantized_values(result, "_0")
    assert float(largest.max()) <= 6 + held.scale / 2


def _quantized_values(result, layer: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    module = result.model.get_submodule(layer.strip("_"))
    hook = module.register_forward_hook(lambda m, args, out: seen.append(out.dequantize()))
    with torch.inference_mode():
        result.model(result.images)
    hook.remove()
    return seen[0]


def test_classifier_returns_its_sums_unrounded(converted) -> None:
    """The last linear layer is int8, but its results are not on a grid of 256 values."""
    result = converted(networks.plain)
    assert result.operator("11").float_output
    with torch.inference_mode():
        outputs = result.model(result.images)
    assert len(outputs.unique()) == outputs.numel()
