"""calibrate: streams the images once and keeps the distribution of every tensor."""

from __future__ import annotations

from typing import Any

from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.audit.record import VERSION
from qconvert.quantization.calibration import Calibration, calibrate
from qconvert.quantization.distribution import BINS, sampled_of
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.reports.plots import audit_svg
from qconvert.steps.auditing import AUDIT, PICTURE, audited
from qconvert.steps.equalization import TRIAL, try_equalization
from qconvert.steps.fuse import check_same_weights, fused_digest, make_fused
from qconvert.steps.requests import Calibrating
from qconvert.steps.same_model import check_model
from qconvert.steps.session import CALIBRATION_RECORD, Session
from qconvert.workspace import digest, write_atomically

RECORD = CALIBRATION_RECORD
DISTRIBUTIONS = "calibration.safetensors"


def make_calibration(session: Session) -> dict[str, Any]:
    """Writes `calibration.safetensors`, `calibration.json` and the picture of the audit, unless
    fresh."""
    fused_record = make_fused(session)
    workspace = session.workspace
    key = _key(session, fused_record)
    if (record := session.fresh("calibrate", RECORD, lambda _: key)) is not None:
        return record
    others, section = session.others, session.config.calibration
    check_same_weights(session, fused_record)
    trial = try_equalization(session)
    equalized = trial is not None and trial.kept
    if others is not None:
        others.ask(Calibrating(session.skipped, equalized))
        check_model(session, others)
    model, facts = session.equalized if equalized else session.fused, SetFacts()
    with session.voice.progress("calibrating") as progress:
        result = calibrate(
            model,
            session.calibration_images,
            session.read,
            batch_size=section.batch_size,
            averaging=section.averaging,
            split=split_of(session),
            progress=progress,
            others=others,
            facts=facts,
        )
    with session.voice.busy("auditing the calibration images"):
        audit = audited(session, model, facts)
        write_atomically(workspace.path(PICTURE), audit_svg(audit))
    write_atomically(workspace.path(DISTRIBUTIONS), result.to_bytes())
    content = {
        "images": result.images,
        "images_digest": session.calibration_images.digest,
        TRIAL: None if trial is None else trial.model_dump(mode="json"),
        AUDIT: audit.model_dump(mode="json"),
        "tensors": {
            name: {
                "minimum": seen.minimum,
                "maximum": seen.maximum,
                "average_minimum": seen.average_min,
                "average_maximum": seen.average_max,
                "counted": int(seen.histogram.counts.sum()),
            }
            for name, seen in result.tensors.items()
        },
    }
    return workspace.write_record(RECORD, key, (DISTRIBUTIONS, PICTURE), content)


def read_calibration(session: Session) -> Calibration:
    """The distributions that `make_calibration` wrote."""
    return Calibration.from_bytes(session.workspace.path(DISTRIBUTIONS).read_bytes())


def split_of(session: Session) -> frozenset[str]:
    """The layers that are observed before their activation.

    Raises QConfigError for a rule that matches nothing: before the images run, not after."""
    return split_pairs(session.fused, asked_for(session.fused, session.config.quantization))


def _equalization(session: Session) -> dict[str, Any] | None:
    """What the choice to equalize depends on, if it is one."""
    if session.config.recovery.equalization == "off":
        return None
    quantization = session.config.quantization.model_dump(mode="json", exclude={"isa"})
    return {"switch": session.config.recovery.equalization, "quantization": quantization}


def _key(session: Session, fused_record: dict[str, Any]) -> str:
    section = session.config.calibration.model_dump(mode="json", exclude={"batch_size"})
    return digest(
        {
            "versions": session.versions,
            "fused": fused_digest(fused_record),
            "calibration": section,
            "images": session.calibration_images.digest,
            "reading": session.reading,
            "equalization": _equalization(session),
            "audit": VERSION,
            "histogram": [BINS, sampled_of(len(session.calibration_images))],
            # Without rules nothing is split, and a fresh run need not build the model.
            "split": sorted(split_of(session)) if session.config.quantization.layers else [],
        }
    )
