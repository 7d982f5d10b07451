"""Gets back accuracy as `recovery` in the qconfig says, once; later runs read what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from safetensors.torch import load, save

from qconvert.models.fusion import FusedModel
from qconvert.qconfig import RecoverySection
from qconvert.quantization.plan import Plan
from qconvert.quantization.recovery.corrected import Corrected, with_corrections
from qconvert.quantization.recovery.recover import recover
from qconvert.quantization.recovery.trial import CORRECTING, Trial
from qconvert.steps.equalization import trials_of_equalization, why_not_recovered
from qconvert.steps.session import Session
from qconvert.steps.two_terms import int8_base, trials_of_two_terms
from qconvert.workspace import digest, write_atomically

RECORD = "recovery.json"
WEIGHTS = "recovery.safetensors"


class Recovered(NamedTuple):
    """The model whose weights and biases were corrected, its plan, and what each method did."""

    model: FusedModel
    plan: Plan
    trials: tuple[Trial, ...]


def recovered(session: Session, plan: Plan) -> Recovered:
    """By what was found before, if that is fresh."""
    section, model = session.config.recovery, int8_base(session)
    before = (*trials_of_equalization(session), *trials_of_two_terms(session))
    if not corrects(session, section, plan):
        return Recovered(model, plan, before)
    key = _key(session, plan)
    record = session.fresh("recovery", RECORD, lambda _: key)
    if record is None:
        found, trials = recover(
            session.fused, model, plan, *session.recovery_inputs, section, session.voice.progress
        )
        write_atomically(session.workspace.path(WEIGHTS), bytes_of(found))
        content = {"trials": [trial.model_dump() for trial in trials]}
        record = session.workspace.write_record(RECORD, key, (WEIGHTS,), content)
    corrections = corrections_of(session.workspace.path(WEIGHTS).read_bytes())
    trials = tuple(map(Trial.model_validate, record["trials"]))
    return Recovered(*with_corrections(model, plan, corrections), (*before, *trials))


def corrects(session: Session, section: RecoverySection, plan: Plan) -> bool:
    """Whether the layers of a plan are to be corrected, and can be."""
    asked = any(getattr(section, method) != "off" for method in CORRECTING)
    return asked and plan.macs("int8") > 0 and why_not_recovered(session) is None


def bytes_of(found: Mapping[str, Corrected]) -> bytes:
    """What `recovery.safetensors` holds."""
    arrays = {f"{name}.weight": layer.weight.contiguous() for name, layer in found.items()}
    arrays |= {f"{name}.bias": x.bias for name, x in found.items() if x.bias is not None}
    return save(arrays)


def corrections_of(content: bytes) -> dict[str, Corrected]:
    """What is in `recovery.safetensors`."""
    arrays = load(content)
    names = [name.removesuffix(".weight") for name in arrays if name.endswith(".weight")]
    return {name: Corrected(arrays[f"{name}.weight"], arrays.get(f"{name}.bias")) for name in names}


def _key(session: Session, plan: Plan) -> str:
    return digest(
        {
            "versions": session.versions,
            "plan": plan.digest(),
            "images": session.calibration_images.digest,
            "reading": session.reading,
            "recovery": session.config.recovery.model_dump(mode="json"),
        }
    )


def trial_lines(trials: Sequence[Trial]) -> tuple[str, ...]:
    """For people."""
    return tuple(f"recovery: {trial.line}" for trial in trials)
