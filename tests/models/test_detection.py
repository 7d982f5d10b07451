"""Trap 10: a detection model cannot be traced; its backbone can."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from qconvert.errors import UntraceableError
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.models.outputs import tensors


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    build = detection.fasterrcnn_mobilenet_v3_large_320_fpn
    return build(weights=None, weights_backbone=None).eval().requires_grad_(False)


def image() -> Tensor:
    return torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_detection_model_is_refused(detector: nn.Module) -> None:
    with pytest.raises(UntraceableError, match="cannot trace the model") as error:
        capture(detector, [image()])
    assert "Proxy object cannot be iterated" in error.value.facts[0]


def test_its_backbone_is_captured_and_fused(detector: nn.Module, trained) -> None:
    backbone = trained(detector.backbone)
    fused = fuse(capture(backbone, [image()]))
    with torch.inference_mode():
        want, have = tensors(backbone(image())), tensors(fused.graph(image()))
    assert list(have) == list(want)
    for name, value in want.items():
        torch.testing.assert_close(have[name], value, rtol=1e-3, atol=1e-4 * value.abs().max())
