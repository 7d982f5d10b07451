"""The audit of the calibration images, from `calibrate` to the report."""

from __future__ import annotations

from collections.abc import Sequence

from qconvert.images.decode import size_of
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Negative
from qconvert.measurement.accuracy import image_name
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import operator_name
from qconvert.quantization.audit.examine import Found, Named, examine
from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.audit.foreign import distances
from qconvert.quantization.audit.negatives import negatives
from qconvert.quantization.audit.pictures import Scale
from qconvert.quantization.audit.record import Audit
from qconvert.quantization.calibration import calibrate
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.steps.session import CALIBRATION_RECORD, Session

# Where the record of `calibrate` has it, and its picture.
AUDIT = "audit"
PICTURE = "audit.svg"


def audited(session: Session, model: FusedModel, facts: SetFacts) -> Audit:
    """What calibration's facts tell of its images, and what the model makes of the negatives of
    the oddest."""
    images, data = session.calibration_images, session.config.data
    exif = "ignore" if data.transform is not None else session.preprocess.exif
    named = Named(
        images=[image_name(images.root, path) for path in images.files],
        sizes=[size_of(path, exif) for path in images.files],
        operators={node.name: operator_name(node) for node in model.graph.graph.nodes},
        scale=_scale(session),
    )
    return examine(facts, named, found_in(session, model, session.calibration_images, facts))


def found_in(session: Session, model: FusedModel, images: ImageSet, facts: SetFacts) -> Found:
    """The foreign images among these, which the facts are of."""
    found, data = distances(facts), session.config.data
    # What a negative is only the steps of `data.preprocess` tell.
    if found is None or data.transform is not None:
        return Found(found)
    negative = Negative(session.read, tuple(session.preprocess.mean), tuple(session.preprocess.std))
    section = session.config.calibration

    def run(places: Sequence[int]) -> SetFacts:
        of_negatives, chosen = SetFacts(), {images.files[i] for i in places}
        calibrate(
            model,
            images.without(set(images.files) - chosen),
            negative,
            batch_size=section.batch_size,
            averaging=section.averaging,
            split=split_pairs(model, asked_for(model, session.config.quantization)),
            facts=of_negatives,
        )
        return of_negatives

    return Found(found, negatives(facts, found, run))


def recorded_audit(session: Session) -> Audit | None:
    """What `calibrate` found."""
    found = (session.workspace.read(CALIBRATION_RECORD) or {}).get(AUDIT)
    return None if found is None else Audit.model_validate(found)


def audit_lines(audit: Audit) -> list[str]:
    """The verdicts, those first that a user should look at."""
    ordered = sorted(audit.verdicts, key=lambda verdict: verdict.fine)
    return [f"audit{'' if v.fine else ', look'}: {v.topic}: {v.text}" for v in ordered]


def _scale(session: Session) -> Scale | None:
    data = session.config.data
    if data.takes_pixels:
        return Scale(std=(1 / 255,))
    if data.transform is not None:
        return None
    return Scale(tuple(session.preprocess.mean), tuple(session.preprocess.std))
