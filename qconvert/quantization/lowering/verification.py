"""Proves a saved file: a fresh process loads and runs it, and its answers are the model's own."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qconvert.errors import ConversionError
from qconvert.quantization.lowering import reload
from qconvert.records import Record

# Beside the kernels' integers there is float arithmetic at the ends of a network, whose sums
# differ in the last places with the number of threads.
_RELATIVE_TOLERANCE = 1e-4
_SECONDS = 300
# Outputs of a trained model differ between images by more than this share.
_TRAINED = 0.01


class Verification(Record):
    """What was tried in the fresh process; differences are relative to the largest output."""

    batch_sizes: tuple[int, ...]
    largest_difference: float
    outputs_finite: bool
    outputs_vary: bool


def verify(
    file: Path,
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    reference: Callable[[Tensor], Tensor],
) -> Verification:
    """Loads `file` in a fresh process, runs it at batch sizes 1 and 3, compares with `model`.

    `images` is (N, channels, height, width) with N at least 3 (images may repeat). `reference` is
    the float model, whose outputs tell whether equal outputs are the fault of int8.

    Raises ConversionError when the file does not load or run, differs from the model in memory,
    or computes what is not finite or the same for different images.
    """
    batches = [*images.split(1), images[:3]]
    with torch.inference_mode():
        expected = [model(batch) for batch in batches]
    found = _run(file, batches)
    difference = 0.0
    for want, have in zip(expected, found, strict=True):
        if want.shape != have.shape:
            raise _failure(f"gives shape {list(have.shape)}, in memory it is {list(want.shape)}")
        if not bool(torch.isfinite(have).all()):
            raise _failure("computes NaN or infinity")
        largest = max(float(want.abs().max()), 1e-12)
        relative = float((want - have).abs().max()) / largest
        difference = math.inf if math.isnan(relative) else max(difference, relative)
    if difference > _RELATIVE_TOLERANCE:
        raise _failure(f"differs from the model in memory by {difference:.2g} of its output")
    singles = torch.cat(found[:-1])
    different_images = len(torch.unique(images, dim=0)) > 1
    vary = bool((singles != singles[:1]).any())
    if different_images and not vary:
        raise _constant(images, reference)
    return Verification(
        batch_sizes=(1, 3), largest_difference=difference, outputs_finite=True, outputs_vary=vary
    )


def _run(file: Path, batches: list[Tensor]) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        torch.save(batches, inputs)
        # -I: without the working directory and the user's Python settings.
        command = [sys.executable, "-I", str(reload.__file__), str(file), str(inputs), str(outputs)]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            raise _failure(f"does not run in a fresh process: {lines[-1] if lines else 'it died'}")
        found: list[Tensor] = torch.load(outputs, weights_only=True)
        return found


def _constant(images: Tensor, reference: Callable[[Tensor], Tensor]) -> ConversionError:
    with torch.inference_mode():
        outputs = reference(images)
    spread = float((outputs - outputs[:1]).abs().max() / outputs.abs().max().clamp(min=1e-12))
    if spread < _TRAINED:
        return ConversionError(
            f"the int8 file gives the same output for all images, and the float model nearly so "
            f"(they differ by {spread:.1g} of its output)",
            where="verification",
            fix="give the trained weights with `model.checkpoint`, and images that differ",
        )
    return _failure("gives the same output for all images")


def _failure(fact: str) -> ConversionError:
    return ConversionError(
        f"the int8 file {fact}; it was not kept",
        where="verification",
        fix="report this with the model; `precision: float32` for the layers at fault works around",
    )
