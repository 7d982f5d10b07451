"""Models that torch.fx traces in parts only, through the steps: one file, int8 in its parts, which
a process of its own runs with nothing but torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from qconvert import torchscript
from qconvert.errors import FusionError, UnsupportedError
from qconvert.qconfig_file import load
from qconvert.steps.convert import INT8, make_int8
from qconvert.steps.fuse import make_fused
from qconvert.steps.session import Session

GATE = """
import torch
from torch import nn

def block(inputs):
    return nn.Sequential(nn.Conv2d(inputs, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))

class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.bright, self.dark, self.head = block(8), block(8), nn.Linear(8, 4)

    def forward(self, x):
        y = self.stem(x)
        if x.mean() > 0:
            y = self.bright(y)
        else:
            y = self.dark(y) * 2
        return self.head(y.mean((2, 3)))

class Counts(Gate):
    '''Goes over the images of the batch as they were in the example.'''

    def forward(self, x):
        y = self.stem(x)
        if x.mean() > 1e9:
            y = -y
        return self.each(y)

class Each(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return torch.stack([self.head(x[i].mean((1, 2))) for i in range(x.shape[0])])

def batches():
    model = Counts()
    model.each = Each()
    return model
"""

DETECTOR = """
from typing import Dict, List

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

def backbone():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
    )

def torchvisions():
    body = backbone()
    body.out_channels = 32
    model = detection.FasterRCNN(
        body, min_size=32, max_size=48, box_detections_per_img=10,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(32 * 9, 64),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(64, 3),
        rpn_post_nms_top_n_test=20,
    )
    model.roi_heads.box_predictor.cls_score.weight.data *= 60  # sure of what it sees
    return model

class Own(nn.Module):
    '''Boxes around the places that are brightest in the feature map.'''

    def __init__(self):
        super().__init__()
        self.backbone, self.head = backbone(), nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> List[Dict[str, Tensor]]:
        found: List[Dict[str, Tensor]] = []
        for scores in (self.head(self.backbone(x)) * 40).softmax(1):
            best, labels = scores.max(0)
            places = torch.nonzero(best > 0.9)
            if len(places) == 0:
                places = torch.zeros(1, 2, dtype=torch.int64)
            y, x0 = places[:, 0], places[:, 1]
            boxes = torch.stack([x0, y, x0 + 3, y + 3], 1).float()
            found.append({"boxes": boxes, "labels": labels[y, x0], "scores": best[y, x0]})
        return found
"""


@dataclass
class Heard:
    """A voice that keeps what is said."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, title: str) -> Any:
        return nullcontext(lambda done, total: None)

    def busy(self, title: str) -> Any:
        return nullcontext()


@pytest.fixture
def session(tmp_path: Path) -> Callable[..., Session]:
    """A session on a source and eight images, half of them dark; `brightness` of each image."""

    def begin(code: str, name: str, *, model: Any = None, brightness: Any = (50, 200) * 4) -> Any:
        (tmp_path / "images").mkdir()
        (tmp_path / "network.py").write_text(code)
        generator = np.random.default_rng(0)
        for i, mean in enumerate(brightness):
            pixels = generator.normal(mean, 60, (32, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
        content = {
            "version": 1,
            "model": {"source": f"network.py:{name}", "answers": "none", **(model or {})},
            "data": {
                "calibration": "images",
                "labels": "none",
                "preprocess": {"mean": [0.5], "std": [0.25]},
            },
            "quantization": {"decide": "int8"},
            "output": "out",
        }
        path = tmp_path / "my.yaml"
        path.write_text(yaml.safe_dump(content))
        return Session(load(path), path, Heard())

    return begin


def precisions(session: Session) -> dict[str, str]:
    plan = json.loads((session.workspace.path("plan.json")).read_text())
    return {operator["name"]: operator["precision"] for operator in plan["operators"]}


RUN = """
import sys, torch
inputs, outputs = sys.argv[2:]
model = torch.jit.load(sys.argv[1])
with torch.inference_mode():
    torch.save([model(x) for x in torch.load(inputs)], outputs)
"""


def run_alone(session: Session, batches: list[Tensor], folder: Path) -> list[Any]:
    """By a process that has the file, and no qconvert."""
    inputs, outputs = folder / "inputs.pt", folder / "outputs.pt"
    torch.save(batches, inputs)
    file = session.workspace.path(INT8)
    command = [sys.executable, "-W", "ignore", "-I", "-c", RUN, *map(str, (file, inputs, outputs))]
    subprocess.run(command, check=True)
    return torch.load(outputs)


def test_both_branches_of_a_gate_are_int8_in_the_file(
    session: Callable[..., Session], tmp_path: Path
) -> None:
    at = session(GATE, "Gate")
    record = make_int8(at)
    found = precisions(at)
    for branch in ("bright", "dark"):
        assert (found[f"{branch}.0"], found[f"{branch}.3"]) == ("int8", "int8")
    assert [kept["name"] for kept in record["kept"]] == ["the model"]
    assert any("as written, in float: the model: " in line for line in at.voice.said)
    batches = [at.read(path)[0] for path in at.calibration_images.files]
    assert {bool(x.mean() > 0) for x in batches} == {True, False}
    model = at.float_model.module
    for x, have in zip(batches, run_alone(at, batches, tmp_path), strict=True):
        want = model(x)
        error = (have - want).square().mean() / want.square().mean()
        assert 0 < float(error) < 1e-3  # 30 dB: int8, and no other branch


def test_branch_that_no_image_takes_is_told_and_right(
    session: Callable[..., Session],
) -> None:
    at = session(GATE, "Gate", brightness=(180, 220) * 3)
    record = make_int8(at)
    assert not any(name.startswith("dark") for name in precisions(at))
    assert any("dark" in kept["name"] for kept in record["kept"])
    dark = torch.full((2, 3, 32, 40), -1.0)
    have = torchscript.load(at.workspace.path(INT8))(dark)
    want = at.float_model.module(dark)
    # The layers before it have the ranges of bright images.
    assert float((have - want).norm() / want.norm()) < 0.3


def test_part_that_decided_by_the_number_of_images_is_refused(
    session: Callable[..., Session],
) -> None:
    """Its loop over the batch has one turn in the example's trace."""
    at = session(GATE, "batches", brightness=(180, 220))
    with pytest.raises((FusionError, UnsupportedError)):
        make_fused(at)
    assert not at.workspace.path("fused.pt").exists()


@pytest.mark.parametrize(
    ("name", "needs", "kept"),
    [
        ("Own", (), ["the model"]),
        ("torchvisions", ("torchvision",), ["model", "model.roi_heads", "model.rpn", "the model"]),
    ],
)
def test_detection_model_is_int8_but_for_its_choices(
    session: Callable[..., Session], name: str, needs: tuple[str, ...], kept: list
) -> None:
    at = session(DETECTOR, name, model={"answers": "auto"})
    record = make_int8(at)
    assert sorted(kept["name"] for kept in record["kept"]) == kept
    coverage = record["coverage"]
    assert coverage["int8_macs"] / coverage["macs"] >= 0.7
    assert record["needs"] == list(needs)
    assert any("its outputs are detections" in line for line in at.voice.said)
    accuracy = record["accuracy"]
    assert accuracy["metrics"] == []
    assert 0.5 < accuracy["agreement"]["value"] <= 1
    file = torchscript.load(at.workspace.path(INT8))
    found = [file(at.example[0]), file(torch.cat([at.example[0]] * 2))]
    assert [len(result) for result in found] == [1, 2]
    assert all({"boxes", "labels", "scores"} <= set(image) for image in found[1])
    assert sum(len(image["boxes"]) for image in found[0]) > 0
