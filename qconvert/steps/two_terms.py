"""Which tensors are held in two terms of 8 bits, found once; and the model that int8 is made of."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from qconvert.images.stream import one_thread
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import operator_name
from qconvert.qconfig import QuantizationSection
from qconvert.quantization import costs
from qconvert.quantization.affine import QuantParams
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.forecast import forecast
from qconvert.quantization.layer_rules import asked_for
from qconvert.quantization.plan import Plan
from qconvert.quantization.planning import make_plan
from qconvert.quantization.recovery.recover import sqnr_db
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.recovery.two_terms import Chosen, Maker, choose, with_two_terms
from qconvert.steps.calibrate import DISTRIBUTIONS, read_calibration
from qconvert.steps.calibrate import RECORD as CALIBRATION
from qconvert.steps.equalization import calibrated_model, why_not_recovered
from qconvert.steps.fuse import fused_digest
from qconvert.steps.requests import Base
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import Timings, costs_by
from qconvert.workspace import digest

RECORD = "two_terms.json"
# With `auto`, models whose tensors all together cost less are left as they are: 30 dB.
_LITTLE = 1e-3
# Images that the noise is foreseen on.
_IMAGES = 12


def int8_base(session: Session, section: QuantizationSection | None = None) -> FusedModel:
    """The float model that int8 is made of: the calibrated one, whose chosen tensors are read in
    two terms. Layers that the `section` wants in float read one."""
    return made(session, base_of(session, section or session.config.quantization))


def base_of(session: Session, section: QuantizationSection | None = None) -> Base:
    """What it is made by, here or on another rank."""
    model, tensors = calibrated_model(session), two_terms_facts(session)
    in_float = set[str]()
    if tensors:
        in_float = _asked_in_float(model, section or session.config.quantization)
    two_terms = {
        value: (scale, zero_point, tuple(names))
        for value, (scale, zero_point, names) in tensors.items()
        if not in_float & set(names)
    }
    return Base(model is not session.fused, two_terms)


def made(session: Session, base: Base) -> FusedModel:
    """The float model that another rank, or this one, has the base of."""
    params = {value: QuantParams(*numbers[:2]) for value, numbers in base.two_terms.items()}
    readers = {value: names for value, (_, _, names) in base.two_terms.items()}
    model = session.equalized if base.equalized else session.fused
    return with_two_terms(model, params, readers)


def trials_of_two_terms(session: Session) -> tuple[Trial, ...]:
    """What was found: one, or none where it was not tried."""
    trial = _found(session).get("trial")
    return () if trial is None else (Trial.model_validate(trial),)


def two_terms_facts(session: Session) -> dict[str, Any]:
    """What plans and what is made of them depend on."""
    tensors: dict[str, Any] = _found(session).get("tensors", {})
    return tensors


def make_two_terms(session: Session, timings: Timings | None) -> None:
    """Writes `two_terms.json`, unless it is fresh or the qconfig does not ask for it."""
    if not _asked(session):
        return
    key = _key(session, timings)
    if session.fresh("two terms", RECORD, lambda _: key) is None:
        session.workspace.write_record(RECORD, key, (), _tried(session, timings))


def _tried(session: Session, timings: Timings | None) -> dict[str, Any]:
    start, switch = time.perf_counter(), session.config.recovery.two_terms
    model, calibration = calibrated_model(session), read_calibration(session)
    # As on CPUs with VNNI: what others give up does not depend on it.
    section = session.config.quantization.model_copy(update={"isa": "vnni"})
    table = costs_by(session, timings)
    make = Maker(
        plan=partial(_plan, session, section, table),
        microseconds=lambda m: forecast(m, section, table, example=session.example).microseconds,
    )
    fitted, unseen = session.recovery_inputs
    with session.voice.busy("recovery: two terms"), one_thread():
        least = 0.0 if switch == "on" else _LITTLE
        try:
            chosen = choose(model, calibration, make, fitted[:_IMAGES], least)
        except RuntimeError as error:
            line = str(error).strip().partition("\n")[0]
            session.voice.say(f"recovery: two_terms not tried: no derivatives: {line}")
            return {"tensors": {}, "trial": None}
        if not chosen.params:
            return {"tensors": {}, "trial": None}
        changed = with_two_terms(model, chosen.params, chosen.readers)
        before, after = (
            sqnr_db(session.fused, m, make.plan(m), {}, unseen) for m in (model, changed)
        )
    kept = switch == "on" or after > before
    trial = Trial(
        method="two_terms",
        kept=kept,
        before_db=before,
        after_db=after,
        seconds=time.perf_counter() - start,
        note=_note(model, chosen),
    )
    tensors = {
        value: [params.scale, params.zero_point, list(chosen.readers[value])]
        for value, params in chosen.params.items()
    }
    return {"tensors": tensors if kept else {}, "trial": trial.model_dump(mode="json")}


def _plan(
    session: Session, section: QuantizationSection, table: costs.Costs, model: FusedModel
) -> Plan:
    return make_plan(model, read_calibration(session), section, table, {})


def _note(model: FusedModel, chosen: Chosen) -> str:
    nodes = nodes_by_name(model)
    names = ", ".join(operator_name(nodes[value]) for value in chosen.params)
    return f"{names}; foreseen to be {100 * chosen.slower:.0f} % slower"


def _asked(session: Session) -> bool:
    return session.config.recovery.two_terms != "off" and why_not_recovered(session) is None


def _found(session: Session) -> dict[str, Any]:
    """What `make_two_terms` left, where that is asked for."""
    return (session.workspace.read(RECORD) or {}) if _asked(session) else {}


def _asked_in_float(model: FusedModel, section: QuantizationSection) -> set[str]:
    asked = asked_for(model, section)
    return {name for name, found in asked.items() if found.precision in ("float32", "dynamic")}


def calibrated_inputs(session: Session, timings: Timings | None) -> dict[str, Any]:
    """What is found between calibration and the plan depends on."""
    fused, calibrated = (session.workspace.read(name) or {} for name in (FUSE_RECORD, CALIBRATION))
    return {
        "versions": session.versions,
        "fused": fused_digest(fused),
        "calibration": calibrated["files"][DISTRIBUTIONS],
        "images": session.calibration_images.digest,
        "reading": session.reading,
        # With `isa`: the costs depend on it.
        "quantization": session.config.quantization.model_dump(mode="json"),
        "timings": timings,
    }


def _key(session: Session, timings: Timings | None) -> str:
    switch = session.config.recovery.two_terms
    return digest({**calibrated_inputs(session, timings), "switch": switch})
