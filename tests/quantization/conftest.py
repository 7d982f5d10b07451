"""Converts a small network as the `convert` step does, without files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from isa_here import ISA
from torch import Tensor, nn
from torch.fx import GraphModule

from qconvert import torchscript
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Inputs, Preprocessed, Reader
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.qconfig import Preprocess, QuantizationSection
from qconvert.quantization.calibration import Calibration, calibrate
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8, Simulated
from qconvert.quantization.plan import Plan, PlannedOperator
from qconvert.quantization.planning import make_plan

READ = Preprocessed(Preprocess(mean=(0.5,), std=(0.25,)))


@dataclass(frozen=True)
class Converted:
    """A network in all its forms, and the images (N, 3, 24, 24) that it was calibrated on."""

    original: nn.Module
    fused: FusedModel
    calibration: Calibration
    plan: Plan
    model: GraphModule
    simulated: GraphModule
    images: Tensor

    def file(self, path: Path) -> Path:
        """The TorchScript file."""
        script = torchscript.freeze(self.fused.assembly.script(self.model))
        path.write_bytes(torchscript.to_bytes(script))
        return path

    def inputs(self, count: int) -> list[Inputs]:
        """The first images, as a model's inputs each."""
        return [(image,) for image in self.images[:count].split(1)]

    def sqnr_db(self, forms: str = "model") -> float:
        """Of a form's outputs against the original's, in dB."""
        with torch.inference_mode():
            run = self.fused.assembly.eager(getattr(self, forms))
            want, have = self.original(self.images), run(self.images)
        return float(10 * torch.log10(want.square().sum() / (want - have).square().sum()))

    def operator(self, name: str) -> PlannedOperator:
        """The plan's line of this name."""
        return next(o for o in self.plan.operators if o.name == name)


@pytest.fixture
def image_set(tmp_path: Path, save_image: Callable[..., Path]) -> ImageSet:
    """Twelve images of noise, 24 x 24."""
    for i in range(12):
        save_image(tmp_path / "images" / f"{i:02d}.png", (24, 24), seed=i)
    return read_folder(tmp_path / "images", "none", None)


@pytest.fixture
def converted(image_set: ImageSet, trained: Callable[[nn.Module], nn.Module]):
    """Converts a network that takes (N, 3, 24, 24), with these quantization settings. `example` and
    `others` are other images than those of the calibration, to look at its code with, `read` makes
    these of files."""

    def convert(
        network: Callable[[], nn.Module],
        example: Tensor | None = None,
        others: Sequence[Tensor] = (),
        read: Reader = READ,
        **settings: object,
    ) -> Converted:
        torch.manual_seed(0)
        original = trained(network())
        images = torch.cat([read(path)[0] for path in image_set.files])
        shown = images[:1] if example is None else example
        fused = fuse(capture(original, [shown], None, lambda: [[x] for x in others]))
        # Such small networks are faster in float; what is tested is int8, with all its bits.
        usual = {"decide": "int8", "isa": ISA}
        section = QuantizationSection.model_validate({**usual, **settings})
        split = split_pairs(fused, asked_for(fused, section))
        calibration = calibrate(fused, image_set, read, batch_size=4, averaging=0.01, split=split)
        plan = make_plan(fused, calibration, section)
        return Converted(
            original,
            fused,
            calibration,
            plan,
            lower(fused, plan, Int8(plan)),
            lower(fused, plan, Simulated()),
            images,
        )

    return convert
