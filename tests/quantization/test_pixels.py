"""Networks that take pixels: the int8 model reads them as they are, and is what its plan says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import networks
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.images.preprocess import Preprocessed
from qconvert.models.execution import Executed, watch
from qconvert.models.model_file import open_model
from qconvert.models.pixels import PixelInput
from qconvert.qconfig import Preprocess, QuantizationSection
from qconvert.quantization import costs
from qconvert.quantization.forecast import forecast
from qconvert.quantization.lowering.coverage import check_against_plan, count
from qconvert.quantization.lowering.file_inspection import inspect_file

READ = Preprocessed(Preprocess(), as_pixels=True)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(count: int, height: int = 24, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).byte()


def behind(network: Callable[[], nn.Module], mean: tuple[float, ...] = MEAN) -> nn.Module:
    """The network behind its normalization."""
    return PixelInput(network(), mean, STD)


def stem() -> nn.Module:
    """One padded layer, whose borders nothing hides."""
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())


class Skips(nn.Module):
    """More than convolutions reads its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x) + x)


@pytest.mark.parametrize("lowering", ["auto", "classic", "direct"])
@pytest.mark.parametrize("network", [stem, networks.InvertedResiduals, networks.BasicBlocks])
def test_first_layer_reads_the_pixels_themselves(converted, tmp_path, network, lowering) -> None:
    result = converted(partial(behind, network), read=READ, lowering=lowering)
    script = torchscript.load(result.file(tmp_path / "model.pt"))
    check_against_plan(count(script, [result.images[:1]]), result.plan)
    before: list[Executed] = []
    watch(script, [result.images[:1]], before.append)
    kinds = [executed.kind for executed in before]
    first = next(i for i, kind in enumerate(kinds) if "conv2d" in kind)
    assert "aten::quantize_per_tensor" not in kinds[:first]
    assert not any(executed.output.is_floating_point() for executed in before[:first])
    assert result.sqnr_db("simulated") > 20
    assert abs(result.sqnr_db() - result.sqnr_db("simulated")) < 3


@pytest.mark.parametrize("network", [stem, Skips])
def test_inspection_foretells_boundaries_and_finds_them_in_the_file(
    converted, tmp_path, network
) -> None:
    result = converted(partial(behind, network), read=READ)
    section = QuantizationSection(decide="int8")
    found = forecast(result.fused, section, costs.table(section.isa))
    path = result.file(tmp_path / "model.pt")
    assert [o.precision for o in found.operators] == [o.precision for o in result.plan.operators]
    counted = count(torchscript.load(path), [result.images[:1]])
    # Pixels that become float by themselves are one more in the file.
    assert found.boundaries == counted.boundaries - (network is Skips)
    manifest = {"inputs": [{"shape": [None, 3, 24, 24], "dtype": "uint8"}]}
    in_file = inspect_file(replace(open_model(path), manifest=manifest)).operators
    assert sum(in_file["boundary"].values()) == counted.boundaries
    assert ("aten::cat" in in_file["int8"]) == (network is stem)
    assert "aten::cat" not in in_file.get("float32", {})


@pytest.mark.parametrize("lowering", ["classic", "direct"])
@pytest.mark.parametrize("mean", [MEAN, (0.5,), (0.0,)], ids=str)
def test_borders_are_as_near_to_float_as_the_inside(converted, lowering, mean) -> None:
    result = converted(partial(behind, stem, mean), read=READ, lowering=lowering)
    with torch.inference_mode():
        error = (result.original(result.images) - result.model(result.images)).abs()
        inside = error[:, :, 1:-1, 1:-1].max()
        error[:, :, 1:-1, 1:-1] = 0
    assert error.max() < 1.5 * inside


def test_file_works_at_other_sizes_in_any_memory_and_leaves_its_input_alone(
    converted, tmp_path
) -> None:
    result = converted(partial(behind, networks.InvertedResiduals), read=READ)
    script = torchscript.load(result.file(tmp_path / "model.pt"))
    for pixels in (noise(1), noise(3), noise(1, 40, 32), noise(2, 24, 56)):
        with torch.inference_mode():
            want = result.model(pixels)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = pixels.clone(memory_format=layout)
            with torch.inference_mode():
                torch.testing.assert_close(script(given), want, rtol=1e-4, atol=1e-4)
            assert torch.equal(given, pixels)


def test_plan_says_why_an_image_is_normalized_in_float(converted) -> None:
    result = converted(partial(behind, Skips), read=READ)
    line = result.operator("normalization")
    assert (line.precision, line.reason) == (
        "float32",
        "add reads normalized pixels, and is no convolution",
    )
    assert result.sqnr_db() > 30


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_pixels_keep_their_bits_on_cpus_without_vnni(converted, isa) -> None:
    """Where their products overflow, the weights give way."""
    result = converted(partial(behind, stem), read=READ, isa=isa)
    line = result.operator("pixels")
    assert line.precision == "int8"
    assert result.plan.tensors[line.value].quant_max == 255
    assert result.sqnr_db() > 30


def test_first_layer_may_be_float_by_a_rule_that_names_it_as_the_model_does(converted) -> None:
    rule = {"match": "0", "precision": "float32"}
    result = converted(partial(behind, stem), read=READ, layers=[rule])
    assert result.operator("0").precision == "float32"
    assert result.sqnr_db() > 50
