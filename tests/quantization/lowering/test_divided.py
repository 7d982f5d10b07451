"""Divided networks in int8: the plan has a line for each operator of each part, and the file runs
what the plan says, whichever way an image goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import divided
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import ConversionError
from qconvert.quantization.lowering.coverage import Coverage, check_against_plan, count
from qconvert.quantization.lowering.verification import verify
from qconvert.quantization.plan import Plan


def noise(shift: float, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 24, 24, generator=generator) + shift


BOTH = [noise(0.5), noise(-0.5), noise(0.0)]


def counted(result: Any, folder: Path, example: Tensor | None = None) -> Coverage:
    file = torchscript.load(result.file(folder / "counted.pt"))
    return count(file, [result.images[:1] if example is None else example])


def precisions(result: Any) -> dict[str, str]:
    return {o.name: o.precision for o in result.plan.operators}


@pytest.mark.parametrize("lowering", ["auto", "direct"])
@pytest.mark.parametrize("network", divided.DIVIDED)
def test_file_of_a_divided_network_is_right(
    converted, tmp_path: Path, network: Callable[[], nn.Module], lowering: str
) -> None:
    result = converted(network, None, BOTH, lowering=lowering)
    assert "int8" in precisions(result).values()
    check_against_plan(counted(result, tmp_path), result.plan)
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    eager = result.fused.assembly.eager(result.model)
    with torch.inference_mode():
        for x in result.images.split(1):
            for have, want in zip(leaves(file(x)), leaves(eager(x)), strict=True):
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
    if network not in (divided.Pyramid, divided.Pairs):  # which choose, and return pairs
        assert result.sqnr_db() > 20


def leaves(result: Any) -> list[Tensor]:
    if isinstance(result, dict):
        return list(result.values())
    return [result] if isinstance(result, Tensor) else list(result)


def test_both_branches_are_int8(converted, tmp_path: Path) -> None:
    result = converted(divided.Gate, None, BOTH)
    found = precisions(result)
    for layer in ("bright.0.0", "bright.1", "dark.0", "dark.1", "head"):
        assert found[layer] == "int8", layer
    ways = [noise(0.5), noise(-0.5)]
    work = [counted(result, tmp_path, x).int8_macs for x in ways]
    head = 8 * 4
    assert work == [
        24 * 24 * 8 * 27 + 22 * 22 * 8 * 72 + head,
        24 * 24 * 8 * 3 + 22 * 22 * 8 * 72 + head,
    ]
    found_alone = verify(
        result.file(tmp_path / "model.pt"),
        torchscript.freeze(result.fused.assembly.script(result.model)),
        [(x,) for x in (*ways, *result.images[:3].split(1))],
        result.original,
    )
    assert found_alone.outputs_vary


def test_part_that_only_some_images_reach_has_its_ranges_from_them(converted) -> None:
    result = converted(divided.Gate, None, BOTH)
    dark = result.images[result.images.mean((1, 2, 3)) <= 0]
    assert 0 < len(dark) < len(result.images)
    value = result.operator("dark.0").inputs[0]
    seen = result.calibration.tensors[value]
    assert seen.minimum == pytest.approx(float(dark.min()))
    assert seen.maximum == pytest.approx(float(dark.max()))


def test_part_that_no_calibration_image_reaches_is_float(converted, tmp_path: Path) -> None:
    """It has no ranges; the example, which is none of these images, went there."""
    result = converted(VeryBright, noise(9.0), [noise(0.0)])
    lines = {o.name: (o.precision, o.reason) for o in result.plan.operators}
    reason = "no calibration image reaches it"
    assert lines["bright"] == ("float32", reason)
    assert lines["usual"] == ("int8", None)
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    x = noise(9.0, seed=3)
    torch.testing.assert_close(file(x), result.original(x), rtol=1e-4, atol=1e-3)


class VeryBright(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.usual, self.bright = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 5:
            return self.bright(x)
        return self.usual(x)


def test_calls_of_a_part_add_up(converted, tmp_path: Path) -> None:
    """Its work is that of one call, as often as it runs for the example."""
    result = converted(divided.Rounds, noise(0.5))
    line = result.operator("step")
    assert (line.calls, line.macs) == (2, 2 * 24 * 24 * 8 * 72)
    check_against_plan(counted(result, tmp_path, noise(0.5)), result.plan)


def test_work_in_kept_code_is_float_work_of_the_plan(converted, tmp_path: Path) -> None:
    result = converted(divided.Work)
    assert result.plan.kept_macs == 24 * 24 * 5 * 4
    found = counted(result, tmp_path)
    assert found.macs - found.int8_macs == result.plan.kept_macs
    assert result.plan.int8_macs == pytest.approx(found.int8_macs_share)
    (kept,) = result.plan.kept
    assert kept.name == "the model"


# ---- The file against the plan


def without(plan: Plan, *names: str) -> Plan:
    """The plan without lines for these operators."""
    return plan.model_copy(
        update={"operators": tuple(o for o in plan.operators if o.name not in names)}
    )


def test_kernel_that_the_plan_has_and_the_file_has_not_is_found(converted, tmp_path: Path) -> None:
    result = converted(divided.GateInside, None, BOTH, lowering="classic")
    found = counted(result, tmp_path)
    check_against_plan(found, result.plan)
    line = result.operator("last")
    wrong = result.plan.model_copy(
        update={"operators": (*result.plan.operators, line.model_copy(update={"name": "more"}))}
    )
    with pytest.raises(ConversionError, match=rf"the plan has \d x {line.kernel} .*more"):
        check_against_plan(found, wrong)


def test_kernel_that_the_file_has_and_the_plan_has_not_is_found(converted, tmp_path: Path) -> None:
    result = converted(divided.GateInside, None, BOTH, lowering="classic")
    found = counted(result, tmp_path)
    with pytest.raises(ConversionError, match=r"the file has \d x quantized::conv2d"):
        check_against_plan(found, without(result.plan, "last"))


def test_layer_that_stayed_float_in_a_part_is_found(converted, tmp_path: Path) -> None:
    """A file whose branch was put together from the float model."""
    result = converted(divided.Gate, None, BOTH)
    assembly = result.fused.assembly
    script = torchscript.freeze(assembly.script(result.fused.graph))
    found = count(torchscript.load(torchscript.to_bytes(script)), [result.images[:1]])
    with pytest.raises(ConversionError, match="this is a bug of qconvert"):
        check_against_plan(found, result.plan)


def test_manifest_that_tells_of_other_operators_is_found(converted, tmp_path: Path) -> None:
    result = converted(divided.GateInside, None, BOTH)
    found = counted(result, tmp_path)
    lines = result.plan.manifest_lines()
    check_against_plan(found, result.plan, lines)
    with pytest.raises(ConversionError, match="the manifest has other operators"):
        check_against_plan(found, result.plan, lines[1:])
