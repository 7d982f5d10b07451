"""Whether the channels of the float model are equalized before it is calibrated."""

from __future__ import annotations

import time
from typing import Any

from qconvert.models.fusion import FusedModel
from qconvert.quantization.calibration import calibrate
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.quantization.planning import make_plan
from qconvert.quantization.recovery.recover import sqnr_db
from qconvert.quantization.recovery.trial import Trial
from qconvert.steps.session import CALIBRATION_RECORD, FEWEST_FOR_RECOVERY, Session

# Where the record of `calibrate` has what was found.
TRIAL = "equalization"


def calibrated_model(session: Session) -> FusedModel:
    """The float model that was calibrated: what `calibrate` chose."""
    kept = any(trial.kept for trial in trials_of_equalization(session))
    return session.equalized if kept else session.fused


def trials_of_equalization(session: Session) -> tuple[Trial, ...]:
    """What `calibrate` found: one, or none where it was not tried."""
    found: dict[str, Any] | None = (session.workspace.read(CALIBRATION_RECORD) or {}).get(TRIAL)
    return () if found is None else (Trial.model_validate(found),)


def why_not_recovered(session: Session) -> str | None:
    """Why no method of recovery can be tried."""
    images = len(session.calibration_images)
    if not session.fused.assembly.whole:
        return "the model has code that is kept as it is written"
    if images < FEWEST_FOR_RECOVERY:
        return f"{images} calibration images are fewer than {FEWEST_FOR_RECOVERY}"
    return None


def try_equalization(session: Session) -> Trial | None:
    """Compares a plan of the equalized model with one of the model as it is, on images that neither
    has seen. None where the qconfig does not ask for it, or it cannot be tried: that is said."""
    section = session.config.recovery
    reason = None if set(section.switches.values()) == {"off"} else why_not_recovered(session)
    if reason is not None:
        session.voice.say(f"recovery: not tried: {reason}")
    if section.equalization == "off" or reason is not None:
        return None
    start = time.perf_counter()
    with session.voice.busy("recovery: equalization"):
        before, after = (_sqnr_db(session, model) for model in (session.fused, session.equalized))
    return Trial(
        method="equalization",
        kept=section.equalization == "on" or after > before,
        before_db=before,
        after_db=after,
        seconds=time.perf_counter() - start,
    )


def _sqnr_db(session: Session, model: FusedModel) -> float:
    """What the plan for this CPU has, that is made of the images which the method sees."""
    section, calibration = session.config.quantization, session.config.calibration
    seen = calibrate(
        model,
        session.recovery_images[0],
        session.read,
        batch_size=calibration.batch_size,
        averaging=calibration.averaging,
        split=split_pairs(model, asked_for(model, section)),
    )
    plan = make_plan(model, seen, section.model_copy(update={"isa": "vnni"}))
    return sqnr_db(session.fused, model, plan, {}, session.recovery_inputs[1])
