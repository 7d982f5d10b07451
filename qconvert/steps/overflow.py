"""With an `isa` other than vnni: finds out here, once, which layers overflow on CPUs without VNNI.
A plan that is made from the record is the same on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.images.preprocess import Inputs
from qconvert.measurement.cpu_classes import can_be_shown, class_here
from qconvert.qconfig import Isa
from qconvert.quantization.fewer_bits import bounded
from qconvert.quantization.overflow import measure_overflow
from qconvert.quantization.plan import FewerBits, Plan
from qconvert.quantization.planning import make_plan
from qconvert.steps.calibrate import DISTRIBUTIONS, read_calibration
from qconvert.steps.fuse import fused_digest
from qconvert.steps.session import Session
from qconvert.steps.timings import Timings, costs_by
from qconvert.steps.two_terms import calibrated_inputs, int8_base, make_two_terms, two_terms_facts
from qconvert.workspace import digest

RECORD = "overflow.json"
# The classes without VNNI that a file must be right on, the weakest first.
WITHOUT_VNNI: Mapping[Isa, tuple[str, ...]] = {
    "vnni": (), "avx512": ("avx512",), "avx2": ("avx2", "avx512"), "portable": ("avx2", "avx512"),
}  # fmt: skip
# Images that the layers are tried on.
_IMAGES = 8


def make_overflow(session: Session, timings: Timings | None) -> dict[str, FewerBits]:
    """What layers give up, by the names of their nodes: what was found before, if that is fresh."""
    make_two_terms(session, timings)
    classes = WITHOUT_VNNI[session.config.quantization.isa]
    if not classes:
        return {}
    key = _key(session, timings)
    record = session.fresh("overflow", RECORD, lambda _: key)
    if record is None:
        found = _found(session, timings, classes)
        content = {"layers": {node: given_up.model_dump() for node, given_up in found.items()}}
        record = session.workspace.write_record(RECORD, key, (), content)
    return {node: FewerBits.model_validate(given_up) for node, given_up in record["layers"].items()}


def planned(session: Session, timings: Timings | None, fewer_bits: Mapping[str, FewerBits]) -> Plan:
    """Today's plan; without calibration there is none."""
    section, costs = session.config.quantization, costs_by(session, timings)
    return make_plan(int8_base(session), read_calibration(session), section, costs, fewer_bits)


def plan_inputs(
    session: Session,
    fused_record: dict[str, Any],
    calibration_record: dict[str, Any],
    timings: Timings | None,
    fewer_bits: Mapping[str, FewerBits],
) -> dict[str, Any]:
    """What a plan and its recovery depend on, for the keys of what is made of them."""
    config = session.config
    return {
        "versions": session.versions,
        "fused": fused_digest(fused_record),
        "calibration": calibration_record["files"][DISTRIBUTIONS],
        "quantization": config.quantization.model_dump(mode="json"),
        "recovery": config.recovery.model_dump(mode="json"),
        "timings": timings,
        "two_terms": two_terms_facts(session),
        "fewer_bits": {node: given_up.model_dump() for node, given_up in fewer_bits.items()},
        "reading": session.reading,
    }


def _found(
    session: Session, timings: Timings | None, classes: tuple[str, ...]
) -> dict[str, FewerBits]:
    hidden = [name for name in classes if not can_be_shown(name)]
    if hidden:
        here = f"a CPU of class {class_here()}" if class_here() else "this CPU, no x86 with AVX2,"
        session.voice.say(
            f"overflow: {here} cannot show how {' and '.join(hidden)} sums: every layer whose sums "
            "could overflow there gives up bits"
        )
        plan = planned(session, timings, {})
        return bounded(int8_base(session), plan, f"{' and '.join(hidden)} could not be tried")
    with session.voice.busy(f"looking for overflow on {' and '.join(classes)}"):
        plan_of = partial(planned, session, timings)
        return measure_overflow(
            int8_base(session), plan_of, _from_dark_to_bright(session.proofs), classes
        )


def _from_dark_to_bright(proofs: Sequence[Inputs]) -> list[Inputs]:
    """`_IMAGES` of them, spread evenly over their means, with both ends: the largest integers are
    those of the brightest image, or of the darkest."""
    ordered = sorted(proofs, key=lambda inputs: float(inputs[0].double().mean()))
    last = len(ordered) - 1
    places = dict.fromkeys(round(i * last / (_IMAGES - 1)) for i in range(_IMAGES))
    return [ordered[i] for i in places]


def _key(session: Session, timings: Timings | None) -> str:
    return digest({**calibrated_inputs(session, timings), "two_terms": two_terms_facts(session)})
