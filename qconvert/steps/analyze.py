"""analyze: what int8 costs at each operator of the model that `convert` makes, on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

from qconvert.images.folder import ImageSet
from qconvert.qconfig import LayerRule
from qconvert.quantization.plan import FewerBits
from qconvert.quantization.planning import make_plan
from qconvert.quantization.sensitivity.analysis import analyze, try_plans
from qconvert.quantization.sensitivity.record import Sensitivity
from qconvert.quantization.sensitivity.subject import Subject, with_plan
from qconvert.reports.analysis import Analysis
from qconvert.reports.plots import analysis_svg
from qconvert.steps.calibrate import make_calibration, read_calibration
from qconvert.steps.fuse import check_same_weights
from qconvert.steps.measured import measured
from qconvert.steps.overflow import make_overflow, plan_inputs, planned
from qconvert.steps.recovery import recovered
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import Timings, costs_by, make_timings
from qconvert.steps.two_terms import int8_base
from qconvert.workspace import digest, write_atomically

RECORD = "analysis.json"
PLOT = "analysis.svg"
# Rules that are tried, and the least gain (dB) of an operator for which one is.
_TRIED, _WORTH_DB = 3, 0.1


def make_analysis(session: Session, images: int) -> Analysis:
    """Writes `analysis.json` and `analysis.svg`, unless fresh: of at most so many evaluation
    images, drawn evenly.

    Raises NotFiniteImageError that names images on which the float model is not finite.
    """
    calibration_record = make_calibration(session)
    fused_record = session.workspace.read(FUSE_RECORD) or {}
    timings = make_timings(session)
    fewer_bits = make_overflow(session, timings)
    chosen = _evenly(session.evaluation_images, images)
    key = _key(session, fused_record, calibration_record, timings, fewer_bits, chosen)
    record = session.fresh("analyze", RECORD, lambda _: key)
    if record is not None:
        return _read(record)
    check_same_weights(session, fused_record)
    corrected, plan, _ = recovered(session, planned(session, timings, fewer_bits))
    output = measured(fused_record).name
    subject = Subject(int8_base(session), corrected, plan, output)
    with session.voice.progress("each operator alone") as progress:
        found = analyze(subject, chosen, session.read, progress=progress)
    with session.voice.busy("trying rules for the worst"):
        rules = _rules(found, session.config.quantization.activations.observer)
        others = ((r, _with_rule(session, subject, r, timings, fewer_bits)) for r in rules)
        trials = try_plans(subject, others, chosen, session.read)
    analysis = Analysis(
        name=session.config_path.stem,
        images=len(chosen),
        of_images=len(session.evaluation_images),
        calibration_images=session.judged_on_calibration_images,
        measured_output=output if session.fused.assembly.whole else None,
        plan=plan.digest(),
        trials=trials,
        **dict(found),
    )
    write_atomically(session.workspace.path(PLOT), analysis_svg(analysis))
    session.workspace.write_record(RECORD, key, (PLOT,), analysis.model_dump(mode="json"))
    return analysis


def _with_rule(
    session: Session,
    subject: Subject,
    rule: dict[str, Any],
    timings: Timings | None,
    fewer_bits: Mapping[str, FewerBits],
) -> Subject:
    """The plan that `convert` would make with one rule more; recovery is not run again."""
    section = session.config.quantization
    layers = (*section.layers, LayerRule.model_validate(rule))
    more, costs = section.model_copy(update={"layers": layers}), costs_by(session, timings)
    plan = make_plan(subject.model, read_calibration(session), more, costs, fewer_bits)
    return with_plan(subject, plan)


def recorded_analysis(session: Session) -> Analysis | None:
    """What an earlier `analyze` found; of which plan, it says itself."""
    record = session.workspace.read(RECORD)
    if record is None:
        return None
    try:
        return _read(record)
    except ValueError:  # of another version, or damaged
        session.voice.say(f"{RECORD} is not read: let `qconvert analyze` write it again")
        return None


def _read(record: dict[str, Any]) -> Analysis:
    return Analysis.model_validate({k: v for k, v in record.items() if k not in ("key", "files")})


def _evenly(images: ImageSet, count: int) -> ImageSet:
    """So many of them, each the first of as many equal parts."""
    count = min(count, len(images))
    chosen = {images.files[i * len(images) // count] for i in range(count)}
    return images.without(set(images.files) - chosen)


def _rules(found: Sensitivity, observer: str) -> list[dict[str, Any]]:
    """For the operators that cost most, if that is not by chance: to keep each in float, or the
    module that holds it and others, between which nothing is rounded then; and where its result
    loses most by clipping, to hold all of its range (which `auto` and `histogram` have weighed)."""
    named = [place for place in found.places if place.precision != "boundary"]
    worth = [
        place
        for place in named
        if place.gain_db is not None and place.gain_db.value >= _WORTH_DB and place.gain_db.low > 0
    ]
    worth.sort(key=lambda place: place.rank_gain or 0)
    rules: list[dict[str, Any]] = []
    for place in worth[:_TRIED]:
        module = _holding(place.name, [other.name for other in named])
        rules += [
            {"match": escape(name), "precision": "float32"}
            for name in (place.name, module)
            if name is not None
        ]
        clipped = place.result is not None and place.result.clipping > 0.5
        if clipped and observer not in ("auto", "histogram"):
            rules.append({"match": escape(place.name), "activations": {"observer": "minmax"}})
    return [rule for i, rule in enumerate(rules) if rule not in rules[:i]]


def _holding(name: str, names: Sequence[str]) -> str | None:
    """The smallest module that holds this operator and others, if it is no more than a quarter of
    the model."""
    while "." in name:
        name = name.rpartition(".")[0]
        held = sum(other.startswith(f"{name}.") for other in names)
        if held > 1:
            return name if held <= len(names) / 4 else None
    return None


def _key(
    session: Session,
    fused_record: dict[str, Any],
    calibration_record: dict[str, Any],
    timings: Timings | None,
    fewer_bits: Mapping[str, FewerBits],
    chosen: ImageSet,
) -> str:
    return digest(
        {
            **plan_inputs(session, fused_record, calibration_record, timings, fewer_bits),
            "images": [chosen.digest, session.judged_on_calibration_images],
            "output": fused_record["measured_output"],
            "name": session.config_path.stem,
        }
    )
