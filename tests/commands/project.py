"""A user's project in a folder, and the command as she runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# The command, as a process runs it.
QCONVERT = (sys.executable, "-m", "qconvert")
# Without the coverage of the test run: a signal can meet its measurement in the middle, which then
# waits for itself, and a process takes a third longer.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}

NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))

def network(classes=3):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), Block(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, classes),
    )
"""


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A user's folder."""

    folder: Path
    environment: Mapping[str, str] | None = None

    @property
    def output(self) -> Path:
        """Where its qconfig sends everything."""
        return self.folder / "out"

    def qconfig(self, **changes: Any) -> Path:
        """Writes the qconfig with these sections replaced (None: left out)."""
        config: dict[str, Any] = {
            "version": 1,
            "model": {"source": "network.py:network", "checkpoint": "weights.pt"},
            "data": {"calibration": "images", "preprocess": {"mean": [0.5], "std": [0.25]}},
            "benchmark": {"threads": [1], "seconds": 0.2},
            "output": "out",
            **changes,
        }
        path = self.folder / "my.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
        return path

    def run(self, command: str, *options: str) -> Result:
        """`qconvert COMMAND my.yaml OPTIONS` in a fresh process, in the project's folder."""
        return self.call(command, "my.yaml", *options)

    def call(self, *arguments: str, within: Sequence[str] = ()) -> Result:
        """`qconvert ARGUMENTS` in a fresh process, in the project's folder; `within` is a command
        that runs it."""
        done = subprocess.run(
            [*within, *QCONVERT, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def record(self, name: str) -> dict[str, Any]:
        """A JSON file of the output folder."""
        return json.loads((self.output / name).read_text())

    def state(self) -> dict[str, bytes]:
        """The content of every file of the output folder."""
        return {path.name: path.read_bytes() for path in sorted(self.output.iterdir())}
