"""Activations that a kernel computes with the layer before them, in each family of kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from qconvert import torchscript
from qconvert.quantization.lowering.coverage import check_against_plan, count
from qconvert.quantization.rules import ALONE

LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: [nn.Flatten(2), nn.Linear(576, 16)],
    "conv1d": lambda: [nn.Flatten(2), nn.Conv1d(3, 8, 3, padding=1)],
    "conv2d": lambda: [nn.Conv2d(3, 8, 3, padding=1)],
    "depthwise": lambda: [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)],
    "conv3d": lambda: [nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 8, 3, padding=1)],
}
AFTER: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(16, 5),
    "conv1d": lambda: nn.Conv1d(8, 5, 3),
    "conv2d": lambda: nn.Conv2d(8, 5, 3),
    "depthwise": lambda: nn.Conv2d(8, 5, 1),
    "conv3d": lambda: nn.Conv3d(8, 5, 3),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "saturation": nn.ReLU6,
    "narrow saturation": lambda: nn.Hardtanh(0, 0.25),
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
    "tanh": nn.Tanh,
    "leaky_relu": lambda: nn.LeakyReLU(0.3),
}
ALL = [
    *((layer, activation) for layer in ("linear", "conv2d") for activation in ACTIVATIONS),
    *(
        (layer, activation)
        for layer in ("conv1d", "depthwise", "conv3d")
        for activation in ("relu", "saturation", "hardswish", "gelu")
    ),
]


def network(layer: str, activation: str, last: bool) -> Callable[[], nn.Module]:
    """The layer with its activation, at the end or before another layer. Its results are large
    enough for every activation to matter."""

    def build() -> nn.Module:
        first = LAYERS[layer]()
        first[-1].weight.data *= 6
        return nn.Sequential(*first, ACTIVATIONS[activation](), *([] if last else [AFTER[layer]()]))

    return build


@pytest.mark.parametrize("last", [True, False], ids=["last", "inside"])
@pytest.mark.parametrize(("layer", "activation"), ALL)
def test_every_pair_is_right(
    converted, tmp_path: Path, layer: str, activation: str, last: bool
) -> None:
    """Fused or not: the model computes what float does, and the file what the plan says."""
    for lowering in ("direct", "auto"):
        result = converted(network(layer, activation, last), lowering=lowering)
        # oneDNN's 3d convolution computes no activation with it.
        in_float = layer == "conv3d" and lowering == "direct"
        assert result.sqnr_db() > 30, lowering
        if not in_float:
            assert abs(result.sqnr_db() - result.sqnr_db("simulated")) < 1.5, lowering
        if last and lowering == "direct" and not in_float:
            # Nothing is rounded after the activation.
            with torch.inference_mode():
                want, have = result.simulated(result.images), result.model(result.images)
            assert (want - have).abs().max() < 1e-5 * want.abs().max()
        file = torchscript.load(result.file(tmp_path / f"{lowering}.pt"))
        with torch.inference_mode():
            torch.testing.assert_close(file(result.images), result.model(result.images))
        found = count(file, [result.images[:1]])
        check_against_plan(found, result.plan)
        assert in_float or found.int8_macs_share == 1


FUSED = [
    *(("conv2d", name) for name in ("hardswish", "silu")),
    *(("linear", n) for n in ("hardswish", "silu", "gelu", "gelu_tanh", "tanh", "leaky_relu")),
]


@pytest.mark.parametrize(("layer", "activation"), FUSED)
def test_activation_is_in_the_kernel_of_the_direct_operators_only(
    converted, layer: str, activation: str
) -> None:
    lines = converted(network(layer, activation, False), lowering="direct").plan.operators
    (line,) = [o for o in lines if o.activation == activation]
    assert (line.kind, line.precision, line.lowering) == (layer, "int8", "direct")
    assert line.slope == (pytest.approx(0.3) if activation == "leaky_relu" else None)
    # Where either family may be taken, the costs say which.
    lines = converted(network(layer, activation, False), lowering="auto").plan.operators
    first, *between, _ = lines[next(i for i, o in enumerate(lines) if o.kind == layer) :]
    kind = "gelu" if activation == "gelu_tanh" else activation
    alone = "int8" if kind in ALONE else "float32"
    assert (first.lowering, first.activation, [(o.kind, o.precision) for o in between]) in [
        ("direct", activation, []),
        ("classic", None, [(kind, alone)]),
    ]
    lines = converted(network(layer, activation, False), lowering="classic").plan.operators
    assert [o.activation for o in lines] == [None] * len(lines)
    assert [o.precision for o in lines[-3:]] == ["int8", alone, "int8"]
    if alone == "float32":
        assert "only with the layer before it" in (lines[-2].reason or "")


@pytest.mark.parametrize("activation", ["gelu", "tanh", "leaky_relu"])
@pytest.mark.parametrize("lowering", ["auto", "classic", "direct"])
def test_activation_that_no_convolution_computes_is_an_operator(
    converted, activation: str, lowering: str
) -> None:
    plan = converted(network("conv2d", activation, False), lowering=lowering).plan
    alone = "int8" if activation in ALONE and lowering != "direct" else "float32"
    assert [(o.precision, o.activation) for o in plan.operators] == [
        ("int8", None), (alone, None), ("int8", None),
    ]  # fmt: skip


def test_activation_of_a_pair_can_be_kept_in_float(converted) -> None:
    rule = {"type": "Hardswish", "precision": "float32"}
    result = converted(network("conv2d", "hardswish", False), layers=[rule])
    lines = [(o.name, o.precision, o.activation) for o in result.plan.operators]
    assert lines == [("0", "int8", None), ("1", "float32", None), ("2", "int8", None)]
    assert result.sqnr_db() > 30
