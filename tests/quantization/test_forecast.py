"""What `inspect` foretells is what the plan says and the file does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import divided
import networks
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.qconfig import QuantizationSection
from qconvert.quantization import costs
from qconvert.quantization.advice import Block, resisting_blocks
from qconvert.quantization.forecast import Forecast, forecast
from qconvert.quantization.lowering.coverage import count
from qconvert.reports.inspection_pictures import forecast_picture
from qconvert.reports.inspection_tables import operators_table


def foretold(result, **settings: object) -> Forecast:
    section = QuantizationSection.model_validate({"decide": "int8", **settings})
    return forecast(result.fused, section, costs.table(section.isa))


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (networks.plain, {}),
        (networks.Residual, {}),
        (networks.Residual, {"lowering": "direct"}),
        (networks.Residual, {"layers": [{"match": "conv1", "precision": "float32"}]}),
        (networks.Residual, {"decide": "table"}),
        (networks.Recurrent, {"decide": "table"}),
        (networks.Prelu, {"isa": "portable"}),
        (networks.transposed, {}),
        (networks.Recurrent, {}),
        (networks.Chunks, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_foretells_the_plan_and_the_boundaries_of_the_file(
    converted, network: Callable[[], nn.Module], settings: dict, tmp_path: Path
) -> None:
    result = converted(network, **settings)
    found = foretold(result, **settings)
    planned = {o.name: o for o in result.plan.operators}
    assert {o.name for o in found.operators} == set(planned)
    for o in found.operators:
        line = planned[o.name]
        assert (o.precision, o.lowering, o.kernel, o.reason, o.macs) == (
            line.precision, line.lowering, line.kernel, line.reason, line.macs,
        )  # fmt: skip
    file = count(torchscript.load(result.file(tmp_path / "m.pt")), [result.images[:1]])
    if not result.plan.plain:  # which brings a value over in several operators
        assert found.boundaries == file.boundaries
    assert found.macs() == file.macs


def test_operators_read_only_what_stands_before_them(converted) -> None:
    found = foretold(converted(networks.Residual))
    seen = set(found.inputs)
    for o in found.operators:
        assert set(o.reads) <= seen
        seen.add(o.name)
    assert found.returned == ("head",)
    assert any({"batch_norm", "relu"} <= set(o.included_kinds) for o in found.operators)


class Attending(nn.Module):
    """A layer, then a product of two computed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(3, 16, 3, padding=1)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(x)
        return self.out(torch.matmul(y, y.transpose(2, 3)).mean((1, 2)))


def test_work_without_a_weight_is_counted_too(converted, tmp_path: Path) -> None:
    result = converted(Attending)
    found = foretold(result)
    product = next(o for o in found.operators if o.kind == "matmul")
    assert product.macs == 16 * 24 * 24 * 24
    file = count(torchscript.load(result.file(tmp_path / "m.pt")), [result.images[:1]])
    assert found.macs() == file.macs


# ---- Blocks that resist


class Squeezing(nn.Module):
    """A gate for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.down, self.up = nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 8, 1), nn.ReLU()
        self.fc, self.gate = nn.Conv2d(8, 64, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc(self.up(self.down(self.pool(x)))))


def with_blocks(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Between large layers, twice."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), make(), nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(), make(), nn.Conv2d(64, 64, 3, padding=1), *networks.head(64),
        )  # fmt: skip

    network.__name__ = getattr(make, "__name__", "network")
    return network


def resisting(result, forecast: Forecast, kept: tuple = ()) -> tuple[Block, ...]:
    modules = dict(result.original.named_modules())
    return resisting_blocks(
        forecast, lambda p: type(modules[p]).__name__ if p in modules else "", kept
    )


@pytest.mark.parametrize(
    ("make", "topic", "advice"),
    [
        (Squeezing, "squeeze-and-excitation", "EfficientNet-Lite"),
        (lambda: nn.GroupNorm(8, 64), "group norm", "BatchNorm2d"),
        (lambda: nn.LayerNorm(24), "layer norm", "BatchNorm2d"),
        (lambda: nn.PReLU(64), "activation without an int8 kernel", "ReLU6"),
        (nn.Mish, "activation without an int8 kernel", "ReLU6"),
        (nn.Softplus, "activation without an int8 kernel", "Hardswish"),
        (nn.Sigmoid, "gate", "residual sum"),
        (lambda: nn.ConvTranspose2d(64, 64, 2), "transposed convolution", "mode='nearest'"),
        (lambda: nn.ReflectionPad2d(1), "padding", "padding_mode='zeros'"),
        (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "interpolation", "nearest"),
        (lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), "padding", "zeros"),
        (lambda: nn.PixelUnshuffle(1), "no int8 kernel", "Convolutions"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_block_that_resists_is_named_with_what_would_help(
    converted, make: Callable[[], nn.Module], topic: str, advice: str
) -> None:
    result = converted(with_blocks(make))
    blocks = {b.topic: b for b in resisting(result, foretold(result))}
    block = blocks[topic]
    assert block.paths == ("2", "5")
    assert block.block == type(result.original[2]).__name__
    assert advice in block.advice
    assert 0 < block.time_share < 1
    assert "average of a whole map" in blocks  # of the head


def test_int8_model_has_no_blocks_that_can_be_helped(converted) -> None:
    result = converted(networks.plain)
    assert {b.topic for b in resisting(result, foretold(result))} <= {
        "average of a whole map", "follows its neighbours",
    }  # fmt: skip


def test_wish_of_the_qconfig_is_no_fault_of_the_model(converted) -> None:
    settings = {"layers": [{"match": "3", "precision": "float32"}]}
    result = converted(networks.plain, **settings)
    blocks = {b.topic: b for b in resisting(result, foretold(result, **settings))}
    assert blocks["asked for by the qconfig"].paths == ("3",)
    assert blocks["asked for by the qconfig"].macs_share > 0.2


def test_what_is_kept_as_written_comes_first_with_its_line(converted) -> None:
    result = converted(networks.plain)
    kept = (("3", "it branches on a tensor (net.py:12: if x.sum() > 0:)"),)
    first, *_ = resisting(result, foretold(result), kept)
    assert (first.topic, first.paths) == ("kept as written", ("3",))
    assert "net.py:12" in first.reasons[0]
    assert "torch.where" not in first.advice
    differs = (("3", "its code asks whether something in a tensor is so, which differs from image "
                "to image (net.py:12: if x.sum() > 0:)"),)  # fmt: skip
    assert "`model.fixed: [3]`" in resisting(result, foretold(result), differs)[0].advice


def test_what_is_called_by_kept_code_is_a_part_with_its_own_inputs(converted) -> None:
    found = foretold(converted(divided.GateInside))
    model, *inner = found.parts
    assert list(found.inputs) == list(model.inputs)
    assert found.returned == ("head",)
    assert {part.path for part in inner} <= {"routes.one", "routes.other"}
    assert all(not found.inputs.keys() & part.inputs.keys() for part in inner)
    (code,) = (code for code in found.kept_code if code.path == "routes")
    assert (code.calls, code.macs) == (1, 0)
    picture = forecast_picture(found, "m")
    read = {edge.target for edge in picture.edges}
    inputs = [i for i, row in enumerate(picture.rows) if i not in read]
    assert [picture.rows[i].columns[0] for i in inputs] == list(found.inputs)
    assert all(edge.source < edge.target for edge in picture.edges)


def test_work_of_code_that_is_kept_is_its_own(converted) -> None:
    found = foretold(converted(divided.Work))
    (code,) = found.kept_code
    assert (code.path, code.macs) == ("", 24 * 24 * 5 * 4)
    assert found.macs("float32") == code.macs
    assert found.returned == ()


def test_part_that_only_other_images_reach_is_said_to_be_so(converted) -> None:
    dark, bright = -torch.ones(1, 3, 24, 24), torch.ones(1, 3, 24, 24)
    found = foretold(converted(divided.Gate, example=dark, others=[bright]))
    (layers,) = [[o for o in found.operators if o.name.startswith("bright")]]
    assert layers
    assert {(o.calls, o.macs) for o in layers} == {(0, 0)}
    shown = {row[0]: row[3] for row in operators_table(found).rows}
    assert {shown[o.name] for o in layers} == {"not for the example"}
