"""Whether the channels of the float model are equalized before it is calibrated."""

from __future__ import annotations

import time
from typing import Any

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.quantization.calibration import Calibration, distributions_of
from qconvert.quantization.planning import make_plan
from qconvert.quantization.recovery.recover import sqnr_db
from qconvert.quantization.recovery.trial import Trial
from qconvert.steps.session import CALIBRATION_RECORD, FEWEST_FOR_RECOVERY, Session

# Where the record of `calibrate` has what was found.
TRIAL = "equalization"


def int8_base(session: Session) -> FusedModel:
    """The float model that int8 is made of: what `calibrate` chose."""
    trial = trial_of_equalization(session)
    return session.equalized if trial is not None and trial.kept else session.fused


def trial_of_equalization(session: Session) -> Trial | None:
    """What `calibrate` found; None where it was not tried."""
    found: dict[str, Any] | None = (session.workspace.read(CALIBRATION_RECORD) or {}).get(TRIAL)
    return None if found is None else Trial.model_validate(found)


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
    switches = section.model_dump().values()
    reason = None if set(switches) == {"off"} else why_not_recovered(session)
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
    fitted, unseen = session.recovery_images
    section = session.config.quantization.model_copy(update={"isa": "vnni"})
    plan = make_plan(model, _calibrated(model, fitted, session), section)
    return sqnr_db(session.fused, model, plan, {}, unseen)


def _calibrated(model: FusedModel, images: list[Inputs], session: Session) -> Calibration:
    return distributions_of(model, images, session.config.calibration.averaging)
