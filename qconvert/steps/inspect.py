"""inspect: what will become of a qconfig's model, or what is in a TorchScript file. Nothing is
calibrated, and nothing is written but the picture that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from qconvert.errors import OutputError
from qconvert.models.model_file import ModelFile, open_model
from qconvert.quantization.advice import Block, resisting_blocks
from qconvert.quantization.forecast import Forecast, forecast
from qconvert.quantization.lowering.file_inspection import FileInspection, inspect_file
from qconvert.reports.graph_svg import Picture, to_svg
from qconvert.steps.session import Session
from qconvert.steps.timings import costs_by, recorded_timings
from qconvert.steps.voice import Voice
from qconvert.workspace import write_atomically


@dataclass(frozen=True)
class Foretold:
    """What will become of a model: `kept` are paths and reasons of modules that are computed as
    they are written."""

    forecast: Forecast
    blocks: tuple[Block, ...]
    kept: tuple[tuple[str, str], ...]


def foretell(session: Session) -> Foretold:
    """The planner's decisions for a qconfig, as today's code takes them.

    Raises UnsupportedError for code that is kept, if TorchScript cannot compile it.
    """
    section = session.config.quantization
    timings = recorded_timings(session)
    if section.decide == "measure" and timings is None:
        session.voice.say(
            "inspect: no operators of this model were timed yet (quantization.decide: measure): "
            "decided by the shipped table; `qconvert calibrate` times them"
        )
    model = session.float_model.module
    with session.voice.busy("fusing and deciding"):
        fused = session.fused
        kept = tuple({part.path: part.reason for part in fused.kept}.items())
        if kept:
            fused.assembly.original()
        paths = frozenset(path for path, _ in kept)
        found = forecast(fused, section, costs_by(session, timings), paths, session.example)
    blocks = resisting_blocks(found, lambda path: _class_name(model, path), kept)
    return Foretold(found, blocks, kept)


def _class_name(model: nn.Module, path: str) -> str:
    """Of the module at a path of the user's model; empty where there is none."""
    try:
        return type(model.get_submodule(path)).__name__
    except AttributeError:
        return ""


def look_into(
    path: Path, shapes: Sequence[tuple[int, ...]], voice: Voice
) -> tuple[ModelFile, FileInspection]:
    """What is in a file.

    Raises ModelFileError.
    """
    with voice.busy(f"reading {path.name}"):
        file = open_model(path)
        return file, inspect_file(file, shapes)


def draw(picture: Picture, target: Path) -> None:
    """Writes a picture.

    Raises OutputError.
    """
    try:
        write_atomically(target, to_svg(picture).encode())
    except OutputError as error:
        raise OutputError(error.facts, where=error.where, fix="name another file") from error
