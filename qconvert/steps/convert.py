"""convert: ranges, plan, int8, TorchScript; then the proof of the file in a fresh process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qconvert import torchscript
from qconvert.errors import OutputError, VerificationError
from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.environment import here
from qconvert.measurement.statistics import decibels
from qconvert.models.checkpoint_file import checkpoint_digest
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.qconfig_file import with_relative_paths
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.coverage import Coverage, check_against_plan, count
from qconvert.quantization.lowering.other_size import OtherSize, try_other_size
from qconvert.quantization.lowering.targets import Int8, Simulated
from qconvert.quantization.lowering.verification import Verification, verify
from qconvert.quantization.plan import FewerBits, Plan
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.training.history import Training
from qconvert.steps.calibrate import make_calibration
from qconvert.steps.finetune import finetuned, training_facts
from qconvert.steps.fuse import FUSED, check_same_weights
from qconvert.steps.judging import judge, what_judges
from qconvert.steps.measured import FLOAT, Measured, measured
from qconvert.steps.overflow import make_overflow, plan_inputs, planned
from qconvert.steps.portability import verified_isa
from qconvert.steps.recovery import recovered
from qconvert.steps.requests import Recipe, send_content
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import Timings, make_timings
from qconvert.workspace import TEMPORARY, digest, write_atomically

RECORD = "convert.json"
PLAN = "plan.json"
INT8 = "model.int8.pt"
MANIFEST = "manifest.json"
# How far below the plan's simulation the file's SQNR may be, in dB: rounding ties of the kernels
# go other ways, and deep networks amplify them; a wrong kernel costs far more.
_PREDICTION_TOLERANCE_DB = 6.0
# What would make the file larger; the report has it.
_NOT_IN_FILE: Any = {"per_class": True, "flipped": True, "confidence": {"reference_curve", "curve"}}


def make_int8(session: Session) -> dict[str, Any]:
    """Writes `plan.json`, `model.int8.pt` and `convert.json`, unless fresh.

    Raises VerificationError when the file fails its verification; it is not kept then.
    """
    calibration_record = make_calibration(session)
    workspace = session.workspace
    fused_record = workspace.read(FUSE_RECORD) or {}
    timings = make_timings(session)
    fewer_bits = make_overflow(session, timings)
    key = _key(session, fused_record, calibration_record, timings, fewer_bits)
    if (record := session.fresh("convert", RECORD, lambda _: key)) is not None:
        return record
    check_same_weights(session, fused_record)
    _check_cpu(session)
    plan = planned(session, timings, fewer_bits)
    for note in plan.notes:
        session.voice.say(f"convert: {note}")
    corrected, plan, trials = recovered(session, plan)
    corrected, plan, training = finetuned(session, corrected, plan)
    with session.voice.busy("lowering to int8"):
        model = lower(corrected, plan, Int8(plan))
        script = _scripted(session, model)
    simulated = lower(corrected, plan, Simulated())
    parts_sqnr = _check_prediction(session, simulated, model, script, measured(fused_record))
    unproved = torchscript.to_bytes(script)
    accuracy = judge(
        session, script, "measuring int8 accuracy",
        lambda others: Recipe(file=send_content(others, unproved)),
    )  # fmt: skip
    lowered = session.fused.assembly.eager(model)
    other_size = _other_size(session, lowered, script)
    verified = verified_isa(session, unproved, measured(fused_record))
    manifest = {
        **_manifest(session, plan, fused_record, accuracy, other_size),
        "needs": list(torchscript.needs(script)),
        "verified_isa": verified,
        "fewer_bits": _fewer_bits(plan),
        "recovery": _recovery(trials, exclude={"seconds"}),
        "finetune": _training(training, exclude={"seconds"}),
    }
    file = torchscript.to_bytes(script, {MANIFEST: json.dumps(manifest, indent=1)})
    # Kept code is compared as TorchScript runs it: Python may round otherwise and choose others.
    whole = session.fused.assembly.whole
    coverage, verification = _proved(session, file, lowered if whole else script, plan, other_size)
    write_atomically(workspace.path(PLAN), plan.to_json().encode())
    write_atomically(workspace.path(INT8), file)
    content = {
        **_content(session, plan, coverage, verification, accuracy),
        "other_size": None if other_size is None else other_size.record(),
        "needs": list(torchscript.needs(script)),
        "verified_isa": verified,
        "recovery": _recovery(trials),
        "finetune": _training(training),
        "kept": [kept.model_dump() for kept in plan.kept],
        "parts_sqnr_db": parts_sqnr,
    }
    return workspace.write_record(RECORD, key, (PLAN, INT8), content)


def _content(
    session: Session,
    plan: Plan,
    coverage: Coverage,
    verification: Verification,
    accuracy: Comparison,
) -> dict[str, Any]:
    """The record of `convert`."""
    return {
        "plan": plan.digest(),
        "coverage": coverage.model_dump(mode="json"),
        "verification": verification.model_dump(mode="json"),
        "accuracy": accuracy.model_dump(mode="json"),
        "size_bytes": {name: session.workspace.path(name).stat().st_size for name in (FLOAT, INT8)},
        "float_operators": [
            {"name": o.name, "kind": o.kind, "reason": o.reason}
            for o in plan.operators
            if o.precision == "float32"
        ],
        "fewer_bits": _fewer_bits(plan),
        "given": [o.name for o in plan.operators if o.precision == "given"],
    }


def _fewer_bits(plan: Plan) -> list[dict[str, str]]:
    """The layers that gave up bits."""
    return [
        {"name": o.name, "extent": o.fewer_bits.extent, "reason": o.fewer_bits.reason}
        for o in plan.operators
        if o.fewer_bits is not None
    ]


def _recovery(trials: Sequence[Trial], exclude: set[str] | None = None) -> list[dict[str, Any]]:
    """What each method of recovery did."""
    return [trial.model_dump(mode="json", exclude=exclude) for trial in trials]


def _training(training: Training | None, exclude: set[str] | None = None) -> dict[str, Any] | None:
    """How the model was trained, if what was learned is in it."""
    if training is None or not training.kept:
        return None
    return training.model_dump(mode="json", exclude=exclude)


def simulate(model: FusedModel, plan: Plan) -> Callable[..., Any]:
    """The model that the plan predicts, in float arithmetic."""
    return model.assembly.eager(lower(model, plan, Simulated()))


def _scripted(session: Session, model: GraphModule) -> torch.jit.ScriptModule:
    return torchscript.freeze(session.fused.assembly.script(model))


def _check_cpu(session: Session) -> None:
    if session.config.quantization.isa == "vnni" and not here().vnni:
        session.voice.say(
            "convert: this CPU has no VNNI, on which 8-bit sums can overflow: accuracy measured "
            "here is not that of a CPU with VNNI. For CPUs like this one: --set "
            "quantization.isa=portable"
        )


def _check_prediction(
    session: Session,
    simulated: GraphModule,
    lowered: GraphModule,
    script: Callable[..., Any],
    seen: Measured,
) -> float | None:
    """The file must be as near to float as the plan says, or an operator computes wrongly.

    Of a model whose code is kept in places, the parts are judged, each on the inputs that it has in
    the float model; their SQNR is returned."""
    signal, errors = 0.0, [0.0, 0.0]
    with torch.inference_mode():
        for reference, *others in _outputs_of(session, simulated, lowered, script, seen):
            signal += reference.double().square().sum().item()
            for i, other in enumerate(others):
                errors[i] += (other.double() - reference.double()).square().sum().item()
    predicted, found = (decibels(signal, error) for error in errors)
    if found < predicted - _PREDICTION_TOLERANCE_DB and found < 40:
        if session.config.quantization.isa == "vnni" and not here().vnni:
            raise VerificationError(
                f"the int8 model has {found:.1f} dB of SQNR here and {predicted:.1f} on CPUs with "
                "VNNI: on this one, sums of 8-bit products overflow",
                where="quantization.isa",
                fix="convert on a CPU with VNNI, or for this one: isa: portable",
            )
        raise VerificationError(
            f"the int8 model has {found:.1f} dB of SQNR where its plan predicts {predicted:.1f}: "
            "an operator computes something else",
            where="verification",
        )
    return None if session.fused.assembly.whole else found


def _outputs_of(
    session: Session,
    simulated: GraphModule,
    lowered: GraphModule,
    script: Callable[..., Any],
    seen: Measured,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The outputs of the float model, the simulation and the int8 model on real images; or those of
    their parts, each output as a share of its own size, so that all count alike."""
    assembly = session.fused.assembly
    if assembly.whole:
        models = [seen.of(m) for m in (session.fused.graph, simulated, script)]
        for inputs in session.proofs:
            yield models[0](*inputs), models[1](*inputs), models[2](*inputs)
        return
    bodies = list(zip(assembly.split(simulated), assembly.split(lowered), strict=True))
    for inputs in session.proofs:
        for i, given, result in assembly.part_calls(inputs):
            found = [tensors(body(*given)) for body in bodies[i]]
            for name, want in tensors(result).items():
                if want.is_floating_point() and want.numel():
                    size = want.square().mean().sqrt().clamp(min=1e-12) * want.numel() ** 0.5
                    yield want / size, found[0][name] / size, found[1][name] / size


def _other_size(
    session: Session, lowered: Callable[..., Any], script: Callable[..., Any]
) -> OtherSize | None:
    found = try_other_size(session.float_model.module, lowered, script, session.example)
    places = session.fused.assembly.sized
    if found is None or not places:
        return found
    return replace(found, why_not=f"its code decides by the size{places[0]}")


def _manifest(
    session: Session,
    plan: Plan,
    fused_record: dict[str, Any],
    accuracy: Comparison,
    other_size: OtherSize | None,
) -> dict[str, Any]:
    config = session.config
    checkpoint = config.model.checkpoint
    environment = here()
    return {
        "version": 3,
        "made_with": {**session.versions, "python": environment.python},
        "isa": plan.isa,
        "verified_on": {"cpu": environment.cpu, "vnni": environment.vnni},
        "inputs": _inputs(session, other_size),
        "measured_output": fused_record["measured_output"],
        **_manifest_of_preprocess(session),
        "classes": session.evaluation_images.classes,
        "digests": {
            "checkpoint": checkpoint_digest(checkpoint),
            "fused_model": fused_record["files"][FUSED],
            "calibration_images": session.calibration_images.digest,
            "evaluation_images": session.evaluation_images.digest,
            "plan": plan.digest(),
        },
        "accuracy": accuracy.model_dump(mode="json", exclude=_NOT_IN_FILE),
        "int8_macs": plan.int8_macs,
        "dynamic_macs": plan.dynamic_macs,
        "operators": plan.manifest_lines(),
        "qconfig": _what_made_it(session),
    }


def _manifest_of_preprocess(session: Session) -> dict[str, Any]:
    """What is left to whoever calls the file, and what it does by itself."""
    data = session.config.data
    inside = {"mean", "std"} if data.takes_pixels else set()
    steps = data.preprocess if data.transform else session.preprocess
    outside = None if data.transform else steps.model_dump(mode="json", exclude=inside)
    return {
        "preprocess": outside,
        "normalized_inside": steps.model_dump(mode="json", include=inside) if inside else None,
    }


def _what_made_it(session: Session) -> dict[str, Any]:
    """The settings that the file depends on; those of reports and places are left out."""
    tree = with_relative_paths(session.config, session.config_path.resolve().parent)
    del tree["calibration"]["batch_size"]
    left_out = {"benchmark", "budgets", "tune", "output"}
    if training_facts(session) is None:
        left_out.add("finetune")
    return {k: v for k, v in tree.items() if k not in left_out}


def _inputs(session: Session, other_size: OtherSize | None) -> list[dict[str, Any]]:
    """Shape and dtype of each input; an axis that may have any length is None."""
    found: list[dict[str, Any]] = [
        {"shape": [None, *x.shape[1:]], "dtype": str(x.dtype).removeprefix("torch.")}
        for x in session.example
    ]
    if other_size is not None and other_size.why_not is None:
        shape = found[other_size.place]["shape"]
        for axis, length in enumerate(other_size.shape):
            if axis and shape[axis] != length:
                shape[axis] = None
    return found


def _write_candidate(session: Session, candidate: Path, content: bytes) -> None:
    try:
        write_atomically(candidate, content)
    except OutputError as error:
        error.where = str(session.workspace.path(INT8))  # the name that a user knows
        raise


def _proved(
    session: Session,
    content: bytes,
    model: Callable[..., Any],
    plan: Plan,
    other_size: OtherSize | None,
) -> tuple[Coverage, Verification]:
    """Coverage and verification of the file that is about to be written."""
    candidate = session.workspace.path(f".{INT8}.candidate{TEMPORARY}")
    try:
        _write_candidate(session, candidate, content)
        with session.voice.busy("verifying the file in a fresh process"):
            works = other_size is not None and other_size.why_not is None
            others = [other_size.inputs] if other_size is not None and works else []
            reference = session.float_model.module
            needs = torchscript.needs(torchscript.load(content))
            verification = verify(candidate, model, session.proofs, reference, others, needs)
        extra = {MANIFEST: ""}
        coverage = count(torchscript.load(content, extra), session.example)
        given = None
        if any(o.precision == "given" for o in plan.operators):
            given = count(session.float_model.module, session.example)
        check_against_plan(coverage, plan, json.loads(extra[MANIFEST])["operators"], given)
    finally:
        candidate.unlink(missing_ok=True)
    return coverage, verification


def _key(
    session: Session,
    fused_record: dict[str, Any],
    calibration_record: dict[str, Any],
    timings: Timings | None,
    fewer_bits: Mapping[str, FewerBits],
) -> str:
    config = session.config
    return digest(
        {
            **plan_inputs(session, fused_record, calibration_record, timings, fewer_bits),
            "vnni": here().vnni,
            "evaluation": session.evaluation_images.digest,
            "judging": what_judges(session),
            "output": [fused_record[k] for k in ("measured_output", "answers", "detections")],
            # What the manifest tells.
            "checkpoint": checkpoint_digest(config.model.checkpoint),
            "qconfig": _what_made_it(session),
            "finetune": training_facts(session),
        }
    )
