"""Trap 10: a detection model cannot be traced whole; what has its work can. What comes out as a
file is in tests/steps/test_divided.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection

from qconvert.models.assembly import Assembly, assembly_of
from qconvert.models.detectors import Detector, is_detector
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.models.outputs import tensors
from qconvert.models.source import build
from qconvert.qconfig import ModelSection


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    made = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96
    )
    return Detector(made).eval().requires_grad_(False)


def image() -> Tensor:
    return torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def assembly(detector: nn.Module) -> Assembly:
    return assembly_of(capture(detector, [image()]))


def test_detection_model_is_divided(assembly: Assembly) -> None:
    """Layers are in its parts, the choice of boxes is kept."""
    parts = {part.path for part in assembly.parts}
    assert parts == {
        "model.backbone", "model.rpn.head", "model.roi_heads.box_head",
        "model.roi_heads.box_predictor",
    }  # fmt: skip
    kept = {kept.path: kept.reason for kept in assembly.kept}
    assert set(kept) == {"", "model", "model.rpn", "model.roi_heads"}
    assert "(torchvision/models/detection/generalized_rcnn.py:" in kept[""]
    assert "it is given ImageList, which is not made of tensors" in kept["model.rpn"]
    assert assembly.kept_macs == 0


def test_detector_is_the_same_in_torchscript(detector: nn.Module, assembly: Assembly) -> None:
    """For a batch too, in which there is a list of detections for each image."""
    script = assembly.original()
    for x in (image(), torch.cat([image(), image().flip(3)])):
        with torch.inference_mode():
            want, have = detector(x), script(x)
        assert len(have) == len(want) == len(x)
        for one, other in zip(want, have, strict=True):
            assert {"boxes", "labels", "scores"} <= set(one) == set(other)
            assert len(one["boxes"]) > 0
            for key, value in one.items():
                torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-3)


def test_its_backbone_is_captured_and_fused(detector: nn.Module, trained) -> None:
    backbone = trained(detector.model.backbone)
    fused = fuse(capture(backbone, [image()]))
    with torch.inference_mode():
        want, have = tensors(backbone(image())), tensors(fused.graph(image()))
    assert list(have) == list(want)
    for name, value in want.items():
        torch.testing.assert_close(have[name], value, rtol=1e-3, atol=1e-4 * value.abs().max())


class Subclass(detection.RetinaNet):
    """A user's own, made from torchvision's."""


def test_torchvisions_detectors_are_known(detector: nn.Module) -> None:
    assert is_detector(detector.model)
    assert is_detector(Subclass.__new__(Subclass)) is False  # it has no `transform` yet
    assert not is_detector(detector)
    assert not is_detector(detector.model.backbone)
    assert not is_detector(models.get_model("shufflenet_v2_x0_5", weights=None))


def test_source_gives_a_detector_its_batch() -> None:
    section = ModelSection(
        source="torchvision:ssdlite320_mobilenet_v3_large", kwargs={"num_classes": 3}
    )
    built = build(section)
    assert isinstance(built.module, Detector)
    assert not built.module.training
    assert isinstance(built.module.model, detection.ssd.SSD)
