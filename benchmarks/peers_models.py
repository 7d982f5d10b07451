"""What `make bench-peers` converts: ten architectures with random weights, and the two samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from zoo_images import MEAN, STD, write_pictures

from qconvert.quantization.recovery.trial import METHODS

ROOT = Path(__file__).parent.parent
ARCHITECTURES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "regnet_x_800mf",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
)
SAMPLES = {"fashion": "configs/fashion.yaml", "textline": "configs/textline.yaml"}
NAMES = (*ARCHITECTURES, *SAMPLES)
_SIDE = 224
CALIBRATION, EVALUATION = range(100), range(100, 116)


@dataclass(frozen=True)
class Subject:
    """A model to measure: its qconfig, and where what is made of it goes."""

    name: str
    qconfig: Path
    folder: Path

    @property
    def options(self) -> list[str]:
        """What the command line is told beside the qconfig."""
        return ["--set", f"output={self.folder / 'qconvert'}", "--set", "calibration.images=100"]

    @property
    def source(self) -> str:
        """The float model that the peers export."""
        own = self.folder / "qconvert/float.pt"
        return str(own) if self.name in SAMPLES else f"zoo:{self.name}"

    @property
    def transformer(self) -> bool:
        """Whether NNCF should be told that it is one."""
        return self.name.startswith("vit")


def subject(name: str, build: Path) -> Subject:
    """A model by name; its qconfig and pictures are written if they are ours to write."""
    folder = build / name
    folder.mkdir(parents=True, exist_ok=True)
    if name in SAMPLES:
        return Subject(name, ROOT / SAMPLES[name], folder)
    for part, indices in (("calibration", CALIBRATION), ("evaluation", EVALUATION)):
        write_pictures(build / "images" / part, _SIDE, indices)
    content: dict[str, Any] = {
        "version": 1,
        "model": {"source": "../../benchmarks/zoo_models.py:build", "kwargs": {"name": name}},
        "data": {
            "calibration": "images/calibration",
            "evaluation": "images/evaluation",
            "labels": "none",
            "preprocess": {"crop": _SIDE, "mean": list(MEAN), "std": list(STD)},
        },
        "recovery": dict.fromkeys(METHODS, "off"),
        "output": f"{name}/qconvert",
    }
    path = build / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return Subject(name, path, folder)
