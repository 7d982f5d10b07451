"""finetune: quantization-aware training from where the plan and recovery begin; and what `convert`
takes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from qconvert.errors import TrainingError
from qconvert.images.folder import ImageSet
from qconvert.measurement.accuracy import Comparison, check_classes
from qconvert.models.fusion import FusedModel
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Simulated
from qconvert.quantization.plan import Plan
from qconvert.quantization.training.finetuned import Finetuned, with_finetuned
from qconvert.quantization.training.history import Training
from qconvert.steps.calibrate import make_calibration
from qconvert.steps.course import Course, remove_checkpoints
from qconvert.steps.fuse import check_same_weights
from qconvert.steps.judging import judge
from qconvert.steps.measured import Measured, measured
from qconvert.steps.overflow import make_overflow, planned
from qconvert.steps.recovery import RECORD as RECOVERY
from qconvert.steps.recovery import Recovered, recovered
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import make_timings
from qconvert.steps.training_images import training_images
from qconvert.workspace import digest, write_atomically

RECORD = "finetune.json"
WEIGHTS = "finetuned.safetensors"


class Tuned(NamedTuple):
    """A model and its plan, and how they were trained, if they were."""

    model: FusedModel
    plan: Plan
    training: Training | None


def make_finetuned(session: Session) -> dict[str, Any]:
    """Writes `finetuned.safetensors` and `finetune.json`, unless fresh; goes on from a checkpoint.

    Raises TrainingError, and what the steps before and reading images raise."""
    make_calibration(session)
    check_same_weights(session, session.workspace.read(FUSE_RECORD) or {})
    timings = make_timings(session)
    begin = recovered(session, planned(session, timings, make_overflow(session, timings)))
    images = training_images(session)
    key = _key(session, begin.plan, images)
    if (record := session.fresh("finetune", RECORD, lambda _: key)) is not None:
        return record
    seen = measured(session.workspace.read(FUSE_RECORD) or {})
    _check(session, begin.plan, images, seen)
    training, learned = Course(session, begin, images, seen, key).run()
    workspace = session.workspace
    write_atomically(workspace.path(WEIGHTS), learned.to_bytes())
    before = _before(session, begin)
    content = {
        "training": training.model_dump(mode="json"),
        "before": before.model_dump(mode="json"),
    }
    record = workspace.write_record(RECORD, key, (WEIGHTS,), content)
    remove_checkpoints(workspace)
    return record


def finetuned(session: Session, model: FusedModel, plan: Plan) -> Tuned:
    """The model and the plan with what was trained from them on, if that is there, is of them, and
    is asked for; what becomes of it is said."""
    workspace, say = session.workspace, session.voice.say
    record = workspace.read(RECORD)
    if record is None:
        return Tuned(model, plan, None)
    if session.config.finetune.apply == "off":
        say(f"convert: {WEIGHTS} is left out (finetune.apply: off)")
        return Tuned(model, plan, None)
    key = _key(session, plan, training_images(session))
    reason = workspace.why_stale(RECORD, lambda _: key)
    if reason is not None:
        say(f"convert: {WEIGHTS} is left out: {reason}; `qconvert finetune` trains anew")
        return Tuned(model, plan, None)
    training = Training.model_validate(record["training"])
    if not training.kept:
        say("convert: fine-tuning found nothing better than the plan: nothing of it is taken")
        return Tuned(model, plan, training)
    say(f"convert: with what was trained: {WEIGHTS}")
    trained = Finetuned.from_bytes(workspace.path(WEIGHTS).read_bytes())
    return Tuned(*with_finetuned(model, plan, trained), training)


def training_facts(session: Session) -> dict[str, Any] | None:
    """What `convert` depends on, beside the settings: None where it takes nothing trained."""
    record = session.workspace.read(RECORD)
    if record is None or session.config.finetune.apply == "off":
        return None
    images = training_images(session).digest
    return {"key": record.get("key"), "files": record.get("files"), "images": images}


def _check(session: Session, plan: Plan, images: ImageSet, seen: Measured) -> None:
    section = session.config.finetune
    facts = []
    if not session.fused.assembly.whole:
        facts.append("the model has code that is kept as it is written")
    if not any(o.precision == "int8" and o.weight is not None for o in plan.operators):
        facts.append("no layer of the plan has int8 weights and fixed ranges")
    rows = seen.answers and len(seen.shape) == 2
    if section.teacher != "float" and not rows:
        facts.append(
            f"outputs of shape {list(seen.shape)} are no row of classes for each image: they "
            "cannot learn from labels (finetune.teacher: float needs none)"
        )
    if facts:
        raise TrainingError(facts, where=session.config_path.name)
    if section.teacher != "float":
        check_classes(images, seen.shape[1])
    if (section.images or session.config.data.calibration) == session.config.evaluation:
        session.voice.say(
            "finetune: the images to train with are those of evaluation: accuracy on them says "
            "little of others (data.evaluation)"
        )


def _before(session: Session, begin: Recovered) -> Comparison:
    """What the plan predicts without training."""
    model = lower(begin.model, begin.plan, Simulated())
    return judge(session, model, "simulating int8 before fine-tuning", None)


def _key(session: Session, plan: Plan, images: ImageSet) -> str:
    section = session.config.finetune.model_dump(mode="json", exclude={"apply", "images"})
    recovery = session.workspace.read(RECOVERY) or {}
    return digest(
        {
            "versions": session.versions,
            "plan": plan.digest(),
            "fused": (session.workspace.read(FUSE_RECORD) or {}).get("files"),
            "corrections": recovery.get("files"),
            "calibration": session.calibration_images.digest,
            "images": images.digest,
            "reading": session.reading,
            "finetune": section,
        }
    )
