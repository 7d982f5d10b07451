"""What a command ends with: figures against float, files, the next command."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qconvert import torchscript
from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.latency import Latency, measure
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.training.history import Training
from qconvert.reports.analysis import analysis_lines, analysis_table
from qconvert.reports.inspection_pictures import file_picture, forecast_picture
from qconvert.reports.inspection_tables import file_lines, file_tables, forecast_tables
from qconvert.reports.record import FloatOperator, Report
from qconvert.reports.tables import (
    Table,
    accuracy_tables,
    all_tables,
    before_and_after_table,
    latency_tables,
    megabytes,
)
from qconvert.reports.trail import missed_line, trail_table
from qconvert.starter import TODO, Request
from qconvert.steps import analyze as analyze_step
from qconvert.steps import benchmark as benchmark_step
from qconvert.steps import calibrate as calibrate_step
from qconvert.steps import convert as convert_step
from qconvert.steps import finetune as finetune_step
from qconvert.steps import fuse as fuse_step
from qconvert.steps.auditing import PICTURE as AUDIT_PICTURE
from qconvert.steps.auditing import audit_lines, recorded_audit
from qconvert.steps.equalization import trials_of_equalization
from qconvert.steps.init import write_starter
from qconvert.steps.inspect import draw, foretell, look_into
from qconvert.steps.judging import judge
from qconvert.steps.measured import FLOAT
from qconvert.steps.overflow import RECORD as OVERFLOW
from qconvert.steps.overflow import WITHOUT_VNNI, make_overflow, planned
from qconvert.steps.page import HTML
from qconvert.steps.recovery import trial_lines
from qconvert.steps.requests import Recipe, file_recipe
from qconvert.steps.session import Session
from qconvert.steps.timings import make_timings
from qconvert.steps.trail_log import FOLDER as TUNED_FOLDER
from qconvert.steps.trail_log import QCONFIG as TUNED
from qconvert.steps.trail_log import RECORD as TRAIL
from qconvert.steps.tune import PICTURE as TUNE_PICTURE
from qconvert.steps.tune import make_tuned
from qconvert.steps.two_terms import base_of, int8_base, trials_of_two_terms
from qconvert.steps.voice import Voice

# Longest measuring time of the latency that `fuse`, `calibrate` and `convert` end with.
_QUICK_SECONDS = 2.0
# Layers with fewer bits that `convert` names in the terminal; the report names all.
_LAYERS_SHOWN = 5


@dataclass(frozen=True)
class Outcome:
    """One command's result, to be shown or printed as JSON."""

    command: str
    lines: tuple[str, ...]
    tables: tuple[Table, ...]
    files: tuple[Path, ...]
    following: str | None
    data: dict[str, Any]
    budgets_missed: tuple[str, ...] = field(default=())

    def to_json(self) -> str:
        """The record, the figures and the files."""
        files = [str(path) for path in self.files]
        return json.dumps({"command": self.command, "files": files, **self.data}, indent=2)


def run_init(request: Request, voice: Voice) -> Outcome:
    """Writes a starter qconfig, and says what is left to the user."""
    write_starter(request, voice)
    text = request.target.read_text(encoding="utf-8")
    marked = [line.strip() for line in text.splitlines() if f"# {TODO}: " in line]
    lines = (
        text,
        f"marked {TODO}, to be looked at first: {len(marked)}"
        if marked
        else "everything could be found out",
    )
    data = {"todo": marked}
    return Outcome("init", lines, (), (request.target,), "benchmark", data)


def run_inspect(session: Session, svg: Path | None) -> Outcome:
    """Tells what will become of a qconfig's model; writes nothing but the picture."""
    foretold = foretell(session)
    found = foretold.forecast
    if svg is not None:
        draw(forecast_picture(found, session.config_path.stem), svg)
    lines = (
        f"{found.share('int8'):.2%} of multiply-accumulates in int8 with fixed ranges, "
        f"{found.share('dynamic'):.2%} with dynamic ranges, {found.share('float32'):.2%} in float; "
        f"{found.boundaries} boundaries",
        *(f"kept as written: {path or 'the model'}: {why}" for path, why in foretold.kept),
    )
    summary = {
        "macs": found.macs(),
        "macs_shares": {name: found.share(name) for name in ("int8", "dynamic", "float32")},
        "boundaries": found.boundaries,
        "estimated_microseconds": found.microseconds,
    }
    data = {
        "summary": summary,
        **found.model_dump(mode="json", exclude={"boundaries"}),
        "blocks": [block.model_dump(mode="json") for block in foretold.blocks],
        "kept": [{"path": path, "reason": why} for path, why in foretold.kept],
    }
    tables = tuple(forecast_tables(found, foretold.blocks))
    return Outcome("inspect", lines, tables, _drawn(svg), None, data)


def run_inspect_file(
    path: Path, shapes: Sequence[tuple[int, ...]], svg: Path | None, voice: Voice
) -> Outcome:
    """Tells what is in a TorchScript file."""
    file, found = look_into(path, shapes, voice)
    if svg is not None:
        draw(file_picture(found, path.name), svg)
    data = {"file": str(path), **found.model_dump(mode="json"), "manifest": file.manifest}
    tables = tuple(file_tables(found, file.manifest))
    return Outcome("inspect", tuple(file_lines(found)), tables, _drawn(svg), None, data)


def _drawn(svg: Path | None) -> tuple[Path, ...]:
    return () if svg is None else (svg,)


def run_fuse(session: Session) -> Outcome:
    """Fuses, then measures the fused model."""
    record = fuse_step.make_fused(session)
    path = session.workspace.path(fuse_step.FUSED)
    accuracy = judge(
        session,
        torchscript.load(path),
        "measuring accuracy",
        lambda others: file_recipe(others, path),
    )
    latency = _quick_latency(session, {"fused": path})
    refused = tuple(f"not fused: {r['operator']}: {r['reason']}" for r in record["refused"])
    pairs = Table(
        "Fused",
        ("operators computed as one",),
        tuple((" + ".join(names),) for names in _groups(record)),
    )
    lines = (
        f"{len(record['folded'])} batch norms folded, {len(record['paired'])} activations paired",
        f"largest difference from the original on {len(session.proofs)} real images: "
        f"{record['largest_difference']:.1e} of the largest output "
        f"(tolerance {record['tolerance']:.0e})",
        *fuse_step.kept_lines(record),
        *refused,
    )
    names = (FLOAT, fuse_step.FUSED, fuse_step.RECORD)
    tables = (pairs, *accuracy_tables(accuracy, "fused"), *latency_tables(latency))
    return _outcome(session, "fuse", lines, tables, names, "calibrate", record, accuracy, latency)


def run_calibrate(session: Session) -> Outcome:
    """Calibrates, then simulates the plan that the ranges give."""
    record = calibrate_step.make_calibration(session)
    timings = make_timings(session)
    plan = planned(session, timings, make_overflow(session, timings))
    model = int8_base(session)
    simulated = convert_step.simulate(model, plan)
    recipe = Recipe(plan=plan, base=base_of(session))
    accuracy = judge(session, simulated, "simulating int8 accuracy", lambda _: recipe)
    latency = _quick_latency(session, {})
    lines = (
        f"{record['images']} images, {len(record['tensors'])} tensors, observer "
        f"{session.config.quantization.activations.observer}",
        f"planned: {plan.int8_macs:.2%} of multiply-accumulates in int8",
        *trial_lines((*trials_of_equalization(session), *trials_of_two_terms(session))),
        *(audit_lines(audit) if (audit := recorded_audit(session)) else ()),
    )
    names = [calibrate_step.DISTRIBUTIONS, AUDIT_PICTURE, calibrate_step.RECORD]
    names += [OVERFLOW] if WITHOUT_VNNI[session.config.quantization.isa] else []
    tables = (*accuracy_tables(accuracy, "int8, simulated"), *latency_tables(latency))
    return _outcome(
        session, "calibrate", lines, tables, names, "convert", record, accuracy, latency
    )


def run_analyze(session: Session, images: int) -> Outcome:
    """Tells which operators cost accuracy."""
    found = analyze_step.make_analysis(session, images)
    return Outcome(
        "analyze",
        analysis_lines(found),
        (analysis_table(found),) if found.worst else (),
        tuple(session.workspace.path(name) for name in (analyze_step.RECORD, analyze_step.PLOT)),
        None,
        {"analysis": found.model_dump(mode="json")},
    )


def run_convert(session: Session) -> Outcome:
    """Converts, then times the file."""
    record = convert_step.make_int8(session)
    accuracy = Comparison.model_validate(record["accuracy"])
    int8 = session.workspace.path(convert_step.INT8)
    latency = _quick_latency(session, {"int8": int8})
    size = benchmark_step.size_of(record)
    coverage = benchmark_step.coverage_of(record)
    verification = record["verification"]
    lines = (
        f"{megabytes(size.int8_bytes)}, {size.ratio:.3f} of float; "
        f"{coverage.int8_macs_share:.2%} of multiply-accumulates in int8",
        f"verified in a fresh process at batch sizes "
        f"{' and '.join(map(str, verification['batch_sizes']))}: largest difference "
        f"{verification['largest_difference']:.1e} of the largest output",
        _size_line(record),
        *trial_lines([Trial.model_validate(trial) for trial in record["recovery"]]),
        *_training_lines(record["finetune"]),
        *fuse_step.kept_lines(session.workspace.read(fuse_step.RECORD) or {}),
        *_fewer_bits(record),
        *_in_float(coverage.in_float),
        *benchmark_step.notes(session, record, accuracy, latency),
    )
    names = (convert_step.PLAN, convert_step.INT8, convert_step.RECORD)
    tables = (*accuracy_tables(accuracy, "int8"), *latency_tables(latency))
    return _outcome(
        session, "convert", lines, tables, names, "benchmark", record, accuracy, latency
    )


def run_finetune(session: Session) -> Outcome:
    """Trains, converts, and shows what `convert` does beside what was there before."""
    record = finetune_step.make_finetuned(session)
    # What was made again on the way is not made a third time.
    converted = run_convert(replace(session, force=False))
    before = Comparison.model_validate(record["before"])
    after = Comparison.model_validate(converted.data["accuracy"])
    tables = (before_and_after_table(before, after), *converted.tables)
    training = Training.model_validate(record["training"])
    lines = () if training.kept else (f"finetune: {training.line}",)
    names = (finetune_step.WEIGHTS, finetune_step.RECORD)
    return replace(
        converted,
        command="finetune",
        lines=(*lines, *converted.lines),
        tables=tables,
        files=(*(session.workspace.path(name) for name in names), *converted.files),
        data={**converted.data, "finetune": record},
    )


def run_benchmark(session: Session, classes: Sequence[str] = ()) -> Outcome:
    """Measures everything, also on these classes of CPUs, and judges the budgets."""
    report: Report = benchmark_step.make_report(session, classes)
    missed = tuple(
        f"{b.name}: {'not measurable' if b.found is None else f'{b.found:.4f}'}, "
        f"the budget is {b.limit:g}"
        for b in report.budgets
        if not b.met
    )
    lines = (f"verdict: {report.verdict}", *report.notes)
    names = [convert_step.INT8, benchmark_step.JSON, benchmark_step.MARKDOWN, HTML]
    if report.accuracy.confidence is not None:
        names.append(benchmark_step.AUTOMATION)
    return Outcome(
        "benchmark",
        lines,
        tuple(all_tables(report)),
        tuple(session.workspace.path(name) for name in names),
        None,
        {"report": report.model_dump(mode="json")},
        missed,
    )


def run_tune(session: Session) -> Outcome:
    """Looks for the fastest settings that meet the budgets, and converts with them."""
    trail, limits = make_tuned(session), session.config.budgets
    best = trail.trial(trail.best or 1)
    proof, path = best.proof, session.config.tune.qconfig or session.workspace.path(TUNED)
    assert proof is not None
    missed = missed_line(best.budgets(limits))
    lines = (
        f"{'all budgets met' if trail.met else 'budgets missed'} (trials: {len(trail.trials)}); "
        f"ended: {trail.ended}",
        f"trial {best.number}, {best.settings.line}, measured: "
        f"{1e3 * proof.latency_s.value:.2f} ms, {proof.speedup.value:.2f} times as fast as float",
        *([] if trail.met else [f"the nearest that was found misses {missed}"]),
        *trail.notes,
    )
    folder = session.workspace.path(TUNED_FOLDER)
    files = (path, folder / convert_step.INT8, folder / benchmark_step.MARKDOWN,
             session.workspace.path(TRAIL), session.workspace.path(TUNE_PICTURE))  # fmt: skip
    return Outcome(
        "tune", lines, (trail_table(trail, limits),), files, None,
        {"trail": trail.model_dump(mode="json")}, () if trail.met else (missed,),
    )  # fmt: skip


def _quick_latency(session: Session, files: dict[str, Path]) -> list[Latency]:
    with session.voice.busy("measuring latency at batch 1, one thread"):
        return measure(
            session.workspace.path(FLOAT),
            files,
            session.timed,
            batch_sizes=[1],
            threads=[1],
            seconds=min(_QUICK_SECONDS, session.config.benchmark.seconds),
        )


def _outcome(
    session: Session,
    command: str,
    lines: Sequence[str],
    tables: Sequence[Table],
    names: Sequence[str],
    following: str,
    record: dict[str, Any],
    accuracy: Comparison,
    latency: Sequence[Latency],
) -> Outcome:
    figures = {
        "accuracy": accuracy.model_dump(mode="json"),
        "latency": [row.model_dump(mode="json") for row in latency],
    }
    return Outcome(
        command,
        tuple(lines),
        tuple(tables),
        tuple(session.workspace.path(name) for name in names),
        following,
        {"record": record, **figures},
    )


def _training_lines(training: dict[str, Any] | None) -> list[str]:
    return [] if training is None else [f"finetune: {Training.model_validate(training).line}"]


def _fewer_bits(record: dict[str, Any]) -> list[str]:
    """What was given up for CPUs without VNNI, and on which classes the file was tried."""
    layers = record["fewer_bits"]
    lines = [
        f"fewer bits: {layer['name']}: {layer['extent']}: {layer['reason']}"
        for layer in layers[:_LAYERS_SHOWN]
    ]
    if len(layers) > _LAYERS_SHOWN:
        lines.append(f"fewer bits: {len(layers) - _LAYERS_SHOWN} layers more, in plan.json")
    tried = [
        name if sqnr is None else f"{name} ({sqnr:.1f} dB)"
        for name, sqnr in record["verified_isa"].items()
    ]
    return [*lines, f"verified on {', '.join(tried)}"] if len(tried) > 1 else lines


def _in_float(operators: Sequence[FloatOperator]) -> list[str]:
    """One line for each reason; `plan.json` and the report name every operator."""
    names: dict[tuple[str, str], list[str]] = {}
    for operator in operators:
        # "its input x is float" is one reason, whatever the input.
        reason = re.sub(r"^its input .* is float", "an input of it is float", operator.reason)
        reason = re.sub(r" \(.* microseconds.*\)$", "", reason)
        names.setdefault((operator.kind, reason), []).append(operator.name)
    return [
        f"in float: {', '.join(found[:3])}{', …' if len(found) > 3 else ''} "
        f"({len(found)} {kind}): {reason}"
        for (kind, reason), found in names.items()
    ]


def _size_line(record: dict[str, Any]) -> str:
    """At which heights and widths the file works."""
    other = record["other_size"]
    if other is None:
        return "the float model works at no other height and width that was tried"
    height, width = other["shape"][-2:]
    if other["why_not"] is None:
        return f"the file also works at {height} x {width}"
    return (
        f"the file works at one size only, the float model also at {height} x {width}: "
        f"{other['why_not']}"
    )


def _groups(record: dict[str, Any]) -> list[list[str]]:
    """Folded and paired operators, each layer once."""
    paired_layers = {names[0] for names in record["paired"]}
    folded_only = [names for names in record["folded"] if names[0] not in paired_layers]
    return [*record["paired"], *folded_only]
