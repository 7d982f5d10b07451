"""benchmark: the report, judged against the budgets."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from qconvert import torchscript
from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.detections import OVERLAP, SCORE
from qconvert.measurement.environment import here
from qconvert.measurement.latency import Latency, measure, thread_counts
from qconvert.qconfig_file import with_relative_paths
from qconvert.quantization.lowering.coverage import Coverage
from qconvert.quantization.recovery.trial import Trial
from qconvert.quantization.training.history import Training
from qconvert.reports.markdown import to_markdown
from qconvert.reports.plots import automation_svg
from qconvert.reports.record import (
    FloatOperator,
    GivenUp,
    Int8Share,
    KeptCode,
    Report,
    Size,
    check_budgets,
    verdict,
)
from qconvert.steps.auditing import PICTURE, recorded_audit
from qconvert.steps.convert import INT8, make_int8
from qconvert.steps.judging import judge
from qconvert.steps.measured import FLOAT
from qconvert.steps.page import write_page
from qconvert.steps.portability import check_shown, on_classes
from qconvert.steps.requests import file_recipe
from qconvert.steps.session import Session
from qconvert.workspace import write_atomically

JSON = "report.json"
MARKDOWN = "report.md"
AUTOMATION = "automation.svg"


def make_report(session: Session, classes: Sequence[str] = ()) -> Report:
    """Measures the converted model (converting first what is not) and writes the report; `classes`
    are those of CPUs that it is measured on, too.

    Raises QConfigError for a class that this machine cannot show.
    """
    check_shown(classes)
    converted = make_int8(session)
    workspace, config = session.workspace, session.config
    int8 = torchscript.load(workspace.path(INT8))
    accuracy = judge(
        session,
        int8,
        "measuring accuracy of the file",
        lambda others: file_recipe(others, workspace.path(INT8)),
    )
    with session.voice.busy("measuring latency"):
        latency = measure(
            workspace.path(FLOAT),
            {"int8": workspace.path(INT8)},
            session.timed,
            batch_sizes=config.benchmark.batch_sizes,
            threads=thread_counts(config.benchmark.threads),
            seconds=config.benchmark.seconds,
        )
    audit = recorded_audit(session)
    others = on_classes(session, workspace.path(INT8), classes)
    size, coverage = size_of(converted), coverage_of(converted)
    budgets = check_budgets(config.budgets, accuracy, latency[0], size, coverage)
    trained = converted["finetune"]
    report = Report(
        name=session.config_path.stem,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=here(),
        verdict=verdict(budgets),
        budgets=budgets,
        accuracy=accuracy,
        latency=tuple(latency),
        size=size,
        coverage=coverage,
        kept=tuple(KeptCode(**kept) for kept in converted["kept"]),
        parts_sqnr_db=converted["parts_sqnr_db"],
        fewer_bits=tuple(GivenUp(**layer) for layer in converted["fewer_bits"]),
        verified_isa=converted["verified_isa"],
        recovery=tuple(Trial(**trial) for trial in converted["recovery"]),
        finetune=None if trained is None else Training.model_validate(trained),
        classes=others,
        audit=None if audit is None else audit.model_copy(update={"rows": ()}),
        notes=tuple(notes(session, converted, accuracy, latency)),
        digests=converted["files"],
        qconfig=with_relative_paths(config, session.config_path.resolve().parent),
    )
    write_atomically(workspace.path(JSON), (report.model_dump_json(indent=2) + "\n").encode())
    pictures = {}
    if accuracy.confidence is not None:
        write_atomically(workspace.path(AUTOMATION), automation_svg(accuracy.confidence, "int8"))
        pictures["Accuracy against automation"] = AUTOMATION
    if audit is not None:
        pictures["The calibration images"] = PICTURE
    write_atomically(workspace.path(MARKDOWN), to_markdown(report, pictures).encode())
    write_page(session, report)
    return report


def size_of(converted: dict[str, Any]) -> Size:
    """The sizes in a record of `convert`."""
    float_bytes, int8_bytes = (converted["size_bytes"][name] for name in (FLOAT, INT8))
    return Size(float_bytes=float_bytes, int8_bytes=int8_bytes, ratio=int8_bytes / float_bytes)


def coverage_of(converted: dict[str, Any]) -> Int8Share:
    """The coverage in a record of `convert`."""
    found = Coverage.model_validate(converted["coverage"])
    return Int8Share(
        **found.model_dump(exclude={"operators", "counted"}),
        int8_macs_share=found.int8_macs_share,
        in_float=tuple(FloatOperator(**o) for o in converted["float_operators"]),
    )


def notes(
    session: Session, converted: dict[str, Any], accuracy: Comparison, latency: list[Latency]
) -> list[str]:
    """What a reader must know to trust the figures."""
    found = []
    if session.judged_on_calibration_images:
        found.append(
            "Accuracy was measured on the calibration images: set `data.evaluation` to others."
        )
    if session.config.data.takes_pixels:
        found.append(
            "Both files take pixels (uint8) and normalize them inside: latency includes that."
        )
    for role, images in (
        ("calibration", session.calibration_images),
        ("evaluation", session.evaluation_images),
    ):
        if images.skipped:
            found.append(f"{images.skipped} {role} images could not be read and were skipped.")
    if not accuracy.metrics:
        found.append(_nothing_measured(session, accuracy))
    if converted["parts_sqnr_db"] is not None:
        found.append(
            f"The converted parts have {converted['parts_sqnr_db']:.1f} dB of SQNR, each on the "
            "inputs that it has in the float model."
        )
    if given := converted["given"]:
        found.append(
            f"{len(given)} operators are quantized in the source already and are left alone: "
            f"{', '.join(given[:3])}{', …' if len(given) > 3 else ''}."
        )
    found += [
        f"The file calls operators of {name}: `import {name}` before `torch.jit.load`."
        for name in converted["needs"]
    ]
    if not here().vnni and session.config.quantization.isa == "vnni":
        found.append("This CPU has no VNNI and the file is made for CPUs that have it.")
    found.extend(_busy(latency))
    return found


def _nothing_measured(session: Session, accuracy: Comparison) -> str:
    if accuracy.cosine is None:
        return (
            "Detections have no accuracy here: agreement is the share of boxes from a score of "
            f"{SCORE:g} on that float has too, with the same label and an overlap of {OVERLAP:g}."
        )
    if accuracy.agreement is None:
        return "The outputs are no classes: the cosine stands in for accuracy."
    if session.evaluation_images.labels is None:
        return "There are no labels: agreement with float stands in for accuracy."
    if session.config.label_kind == "texts":
        return "No metric reads the labels (benchmark.metrics, benchmark.decoder)."
    return "Answers are of pixels, labels of images: agreement with float stands in for accuracy."


def _busy(latency: list[Latency]) -> list[str]:
    """More threads that are slower, or figures that scatter, are the machine's, not the model's."""
    found = []
    for row in latency:
        if row.unsteady:
            found.append(
                f"Latency of {', '.join(row.unsteady)} at batch {row.batch_size}, {row.threads} "
                f"thread{'s' if row.threads > 1 else ''} scatters by more than a quarter: the "
                "machine was busy; measure again."
            )
        single = [r for r in latency if r.batch_size == row.batch_size and r.threads == 1]
        if single and row.threads > 1:
            for name, timing in {"float": row.baseline, **row.models}.items():
                alone = {"float": single[0].baseline, **single[0].models}[name]
                if timing.median_s.value > 1.5 * alone.median_s.value:
                    found.append(
                        f"{name} is slower with {row.threads} threads than with one: the cores "
                        "are shared with other work, and this figure is not the model's."
                    )
    return found
