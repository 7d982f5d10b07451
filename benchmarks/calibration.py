"""What calibration costs beside a forward pass of the fused float model over the same images.

    python benchmarks/calibration.py docs/performance.md

Both read the same pictures from memory, through the same threads, in turn; calibration chooses the
ranges, too, with each observer. Its memory is the peak of a process of its own, with 100 images and
with 10,000, beside that of a forward pass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from generated import replace
from torch import Tensor
from zoo_images import normalized, pixels_of

from qconvert import torchscript
from qconvert.images.folder import ImageSet
from qconvert.images.stream import map_images
from qconvert.measurement.environment import here
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.quantization.calibration import Calibration, calibrate
from qconvert.registry import ACTIVATION_OBSERVERS

_MODELS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large")
_OF_MEMORY = "mobilenet_v2"
_IMAGES, _FEW, _MANY = 32, 100, 10_000
_ROUNDS = 7
_PICTURES = [normalized(pixels_of(i, 224))[None] for i in range(32)]


def main() -> None:
    """Writes the page, or answers with the peak memory of one process."""
    if sys.argv[1] == "--peak":
        print(peak_bytes(sys.argv[2], int(sys.argv[3])))
        return
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d')} by `make bench-calibration`: "
        f"{here().cpu}, {os.cpu_count()} cores, torch {torch.__version__}; load "
        f"{os.getloadavg()[0]:.1f}. Medians of {_ROUNDS} rounds in turn, in brackets the least and "
        "the largest.",
        "",
        f"| model | forward pass of {_IMAGES} images, s | {' | '.join(ACTIVATION_OBSERVERS)} |",
        f"| --- | --- | {' | '.join('---' for _ in ACTIVATION_OBSERVERS)} |",
        *(row(name) for name in _MODELS),
        "",
        *memory(),
    ]
    replace(Path(sys.argv[1]), "calibration", ["", *lines, ""])


def fused(name: str) -> FusedModel:
    """An architecture with random weights."""
    model = getattr(torchvision.models, name)(weights=None).eval().requires_grad_(False)
    return fuse(capture(model, [_PICTURES[0]]))


def named(count: int) -> ImageSet:
    """So many images, which are in memory."""
    return ImageSet(Path(), tuple(Path(f"{i:05}") for i in range(count)), None, None, "")


def picture(path: Path) -> tuple[Tensor]:
    """A reader that decodes nothing."""
    return (_PICTURES[int(path.name) % len(_PICTURES)],)


def forward(model: FusedModel, images: ImageSet) -> None:
    """Runs the float model on all images."""

    def run(inputs: tuple[Tensor, ...]) -> None:
        model.graph(*inputs)

    deque(map_images(run, images, picture), maxlen=0)


def calibrated(model: FusedModel, images: ImageSet) -> Calibration:
    """The distributions of all values."""
    return calibrate(model, images, picture, batch_size=8, averaging=0.01)


def ranges(calibration: Calibration, observer: str) -> None:
    """Of all values."""
    observe = ACTIVATION_OBSERVERS[observer].load()
    for seen in calibration.tensors.values():
        observe(seen, percentile=0.9999, levels=255)


def row(name: str) -> str:
    """A model's ratios."""
    model, images = fused(name), named(_IMAGES)
    forward(model, images)
    calibration = calibrated(model, images)
    baseline: list[float] = []
    ratios: dict[str, list[float]] = {observer: [] for observer in ACTIVATION_OBSERVERS}
    for _ in range(_ROUNDS):
        baseline.append(seconds(lambda: forward(model, images)))
        once = seconds(lambda: calibrated(model, images))
        for observer, found in ratios.items():
            chosen = seconds(lambda observer=observer: ranges(calibration, observer))
            found.append((once + chosen) / baseline[-1])
    cells = [f"{np.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios.values()]
    return f"| {name} | {np.median(baseline):.2f} | {' | '.join(cells)} |"


def seconds(work: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory() -> list[str]:
    """A sentence for each number of images."""
    megabytes = {
        (kind, count): int(
            subprocess.run(
                [sys.executable, __file__, "--peak", kind, str(count)],
                stdout=subprocess.PIPE, text=True, check=True,
            ).stdout
        ) / 1e6
        for kind, count in (("forward", _FEW), ("calibrate", _FEW), ("calibrate", _MANY))
    }  # fmt: skip
    least = megabytes["forward", _FEW]
    return [
        f"Peak memory of a process, {_OF_MEMORY}: {least:.0f} MB for a forward pass over {_FEW} "
        "images; "
        + ", ".join(
            f"{found - least:+.0f} MB for calibration with {count:,}"
            for (kind, count), found in megabytes.items()
            if kind == "calibrate"
        )
        + ".",
    ]


def peak_bytes(kind: str, count: int) -> int:
    """What a process had at most while it did this, the float model included."""
    work = {"forward": forward, "calibrate": calibrated}[kind]
    model = fused(_OF_MEMORY)
    Path("/proc/self/clear_refs").write_text("5")  # forgets what it took to make the model
    work(model, named(count))
    (peak,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return 1024 * int(peak.split()[1])


if __name__ == "__main__":
    with torchscript.quiet(), torch.inference_mode():
        main()
