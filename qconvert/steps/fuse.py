"""fuse: folds batch norms, pairs activations, and proves the result equal to the original."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qconvert import torchscript
from qconvert.errors import (
    FusionError,
    ImageSizeError,
    ModelInputError,
    NotFiniteImageError,
    UnsupportedError,
)
from qconvert.images.preprocess import Inputs, shapes_of
from qconvert.measurement.detections import are_detections
from qconvert.measurement.difference import relative_difference
from qconvert.models.assembly import Assembly
from qconvert.models.checkpoint_file import checkpoint_digest
from qconvert.models.graph import check_inputs
from qconvert.models.outputs import tensors
from qconvert.models.tracing import DIFFERS
from qconvert.steps.judging import judge_of
from qconvert.steps.measured import FLOAT, measured, measured_of, say_what_is_measured
from qconvert.steps.same_model import weights_digest
from qconvert.steps.session import FUSE_RECORD, LIBRARY_PREPROCESS, Session
from qconvert.user_code import digests_now, guarded
from qconvert.workspace import digest, write_atomically

RECORD = FUSE_RECORD
FUSED = "fused.pt"
# Largest difference of the fused model, as a share of the largest output.
TOLERANCE = 1e-4
# Or so many times what float32 costs the original itself: both have its error, and so has a sum in
# another order.
_OWN_ROUNDING = 4


def make_fused(session: Session) -> dict[str, Any]:
    """Writes `float.pt` (the original, traced), `fused.pt` and `fused.json`, unless fresh.

    Raises ModelInputError when the model fails on the images, ImageSizeError when it does not work
    at all of their sizes, LabelError or MetricError when its outputs cannot be judged as the
    qconfig says, and FusionError when the fused model differs from the original on real images."""
    workspace = session.workspace

    def key_of(record: dict[str, Any]) -> str:
        return _key(session, record.get("code", {}))

    if (record := session.fresh("fuse", RECORD, key_of)) is not None:
        # Also then: the labels of the evaluation images are no input of this step.
        judge_of(session, measured(record))
        return record
    result = _float_result(session)
    outputs = tensors(result)
    seen = measured_of(session, outputs, are_detections(result))
    say_what_is_measured(session, outputs, seen)
    judge_of(session, seen)
    code = session.float_model.code
    fused = session.fused
    with session.voice.busy("fusing and comparing with the original"):
        original = fused.assembly.original()
        folded = torchscript.freeze(fused.assembly.script(fused.graph))
        difference, tolerance = _difference(session, original, folded)
        write_atomically(workspace.path(FLOAT), torchscript.to_bytes(original))
        write_atomically(workspace.path(FUSED), torchscript.to_bytes(folded))
    content = {
        "code": code,
        "input_shapes": [list(x.shape) for x in session.example],
        "outputs": {key: list(value.shape) for key, value in outputs.items()},
        "measured_output": seen.name,
        "answers": seen.answers,
        "detections": seen.detections,
        "folded": [list(names) for names in fused.folded],
        "paired": [list(names) for names in fused.paired],
        "refused": [{"operator": r.operator, "reason": r.reason} for r in fused.refused],
        "removed": list(fused.removed),
        "kept": [{"name": kept.name, "reason": kept.reason} for kept in fused.kept],
        "sized": [place[2:-1] or "code of torch" for place in fused.assembly.sized],
        "largest_difference": difference,
        "tolerance": tolerance,
        "weights": weights_digest(session),
        LIBRARY_PREPROCESS: session.library_preprocess,
    }
    for line in kept_lines(content):
        session.voice.say(f"fuse: {line}")
    return workspace.write_record(RECORD, _key(session, code), (FLOAT, FUSED), content)


def kept_lines(record: dict[str, Any]) -> list[str]:
    """What a user must know of code that is not, or not for all sizes, converted."""
    lines = [f"as written, in float: {kept['name']}: {kept['reason']}" for kept in record["kept"]]
    if lines:
        lines.append(
            "the modules that this code calls are converted; `model.scripted` with its names "
            "refuses any more of it"
        )
    if any(DIFFERS in kept["reason"] for kept in record["kept"]):
        lines.append(
            "if it goes the same way for all images, `model.fixed` with its names (or `fixed: "
            "all`) converts it too"
        )
    lines += [f"as for the example's size: {place}" for place in record["sized"]]
    return lines


def fused_digest(record: dict[str, Any]) -> str:
    """What later steps depend on: the fused weights and which operators became one."""
    return digest([record["files"][FUSED], record["folded"], record["paired"]])


def check_same_weights(session: Session, record: dict[str, Any]) -> None:
    """Raises FusionError when the source built other weights than for the `fuse` record."""
    if weights_digest(session) != record["weights"]:
        raise FusionError(
            "the source builds other weights than when `fuse` ran",
            where="model.source",
            fix="give the weights as `model.checkpoint`, or run with --force after a change",
        )


def _key(session: Session, code: dict[str, str]) -> str:
    config = session.config
    checkpoint = config.model.checkpoint
    return digest(
        {
            "versions": session.versions,
            "model": config.model.model_dump(mode="json"),
            "checkpoint": checkpoint_digest(checkpoint),
            "code": digests_now(code),
            "fuse": config.fuse.model_dump(mode="json"),
            "reading": session.reading,
            "images": session.calibration_images.digest,
            # The evaluation images' too: the model must work at all of them.
            "sizes": sorted(session.sizes),
        }
    )


def _float_result(session: Session) -> Any:
    """What the float model returns for the example; and proves that it reads the other sizes."""
    try:
        result = _run_float(session, session.example)
        _check_repeatable(result, _run_float(session, session.example))
        for path in session.extremes:
            _run_float(session, session.read(path))
    except ModelInputError as error:
        if len(session.sizes) < 2:
            raise
        (a, first), (b, second) = ((s, p[0]) for s, p in list(session.sizes.items())[:2])
        raise ImageSizeError(
            f"the inputs have {len(session.sizes)} sizes, as {a[0]} x {a[1]} from {first.name} and "
            f"{b[0]} x {b[1]} from {second.name}, and the model fails: {error.facts[0]}",
            where=str(session.evaluation_images.root),
        ) from error
    return result


def _check_repeatable(first: Any, second: Any) -> None:
    if not are_detections(first) and relative_difference(tensors(first), tensors(second)) > 0.01:
        raise UnsupportedError(
            "the model gives another result for the same image each time: it draws random numbers",
            where="model.source",
            fix="let it draw none in eval mode, as by F.dropout(x, p, training=self.training)",
        )


def _run_float(session: Session, inputs: Inputs) -> Any:
    """Raises ModelInputError with the place in the user's code."""
    check_inputs(session.float_model.module, len(inputs))
    shapes = shapes_of(inputs)
    doing = f"calling the model with an input of shape {shapes}"
    module = session.float_model.module
    with guarded(doing, ModelInputError, "model.source"), torch.inference_mode():
        return module(*inputs)


def _difference(session: Session, *models: Callable[..., Any]) -> tuple[float, float]:
    """The largest difference of the models on real images, as a share of the largest output, and
    what it may be."""
    difference = 0.0
    assembly = session.fused.assembly
    bodies = assembly.split(session.fused.graph)
    proofs = list(zip(session.proof_files, session.proofs, strict=True))
    if assembly.sized or not assembly.whole:
        # Code that decided by one image may have decided by the number of images.
        proofs.append((session.example_file, tuple(torch.cat([x, x]) for x in session.example)))
    with torch.inference_mode():
        for path, inputs in proofs:
            result = session.float_model.module(*inputs)
            original = tensors(result)
            if not all(bool(torch.isfinite(value).all()) for value in original.values()):
                raise NotFiniteImageError(
                    "the float model computes NaN or infinity on this image", where=str(path)
                )
            if not assembly.whole:
                difference = max(difference, _parts_difference(assembly, bodies, inputs))
            for model in models:
                found = _result(session, model, inputs)
                if not are_detections(result):  # of which a rounding may choose others
                    difference = max(difference, relative_difference(original, found))
    tolerance = TOLERANCE
    if not difference <= tolerance:
        tolerance = max(TOLERANCE, _OWN_ROUNDING * _own_rounding(session))
    if not difference <= tolerance:
        raise FusionError(
            f"the fused model differs from the original by {difference:.2g} of its output "
            f"(tolerance {tolerance:.2g})",
            where="fuse",
        )
    return difference, tolerance


def _parts_difference(
    assembly: Assembly, bodies: Sequence[Callable[..., Any]], inputs: Inputs
) -> float:
    """That of the fused parts, each on the inputs that it has in the original."""
    return max(
        relative_difference(tensors(want), tensors(bodies[i](*given)))
        for i, given, want in assembly.part_calls(inputs)
    )


def _own_rounding(session: Session) -> float:
    """How far the original's float32 is from its float64: a deep model's sums may be further from
    the truth than `TOLERANCE`, in whatever order they are added up."""
    difference = 0.0
    assembly = session.fused.assembly
    exact = [copy.deepcopy(body).double() for body in assembly.original_bodies()]
    with torch.inference_mode():
        for inputs in session.proofs:
            for i, given, have in assembly.part_calls(inputs):
                doubled = [x.double() if x.is_floating_point() else x for x in given]
                try:
                    want = tensors(exact[i](*doubled))
                except RuntimeError:  # it makes float32 tensors by itself
                    return 0.0
                difference = max(difference, relative_difference(want, tensors(have)))
    return difference


def _result(session: Session, model: Callable[..., Any], inputs: Inputs) -> dict[str, Tensor]:
    """Raises FusionError when the traced model fails where the original did not."""
    try:
        return tensors(model(*inputs))
    except torchscript.RUN_ERRORS as error:
        several = len(inputs[0]) > len(session.example[0])
        raise FusionError(
            f"the traced model fails at {shapes_of(inputs)}, where the original works: "
            f"{str(error).strip().splitlines()[-1]}",
            where="fuse",
            fix="let the model's code not depend on the number of images"
            if several
            else "set `data.preprocess.resize: [height, width]`, so that all inputs have one size",
        ) from error
