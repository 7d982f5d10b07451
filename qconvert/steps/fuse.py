"""fuse: folds batch norms, pairs activations, and proves the result equal to the original."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from qconvert import torchscript
from qconvert.errors import ConversionError
from qconvert.measurement.accuracy import check_classes
from qconvert.models.source import code_digests
from qconvert.steps.session import Session
from qconvert.workspace import digest, file_digest, write_atomically

RECORD = "fused.json"
FLOAT = "float.pt"
FUSED = "fused.pt"
# Largest difference of the fused model, as a share of the largest output.
TOLERANCE = 1e-4


def make_fused(session: Session) -> dict[str, Any]:
    """Writes `float.pt` (the original, traced), `fused.pt` and `fused.json`, unless fresh.

    Raises ConversionError when the fused model differs from the original on real images.
    """
    workspace = session.workspace
    workspace.prepare()

    def key_of(record: dict[str, Any]) -> str:
        return _key(session, record.get("code", {}))

    # Also when the step is fresh: the evaluation images are no input of it, and may be others.
    session.check_images()
    if (record := session.fresh("fuse", RECORD, key_of)) is not None:
        return record
    code = session.float_model.code
    fused = session.fused
    with torch.inference_mode():
        outputs = fused.graph(session.example)
    if outputs.dim() == 2:
        check_classes(session.evaluation_images, outputs.shape[1])
    with session.voice.busy("fusing and comparing with the original"):
        difference = _difference(session)
        original = torchscript.trace(session.float_model.module, session.example)
        write_atomically(workspace.path(FLOAT), torchscript.to_bytes(original))
        folded = torchscript.freeze(torchscript.trace(fused.graph, session.example))
        write_atomically(workspace.path(FUSED), torchscript.to_bytes(folded))
    content = {
        "code": code,
        "input_shape": list(session.shape),
        "folded": [list(names) for names in fused.folded],
        "paired": [list(names) for names in fused.paired],
        "refused": [{"operator": r.operator, "reason": r.reason} for r in fused.refused],
        "removed": list(fused.removed),
        "largest_difference": difference,
        "tolerance": TOLERANCE,
        "weights": _weights_digest(session),
    }
    return workspace.write_record(RECORD, _key(session, code), (FLOAT, FUSED), content)


def fused_digest(record: dict[str, Any]) -> str:
    """What later steps depend on: the fused weights and which operators became one."""
    return digest([record["files"][FUSED], record["folded"], record["paired"]])


def check_same_weights(session: Session, record: dict[str, Any]) -> None:
    """Raises ConversionError when the source built other weights than for the `fuse` record."""
    if _weights_digest(session) != record["weights"]:
        raise ConversionError(
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
            "checkpoint": file_digest(checkpoint) if checkpoint else None,
            "code": code_digests(code),
            "fuse": config.fuse.model_dump(mode="json"),
            "preprocess": config.data.preprocess.model_dump(mode="json"),
            "images": session.calibration_images.digest,
        }
    )


def _difference(session: Session) -> float:
    """The largest difference on real images, as a share of the largest output."""
    images = session.proof_images
    with torch.inference_mode():
        original, fused = session.float_model.module(images), session.fused.graph(images)
    largest = max(float(original.abs().max()), 1e-12)
    difference = float((original - fused).abs().max()) / largest
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"the fused model differs from the original by {difference:.2g} of its output "
            f"(tolerance {TOLERANCE})",
            where="fuse",
            fix="list the modules that may be fused in `fuse.modules`, or report this as a bug",
        )
    return difference


def _weights_digest(session: Session) -> str:
    digests = hashlib.sha256()
    for name, value in sorted(session.fused.graph.state_dict().items()):
        digests.update(name.encode() + value.contiguous().numpy().tobytes())
    return digests.hexdigest()
