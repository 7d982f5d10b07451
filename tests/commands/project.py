"""A user's project in a folder, and the command as she runs it."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import warm
import yaml
from isa_here import ISA

from qconvert.quantization.recovery.trial import METHODS

# The command, as a process runs it.
QCONVERT = (sys.executable, "-m", "qconvert")
# Without the coverage of the test run: a signal can meet its measurement in the middle, which then
# waits for itself, and a process takes a third longer.
UNMEASURED = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}

NO_RECOVERY = dict.fromkeys(METHODS, "off")

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


def figures(accuracy: Mapping[str, Any], name: str = "top1") -> tuple[float, float]:
    """Float's and the measured model's value of a metric, in the JSON of a command."""
    (found,) = (metric for metric in accuracy["metrics"] if metric["name"] == name)
    return found["reference"]["value"], found["measured"]["value"]


class Forks:
    """Commands in processes that are forked from one with torch imported. They compute with one
    thread: others would not be there after the fork, and be waited for."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, warm.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**UNMEASURED, "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Result:
        """`qconvert ARGUMENTS` in a folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as streams:
            out, err = Path(streams, "out"), Path(streams, "err")
            request = (arguments, str(folder), dict(environment), str(out), str(err))
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            return Result(code, out.read_text(), err.read_text())

    def end(self) -> None:
        """Ends them with their input."""
        self._server.communicate()


@cache
def forks() -> Forks:
    """Those of this process."""
    started = Forks()
    atexit.register(started.end)
    return started


@dataclass(frozen=True)
class Project:
    """A user's folder. `cold`: its commands import torch themselves, each in a process that is new
    from the start."""

    folder: Path
    environment: Mapping[str, str] | None = None
    cold: bool = False

    @property
    def output(self) -> Path:
        """Where its qconfig sends everything."""
        return self.folder / "out"

    def qconfig(self, **changes: Any) -> Path:
        """Writes the qconfig with these sections replaced (None: left out). It is for VNNI:
        `portable`, the default, starts processes for other CPUs (`test_portability.py`). Nothing is
        recovered, which takes its time (`test_recovery.py`)."""
        config: dict[str, Any] = {
            "version": 1,
            "model": {"source": "network.py:network", "checkpoint": "weights.pt"},
            "data": {"calibration": "images", "preprocess": {"mean": [0.5], "std": [0.25]}},
            "benchmark": {"threads": [1], "seconds": 0.05},
            "quantization": {"isa": ISA},
            "recovery": NO_RECOVERY,
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
        that runs it, which is cold."""
        if not (within or self.cold):
            return forks().run(arguments, self.folder, self.environment or os.environ)
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
