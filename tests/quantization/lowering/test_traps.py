"""The traps of a naive conversion: each network is converted, reloaded in a fresh process that
sets nothing, compared at two batch sizes, and stays as near to float as its plan predicts.

The other traps that were measured: 2 in test_overflow.py, 8 below, 10 in
tests/models/test_detection.py, 13 in tests/models/test_checkpoint.py and test_outputs.py, 14 and 15
in tests/measurement/test_latency.py, 19 in test_affine.py, 20 in test_calibration.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from isa_here import VNNI
from torch import nn

from qconvert import torchscript
from qconvert.errors import NoImagesError
from qconvert.images.folder import read_folder
from qconvert.quantization.affine import quantize
from qconvert.quantization.lowering.coverage import Coverage, check_against_plan, count
from qconvert.quantization.lowering.direct import DirectBackend
from qconvert.quantization.lowering.verification import verify
from qconvert.quantization.plan import TensorParams

DIRECT: dict[str, Any] = {"lowering": "direct"}
# Network, settings, share of work in int8.
CASES: list[tuple[Callable[[], nn.Module], dict[str, Any], float]] = [
    (networks.plain, {}, 1.0),
    (networks.Residual, {}, 1.0),
    (networks.Residual, {"lowering": "classic"}, 1.0),
    (networks.Prelu, {}, 1.0),
    (networks.subclassed, {}, 1.0),
    (networks.relu6, {}, 1.0),
    (networks.odd_depthwise, {}, 1.0),
    (networks.dilated_depthwise, {}, 1.0),
    (networks.Recurrent, {}, 1.0),
    (networks.Gated, {}, 1.0),
    (networks.dead_channel, {}, 1.0),
    (networks.HugeRanges, {}, 1.0),
    (networks.ConstantChannels, {}, 1.0),
    (networks.ConstantChannels, DIRECT, 1.0),
    (networks.transposed, {}, 0.75),
    (networks.OneDimension, {}, 1.0),
    (networks.ThreeDimensions, {}, 1.0),
    (networks.SkipSeesInPlace, {}, 1.0),
    (networks.wide_depthwise, {}, 1.0),
    (networks.Chunks, {}, 1.0),
    (networks.Constants, {}, 1.0),
    (networks.pooled_map, {}, 1.0),
    (networks.Viewed, {"lowering": "classic"}, 1.0),
    (networks.Stubs, {}, 0.31),
    (networks.bordered, {}, 1.0),
    (networks.SqueezeExcitation, {}, 1.0),
    (networks.SqueezeExcitation, {"lowering": "classic"}, 1.0),
    (networks.NormAfterConcat, {}, 1.0),
    (networks.ClippedConcat, {"lowering": "classic"}, 1.0),
    (networks.ClippedConcat, DIRECT, 1.0),
    (networks.Transformer, {}, 0.79),
    (networks.Resized, {}, 1.0),
    (networks.Padded, {"lowering": "classic"}, 1.0),
    (networks.Padded, DIRECT, 1.0),
    (networks.Shuffled, {}, 1.0),
    (networks.BasicBlocks, DIRECT, 1.0),
    (networks.InvertedResiduals, DIRECT, 1.0),
]


def name(value: object) -> str | None:
    """Of a test's parameter."""
    if isinstance(value, dict):
        return str(value.get("lowering", "auto"))
    return getattr(value, "__name__", None)


def counted(result, folder: Path) -> Coverage:
    """What the saved file computes, which must be what the plan says."""
    file = torchscript.load(result.file(folder / "counted.pt"))
    found = count(file, [result.images[:1]])
    check_against_plan(found, result.plan)
    return found


@pytest.mark.parametrize(("network", "settings", "int8"), CASES, ids=name)
def test_file_is_right_in_a_fresh_process(
    converted,
    tmp_path: Path,
    network: Callable[[], nn.Module],
    settings: dict[str, Any],
    int8: float,
) -> None:
    """Trap 1 among others: no file holds an operator that needs an engine to be set."""
    result = converted(network, **settings)
    file = result.file(tmp_path / "model.int8.pt")
    verification = verify(file, result.model, result.inputs(5), result.original)
    assert verification.largest_difference < 1e-4
    # 8 bits give 30 to 60 dB on such networks, 7 bits 6 dB less.
    assert result.sqnr_db() > (30 if VNNI else 24)
    if not any(o.precision == "dynamic" for o in result.plan.operators):
        assert abs(result.sqnr_db() - result.sqnr_db("simulated")) < 1.5
    coverage = counted(result, tmp_path)
    assert coverage.int8_macs_share >= int8
    assert not any("conv2d_add" in kind for kind in coverage.operators)


@pytest.mark.parametrize(
    ("network", "operator", "reason"),
    [
        (networks.Prelu, "act1", "no int8 prelu"),
        (networks.transposed, "3", "transposed convolutions take no per-channel weights"),
        (networks.SqueezeExcitation, "sigmoid", "no int8 sigmoid"),
        (networks.SqueezeExcitation, "mul", "its inputs differ in shape"),
        (networks.SqueezeExcitation, "adaptive_avg_pool2d", "more than 8 bits"),
        (networks.Transformer, "norm", "no int8 layer_norm"),
        (networks.Transformer, "blocks.1.attention.attention", "no int8 attention"),
        (networks.Residual, "head", None),
        (networks.NormAfterConcat, "norm", None),
        (networks.Resized, "up", None),
        (networks.Resized, "interpolate", None),
        (networks.Padded, "pad", None),
        (networks.Padded, "avg_pool2d", None),
    ],
)
def test_every_operator_has_a_line_with_its_reason(
    converted, network: Callable[[], nn.Module], operator: str, reason: str | None
) -> None:
    line = converted(network).operator(operator)
    if reason is None:
        assert (line.precision, line.reason) == ("int8", None)
    else:
        assert line.precision == "float32"
        assert reason in (line.reason or "")


# Runs a file under each engine in turn; the weights are packed again each time.
UNDER_ENGINES = """
import sys, torch
x, found = torch.load(sys.argv[2]), []
for engine in sys.argv[4:]:
    torch.backends.quantized.engine = engine
    with torch.inference_mode():
        found.append(torch.jit.load(sys.argv[1])(x))
torch.save(found, sys.argv[3])
"""


@pytest.mark.parametrize(
    ("lowering", "engines"),
    [("classic", ("x86", "fbgemm")), ("direct", ("x86", "fbgemm", "onednn", "qnnpack"))],
)
def test_file_computes_the_same_under_every_engine(
    converted, tmp_path: Path, lowering: str, engines: tuple[str, ...]
) -> None:
    """Trap 1: and converting leaves the engine as it was (trap 12: none takes qnnpack's place).

    With 7 bits, so that no engine overflows on any CPU."""
    before = torch.backends.quantized.engine
    result = converted(networks.BasicBlocks, lowering=lowering, isa="portable")
    assert torch.backends.quantized.engine == before
    inputs, outputs = tmp_path / "inputs.pt", tmp_path / "outputs.pt"
    torch.save(result.images[:3], inputs)
    file = result.file(tmp_path / "model.pt")
    code = ["-W", "ignore", "-c", UNDER_ENGINES, str(file), str(inputs), str(outputs)]
    subprocess.run([sys.executable, "-I", *code, *engines], check=True)
    with torch.inference_mode():
        want = result.model(result.images[:3])
    for have in torch.load(outputs):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["PReLU", "prelu"])
def test_prelu_can_be_excluded_by_type(converted, kind: str) -> None:
    """Trap 4: it raised in torch. What is before it and after it stays in int8."""
    result = converted(networks.Prelu, layers=[{"type": kind, "precision": "float32"}])
    lines = {o.name: (o.precision, o.reason) for o in result.plan.operators}
    why = f"the qconfig asks for it (type: {kind})"
    assert lines["act1"] == lines["act2"] == ("float32", why)
    assert lines["conv1"] == lines["conv2"] == ("int8", None)
    assert result.sqnr_db() > 30


def test_subclasses_of_layers_are_folded(converted) -> None:
    """Trap 6: no batch norm is left, and no layer is without its ReLU."""
    kinds = [(o.kind, o.with_activation) for o in converted(networks.subclassed).plan.operators]
    assert kinds[:4] == [("pad", None), ("conv2d", "2"), ("pad", None), ("conv2d", "5")]
    assert not {"batch_norm", "relu"} & {kind for kind, _ in kinds}


def test_each_call_of_a_shared_relu_goes_with_its_own_layer(converted) -> None:
    """Trap 7."""
    result = converted(networks.Residual)
    assert result.operator("conv1").with_activation == "relu"
    (summed,) = [o for o in result.plan.operators if o.with_activation == "relu:2"]
    assert "add" in (summed.name, summed.with_sum)


def test_no_calibration_image_is_an_error(tmp_path: Path) -> None:
    """Trap 8."""
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(NoImagesError, match="there is no image in this folder"):
        read_folder(tmp_path, "none", None)


@pytest.mark.parametrize("decide", ["int8", "table"])
@pytest.mark.parametrize(
    "network",
    [networks.odd_depthwise, networks.unpadded_depthwise, networks.dilated_depthwise],
)
def test_depthwise_layer_on_the_cliff_is_never_classic(
    converted, network: Callable[[], nn.Module], decide: str
) -> None:
    """Trap 9: fbgemm takes 10 to 170 times as long as float for it."""
    assert converted(network, decide=decide).operator("3").lowering != "classic"
    line = converted(network, decide="table", lowering="classic").operator("3")
    assert (line.precision, line.lowering) == ("float32", None)
    assert "float is faster" in (line.reason or "")


def test_depthwise_layer_on_the_cliff_is_int8_in_the_file(converted, tmp_path: Path) -> None:
    """Trap 9: by oneDNN's operator."""
    result = converted(networks.odd_depthwise)
    line = result.operator("3")
    assert (line.precision, line.lowering) == ("int8", "direct")
    kinds = [(c.kernel, c.macs) for c in counted(result, tmp_path).counted]
    assert ("onednn::qconv2d_pointwise", 24 * 24 * 116 * 9) in kinds


@pytest.mark.parametrize(
    ("network", "operator", "macs"),
    [
        (networks.Recurrent, "lstm", 12 * 4 * 8 * (192 + 8)),
        (networks.Gated, "gru", 24 * 3 * 8 * 2 * ((72 + 8) + (16 + 8))),
    ],
)
@pytest.mark.parametrize("lowering", ["auto", "direct"])
def test_recurrent_layer_is_dynamic_and_counted(
    converted,
    tmp_path: Path,
    network: Callable[[], nn.Module],
    operator: str,
    macs: int,
    lowering: str,
) -> None:
    """Trap 11: its weights are int8, and the count of the file says how much that is."""
    result = converted(network, lowering=lowering)
    line = result.operator(operator)
    assert (line.precision, line.macs) == ("dynamic", macs)
    assert line.kernel == f"aten::quantized_{operator}"
    coverage = counted(result, tmp_path)
    assert coverage.dynamic_macs == macs
    assert coverage.operators[f"aten::quantized_{operator}"] == 1
    assert not {"aten::lstm", "aten::gru"} & set(coverage.operators)


@pytest.mark.parametrize("kind", ["conv_transpose2d", "ConvTranspose2d"])
def test_transposed_convolution_in_int8_is_refused(converted, kind: str) -> None:
    """Trap 16: torch would raise as it packs the weight."""
    with pytest.raises(Exception, match="3 cannot be int8: torch's int8 transposed") as error:
        converted(networks.transposed, layers=[{"type": kind, "precision": "int8"}])
    assert type(error.value).__name__ == "QConfigError"


@pytest.mark.parametrize("lowering", ["classic", "direct"])
def test_border_is_as_right_as_the_inside(converted, lowering: str) -> None:
    """Trap 18: the normalization is not folded into the first convolution, whose zero padding is
    that of normalized pixels."""
    result = converted(networks.bordered, lowering=lowering)
    with torch.inference_mode():
        error = (result.model(result.images) - result.original(result.images)).abs()
    inside = error[:, :, 1:-1, 1:-1].max()
    border = torch.stack([error[:, :, i].max() for i in (0, -1)]).max()
    assert border <= 1.5 * inside
    assert result.sqnr_db() > 30


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("zero_point", [1, 2, 255])
def test_file_rounds_before_it_adds_the_zero_point(plain: bool, zero_point: int) -> None:
    """Trap 19: on ties the two orders differ, for odd zero points."""
    held = TensorParams(
        observer="minmax", range_min=-32, range_max=32, scale=0.25, zero_point=zero_point,
        quant_min=0, quant_max=255,
    )  # fmt: skip
    ties = torch.arange(-257, 258, 2) * 0.125
    graph = torch.fx.Graph()
    graph.output(DirectBackend(graph, {}, plain).bring(graph.placeholder("x"), "float", held, 1))
    found = torch.fx.GraphModule({}, graph)(ties)
    assert found.dtype == torch.uint8
    assert torch.equal(found.int(), quantize(ties, held.params).int())
    by_torch = torch.quantize_per_tensor(ties, 0.25, zero_point, torch.quint8)
    assert torch.equal(found, by_torch.int_repr())


def test_images_in_one_batch_do_not_change_each_other(converted) -> None:
    """Trap 20: with static ranges an image's integers are its own, whatever is beside it."""
    result = converted(networks.InvertedResiduals)
    with torch.inference_mode():
        together = result.model(result.images)
        alone = torch.cat([result.model(x) for x in result.images.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_relu6_is_saturation(converted) -> None:
    """No operator computes it: the range ends at 6, where the integers do."""
    result = converted(networks.relu6, lowering="classic")
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
    assert len(outputs.unique()) > 0.9 * outputs.numel()


class LastPlace(nn.Module):
    """1x1 convolutions of one place, if the image has 24 x 24 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 24, stride=24), nn.ReLU(), nn.Conv2d(16, 12, 1), nn.Conv2d(12, 6, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("lowering", ["auto", "classic"])
def test_convolution_of_one_place_is_a_linear_layer(converted, tmp_path: Path, lowering) -> None:
    """Which is right for larger images, too."""
    result = converted(LastPlace, lowering=lowering)
    kernels = [result.operator(f"layers.{i}").kernel for i in (2, 3)]
    assert kernels[0] == "quantized::linear"
    assert kernels[1].startswith("quantized::linear_with_input_q_dq")
    counted(result, tmp_path)
    file = torchscript.load(tmp_path / "counted.pt")
    images = result.images[:3]
    side_by_side = torch.cat(list(images), 2)[None]
    assert torch.equal(file(side_by_side), torch.cat(list(file(images)), 2)[None])
