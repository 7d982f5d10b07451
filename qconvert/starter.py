"""The request for a starter qconfig, and its text: what was found out filled in, what was not
marked `TODO`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qconvert.errors import QConfigError, QConfigFileError
from qconvert.qconfig import recordable
from qconvert.qconfig_file import missing, parsed, unlike

TODO = "TODO"


@dataclass(frozen=True)
class Request:
    """What the user has said. Paths are absolute."""

    target: Path
    source: str
    images: Path
    kwargs: Mapping[str, Any]
    checkpoint: Path | None
    evaluation: Path | None


def request(
    target: Path,
    source: str,
    images: Path,
    kwargs: str,
    checkpoint: Path | None,
    evaluation: Path | None,
    overwrite: bool,
) -> Request:
    """Checks the options of `qconvert init`; nothing is imported for it.

    Raises QConfigError that lists all mistakes.
    """
    facts = missing("--images", images, Path.is_dir, "folder")
    if checkpoint is not None:
        facts += missing("--checkpoint", checkpoint, Path.is_file, "file")
    if evaluation is not None:
        facts += missing("--evaluation", evaluation, Path.is_dir, "folder")
    file, colon, attribute = source.rpartition(":")
    if file.endswith(".py"):
        facts += missing("--source", Path(file), Path.is_file, "file")
        source = str(Path(file).resolve()) + colon + attribute
    arguments: dict[str, Any] = {}
    try:
        arguments = _arguments(kwargs)
    except ValueError as error:
        facts.append(f"--kwargs: {kwargs!r} {error}")
    facts += unlike(
        "the file to write",
        target,
        lambda path: not path.exists() or overwrite,
        f"{target} is there already; --force replaces it",
    )
    if facts:
        raise QConfigError(facts, where="init", fix="correct the options")
    return Request(
        target.resolve(),
        source,
        images.resolve(),
        arguments,
        checkpoint and checkpoint.resolve(),
        evaluation and evaluation.resolve(),
    )


def _arguments(text: str) -> dict[str, Any]:
    """Keyword arguments from YAML.

    Raises ValueError that says what is wrong with them.
    """
    try:
        value = parsed(text, "--kwargs")
    except QConfigFileError as error:
        raise ValueError(error.facts[0]) from None
    if not isinstance(value, dict):
        raise ValueError("is no mapping in YAML, as {num_classes: 10}")
    if odd := [key for key in value if not isinstance(key, str)]:
        raise ValueError(f"has the key {odd[0]!r}, which is no name of an argument")
    return recordable(value)


@dataclass(frozen=True)
class Setting:
    """A value, and a remark that is written behind it; `unsure` marks it for the user."""

    value: Any
    remark: str = ""
    unsure: bool = False


@dataclass(frozen=True)
class Findings:
    """What is known of a model and its images. Paths are absolute; keys are those of the
    qconfig."""

    source: str
    kwargs: Mapping[str, Any]
    checkpoint: Path | None
    checkpoint_remark: str
    output: Setting | None
    calibration: Path
    evaluation: Setting
    labels: Setting
    classes: Setting
    preprocess: Mapping[str, Setting]
    preprocess_remark: str = ""
    outputs: str = ""
    on_bad_image: Setting | None = None


def to_yaml(found: Findings, target: Path) -> str:
    """The qconfig; its paths are relative to the folder of `target`."""
    base = target.resolve().parent

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, base)).as_posix()

    def shown(value: Any) -> str:
        if isinstance(value, Path):
            value = relative(value)
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
        return text.removesuffix("\n").removesuffix("\n...")

    def line(indent: int, key: str, setting: Setting) -> str:
        mark = f"{TODO}: " if setting.unsure else ""
        remark = f"  # {mark}{setting.remark}" if setting.remark or mark else ""
        comment = "# " if setting.value is None else ""
        value = "" if setting.value is None else shown(setting.value)
        return f"{'  ' * indent}{comment}{key}: {value}".rstrip() + remark

    place, colon, name = found.source.rpartition(":")
    source = relative(Path(place)) + colon + name if place.endswith(".py") else found.source
    checkpoint = Setting(found.checkpoint, found.checkpoint_remark, found.checkpoint is None)
    lines = [
        "# Written by `qconvert init`. Every key and its default: docs/qconfig.md of qconvert.",
        f"# What could not be found out is marked {TODO}.",
        "version: 1",
        "model:",
        line(1, "source", Setting(source, found.outputs)),
        *([line(1, "kwargs", Setting(dict(found.kwargs)))] if found.kwargs else []),
        line(1, "checkpoint", checkpoint),
        *([line(1, "output", found.output)] if found.output else []),
        "data:",
        line(1, "calibration", Setting(found.calibration, "sets the ranges: typical, diverse")),
        line(1, "evaluation", found.evaluation),
        line(1, "labels", found.labels),
        line(1, "classes", found.classes),
        *([line(1, "on_bad_image", found.on_bad_image)] if found.on_bad_image else []),
    ]
    if found.preprocess_remark:
        lines.append(f"  # {found.preprocess_remark}")
    if found.preprocess:
        lines.append("  preprocess:")
        lines += [line(2, key, setting) for key, setting in found.preprocess.items()]
    lines += [
        "# budgets:                       # a missed one is exit code 1",
        "#   min_agreement: 0.98          # share of images with the same answer as float",
        "#   max_accuracy_drop: 0.005     # float top-1 minus int8 top-1, with labels",
        "#   min_speedup: 2.0",
        "# quantization:",
        "#   layers:                      # layers that lose too much stay in float",
        '#     - {match: "features.0*", precision: float32}',
        line(0, "output", Setting(base / f"{target.stem}-int8", "folder of everything written")),
    ]
    return "\n".join(lines) + "\n"
