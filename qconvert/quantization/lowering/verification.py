"""Proves a saved file: a fresh process loads and runs it, and its answers are the model's own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.errors import VerificationError
from qconvert.images.preprocess import Inputs, shapes_of
from qconvert.measurement.difference import relative_difference
from qconvert.measurement.handover import write_tensors
from qconvert.models.outputs import tensors
from qconvert.quantization.lowering import reload
from qconvert.records import Record

# Beside the kernels' integers there is float arithmetic at the ends of a network, whose sums
# differ in the last places with the number of threads.
_RELATIVE_TOLERANCE = 1e-4
_SECONDS = 300
# Outputs of a trained model differ between images by more than this share.
_TRAINED = 0.01
_BATCH = 3
NOT_KEPT = "; it was not kept"

Model = Callable[..., Any]


class Verification(Record):
    """What was tried in the fresh process; differences are relative to the largest output."""

    batch_sizes: tuple[int, ...]
    largest_difference: float
    outputs_finite: bool
    outputs_vary: bool


def verify(
    file: Path,
    model: Model,
    images: Sequence[Inputs],
    reference: Model,
    others: Sequence[Inputs] = (),
    needs: Sequence[str] = (),
) -> Verification:
    """Loads `file` in a fresh process, runs it at batch sizes 1 and 3, compares with `model`.

    `images` are real inputs of one image each, `others` are such at other sizes. `reference` is
    the float model, whose outputs tell whether equal outputs are the fault of int8. `needs` are the
    packages that the process must import.

    Raises VerificationError when the file does not load or run, differs from the model in memory,
    or computes what is not finite or the same for different images.
    """
    batches = [*images, _batch(images)]
    found = _run(file, [*batches, *others], needs)
    difference = 0.0
    for inputs, have in zip([*batches, *others], found, strict=True):
        difference = max(difference, difference_from(model, inputs, have))
    singles = [_flat(result) for result in found[: len(images)]]
    vary = _differ(singles)
    if not vary and _differ([_joined(x) for x in images]):
        raise _constant(images, reference)
    return Verification(
        batch_sizes=(1, _BATCH),
        largest_difference=difference,
        outputs_finite=True,
        outputs_vary=vary,
    )


def _batch(images: Sequence[Inputs]) -> Inputs:
    """Three images of the first one's size, as one batch; images repeat where there are fewer."""
    alike = [x for x in images if [t.shape for t in x] == [t.shape for t in images[0]]]
    chosen = [alike[i % len(alike)] for i in range(_BATCH)]
    return tuple(torch.cat(parts) for parts in zip(*chosen, strict=True))


def difference_from(model: Model, inputs: Inputs, have: Any) -> float:
    """How far a file's result `have` is from the model's, as a share of the largest output.

    Raises VerificationError when it is too far, not finite, or of another shape.
    """
    if isinstance(have, str):
        shapes = shapes_of(inputs)
        raise _failure(f"does not run in a fresh process on inputs of shape {shapes}: {have}")
    with torch.inference_mode():
        want = tensors(model(*inputs))
    found = tensors(have)
    for name, expected in want.items():
        if name not in found or found[name].shape != expected.shape:
            shape = list(found[name].shape) if name in found else None
            raise _failure(f"gives shape {shape}, in memory it is {list(expected.shape)}")
        if not bool(torch.isfinite(found[name]).all()):
            raise _failure("computes NaN or infinity")
    difference = relative_difference(want, found)
    if difference > _RELATIVE_TOLERANCE:
        raise _failure(f"differs from the model in memory by {difference:.2g} of its output")
    return difference


def _run(file: Path, batches: Sequence[Inputs], needs: Sequence[str]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        write_tensors(inputs, [tuple(batch) for batch in batches])
        # -I: without the working directory and the user's Python settings.
        files = map(str, (reload.__file__, file, inputs, outputs))
        command = [sys.executable, "-I", *files, *needs]
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise _failure(f"does not finish in a fresh process within {_SECONDS} s") from None
        if result.returncode != 0:
            lines = [line for line in result.stderr.splitlines() if line.strip()]
            raise _failure(f"does not run in a fresh process: {lines[-1] if lines else 'it died'}")
        found: list[Any] = torch.load(outputs, weights_only=True)
        return found


def _flat(result: Any) -> Tensor:
    return _joined(tuple(tensors(result).values()))


def _joined(values: Sequence[Tensor]) -> Tensor:
    """All elements of some tensors in one row."""
    return torch.cat([value.double().flatten() for value in values])


def _differ(rows: Sequence[Tensor]) -> bool:
    return any(row.shape != rows[0].shape or not torch.equal(row, rows[0]) for row in rows)


def _constant(images: Sequence[Inputs], reference: Model) -> VerificationError:
    with torch.inference_mode():
        outputs = torch.stack([_flat(reference(*inputs)) for inputs in images])
    spread = float((outputs - outputs[:1]).abs().max() / outputs.abs().max().clamp(min=1e-12))
    if spread < _TRAINED:
        return VerificationError(
            f"the int8 file gives the same output for all images, and the float model nearly so "
            f"(they differ by {spread:.1g} of its output)",
            where="verification",
            fix="give the trained weights with `model.checkpoint`, and images that differ",
        )
    return _failure("gives the same output for all images")


def _failure(fact: str) -> VerificationError:
    return VerificationError(f"the int8 file {fact}{NOT_KEPT}", where="verification")
