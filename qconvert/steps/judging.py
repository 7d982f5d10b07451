"""What is measured of a model on the evaluation images, as the qconfig says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qconvert import torchscript
from qconvert.errors import LabelError, MetricError
from qconvert.images.stream import Receiver
from qconvert.measurement import answers, metrics
from qconvert.measurement.accuracy import (
    Comparison,
    Judge,
    check_classes,
    compare,
    lend_comparison,
)
from qconvert.measurement.answers import Decoder
from qconvert.measurement.detections import compare_detections, lend_detections
from qconvert.measurement.metrics import Metric
from qconvert.qconfig import TOP_K, LabelKind, is_callable
from qconvert.ranks.team import First
from qconvert.registry import DECODERS, METRICS
from qconvert.steps.measured import FLOAT, Measured, measured
from qconvert.steps.requests import Judging, Recipe, send_file
from qconvert.steps.same_model import check_model
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.user_code import Imports, folder_of, keep_importable, resolve

# Top-5 is worth a line where there are more classes than five.
_FIVE = 5
_PER_CLASS = "per_class"


def judge(
    session: Session,
    model: Callable[..., Any],
    title: str,
    recipe: Callable[[First], Recipe] | None,
) -> Comparison:
    """A model's accuracy beside the float model's, on the evaluation images. By its `recipe` other
    ranks make the same model; it is asked for if there are any. Without one they have no part in
    it."""
    others, record = session.others, session.workspace.read(FUSE_RECORD) or {}
    if recipe is None:
        others = None
    elif others is not None:
        _ask(session, others, record, recipe(others))
    original = torchscript.freeze(torchscript.load(session.workspace.path(FLOAT)))
    seen = measured(record)
    images, read = session.evaluation_images, session.read
    batch_size = session.config.calibration.batch_size
    chosen = judge_of(session, seen)
    with session.voice.progress(title) as progress:
        if seen.detections:
            return compare_detections(
                original, model, images, read,
                batch_size=batch_size, progress=progress, others=others,
            )  # fmt: skip
        return compare(
            seen.of(original),
            seen.of(model),
            images,
            read,
            chosen,
            batch_size=batch_size,
            progress=progress,
            others=others,
        )


def _ask(session: Session, others: First, record: dict[str, Any], recipe: Recipe) -> None:
    original = send_file(others, session.workspace.path(FLOAT))
    others.ask(Judging(session.skipped, record, original, recipe))
    if recipe.plan is not None:
        check_model(session, others)


def lend_judging(
    session: Session,
    original: Any,
    model: Callable[..., Any],
    record: dict[str, Any],
    receiver: Receiver,
) -> None:
    """Another rank's share of `judge`; `original` is the model in `float.pt`, `record` that of
    `fuse`."""
    seen, original = measured(record), torchscript.freeze(original)
    images, read = session.evaluation_images, session.read
    batch_size = session.config.calibration.batch_size
    if seen.detections:
        lend_detections(original, model, images, read, receiver, batch_size=batch_size)
        return
    chosen = judge_of(session, seen)
    lend_comparison(
        seen.of(original), seen.of(model), images, read, chosen, receiver, batch_size=batch_size
    )


def judge_of(session: Session, seen: Measured) -> Judge:
    """What the outputs are and what is measured of them.

    Raises LabelError when they cannot be the labels' classes or the decoder's characters, and
    MetricError when a callable of the qconfig cannot be had or a metric does not go with them.
    """
    section, kind = session.config.benchmark, session.config.label_kind
    decoder = _decoder(session)
    if decoder is not None:
        decoder.check(seen.shape)
    elif seen.answers and len(seen.shape) == 2:
        decoder = answers.Classes()
        check_classes(session.evaluation_images, seen.shape[1])
    found, per_class = _metrics(session, seen, kind)
    return Judge(
        decoder=decoder,
        pixels=seen.answers and len(seen.shape) > 2,
        metrics=found,
        per_class=per_class,
        required_accuracy=section.automation_accuracy,
    )


def what_judges(session: Session) -> dict[str, Any]:
    """What figures of accuracy depend on, beside model and images."""
    section = session.config.benchmark
    settings = section.model_dump(
        mode="json", include={"metrics", "decoder", "ctc_blank", "automation_accuracy"}
    )
    code: dict[str, str] = {}
    for source, where in _callables(session):
        code |= _resolved(source, where)[1]
    return {**settings, "kind": session.config.label_kind, "code": code}


def _callables(session: Session) -> list[tuple[str, str]]:
    """The user's own decoder and metrics, with the key that names each."""
    section = session.config.benchmark
    named = () if section.metrics == "auto" else section.metrics
    found = [(name, "benchmark.metrics") for name in named if is_callable(name)]
    if section.decoder is not None and is_callable(section.decoder):
        found.append((section.decoder, "benchmark.decoder"))
    return found


def _resolved(source: str, where: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """A callable of the user's, and the digests of her code that it needs."""
    keep_importable(folder_of(source))
    with Imports(folder_of(source)) as imports:
        return resolve(source, MetricError, where), imports.digests()


def _decoder(session: Session) -> Decoder | None:
    name = session.config.benchmark.decoder
    if name is None:
        return None
    if is_callable(name):
        return answers.Users(_resolved(name, "benchmark.decoder")[0])
    alphabet = session.evaluation_images.classes
    if alphabet is None:
        raise LabelError(
            f"the decoder {name} does not know the characters",
            where="data.classes",
            fix="name a file with the model's characters in its order, without the blank",
        )
    made: Decoder = DECODERS[name].load()(alphabet, session.config.benchmark.ctc_blank)
    return made


def _metrics(session: Session, seen: Measured, kind: LabelKind) -> tuple[list[Metric], bool]:
    """The metrics in the qconfig's order, and whether the classes are told one by one."""
    section = session.config.benchmark
    decoded = section.decoder is not None
    classes = seen.shape[1] if seen.answers else 0
    if section.metrics == "auto":
        return [_metric(name, decoded) for name in _usual(seen, kind, decoded)], False
    rows, pixels = seen.answers and len(seen.shape) == 2, seen.answers and len(seen.shape) > 2
    for name in section.metrics:
        top = TOP_K.fullmatch(name) is not None
        if seen.detections or ((top or name == _PER_CLASS) and not rows):
            raise _not_of(name, seen, "one row of classes for each image")
        if name == "mean_iou" and not pixels:
            raise _not_of(name, seen, "classes for each pixel")
        if top and int(name.removeprefix("top")) > classes:
            raise _not_of(name, seen, "so many classes")
    wanted = [_metric(name, decoded) for name in section.metrics if name != _PER_CLASS]
    return wanted, _PER_CLASS in section.metrics


def _usual(seen: Measured, kind: LabelKind, decoded: bool) -> list[str]:
    """What `auto` measures."""
    if kind == "texts" and decoded:
        return ["exact_match", "character_error_rate"]
    if kind == "masks" and seen.answers and len(seen.shape) > 2:
        return ["mean_iou"]
    if kind == "classes" and seen.answers and len(seen.shape) == 2:
        return ["top1", "top5"] if seen.shape[1] > _FIVE else ["top1"]
    return []


def _metric(name: str, decoded: bool) -> Metric:
    if is_callable(name):
        # Without the folders of a user, as reports name it.
        short = name if ".py:" not in name else Path(name).name
        return metrics.Users(short, _resolved(name, "benchmark.metrics")[0], decoded)
    if (top := TOP_K.fullmatch(name)) is not None:
        return metrics.TopK(int(top[1]))
    made: Metric = METRICS[name].load()()
    return made


def _not_of(name: str, seen: Measured, wanted: str) -> MetricError:
    found = "detections" if seen.detections else f"outputs of shape {list(seen.shape)}"
    return MetricError(
        f"{name} is of {wanted}, the model returns {found}",
        where="benchmark.metrics",
        fix="choose another metric (docs/metrics.md), another output with `model.output`, or say "
        "with `model.answers` what outputs are",
    )
