"""What the int8 file is on lesser CPUs than this one: measured in processes that are limited to a
class of CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from qconvert import torchscript
from qconvert.errors import QConfigError, VerificationError
from qconvert.measurement.cpu_classes import CLASSES, LIMITS, can_be_shown, class_here
from qconvert.measurement.latency import measure, thread_counts
from qconvert.measurement.limited import LimitedProcess
from qconvert.measurement.statistics import decibels
from qconvert.reports.record import OnClass
from qconvert.steps.judging import judge
from qconvert.steps.measured import FLOAT, Measured
from qconvert.steps.overflow import WITHOUT_VNNI
from qconvert.steps.session import Session

# How far the SQNR of a class may be below that of this CPU, in dB, before the file is refused: a
# kernel that overflows costs more.
_TOLERANCE_DB = 6.0
# Above this it does not matter.
_ENOUGH_DB = 40.0


def check_shown(classes: Sequence[str]) -> None:
    """Raises QConfigError for a class that is unknown or that this machine cannot be limited to."""
    unknown = [name for name in classes if name not in CLASSES]
    if unknown:
        raise QConfigError(
            f"unknown class of CPUs: {', '.join(unknown)}",
            where="--isa",
            fix=f"name some of {', '.join(CLASSES)}",
        )
    hidden = [name for name in classes if not can_be_shown(name)]
    if hidden:
        raise QConfigError(
            f"this CPU (class {class_here() or 'none of x86'}) cannot show {', '.join(hidden)}",
            where="--isa",
            fix="name the classes that it has, or run this on a CPU that has more",
        )


def on_classes(session: Session, file: Path, classes: Sequence[str]) -> tuple[OnClass, ...]:
    """Accuracy and latency of the file on each class, float beside int8 as limited."""
    section, workspace = session.config.benchmark, session.workspace
    int8 = file.read_bytes()
    needs = torchscript.needs(torchscript.load(int8))
    found = []
    for name in classes:
        with LimitedProcess(name, needs) as process:
            # The limited process is this machine's: other ranks have none.
            model = process.load(int8)
            accuracy = judge(session, model, f"measuring accuracy on {name}", None)
        with session.voice.busy(f"measuring latency on {name}"):
            latency = measure(
                workspace.path(FLOAT),
                {"int8": file},
                session.timed,
                batch_sizes=section.batch_sizes[:1],
                threads=thread_counts(section.threads)[:1],
                seconds=section.seconds,
                limits=LIMITS[name],
            )
        found.append(OnClass(isa=name, accuracy=accuracy, latency=latency[0]))
    return tuple(found)


def verified_isa(session: Session, file: bytes, seen: Measured) -> dict[str, float | None]:
    """The SQNR in dB of the measured output on the proof images, by class: this CPU's own, and
    those that the file must be right on. None where nothing can be compared: detections.

    Raises VerificationError when a class is worse than this CPU by more than its share.
    """
    here = class_here()
    wanted = [n for n in WITHOUT_VNNI[session.config.quantization.isa] if can_be_shown(n)]
    found: dict[str, float | None] = {}
    if here is not None:
        found[here] = _sqnr(session, torchscript.load(file), seen)
    others = [name for name in wanted if name not in found]
    if others:
        needs = torchscript.needs(torchscript.load(file))
        with session.voice.busy(f"verifying the file on {' and '.join(others)}"), ExitStack() as s:
            # All are started before the first is waited for.
            processes = [s.enter_context(LimitedProcess(name, needs)) for name in others]
            for name, process in zip(others, processes, strict=True):
                found[name] = _sqnr(session, process.load(file), seen)
    _check(found, here)
    return found


def _sqnr(session: Session, model: Any, seen: Measured) -> float | None:
    """On all proof images, which also proves that the model runs."""
    signal = error = 0.0
    original = session.fused.assembly.eager(session.fused.graph)
    with torch.inference_mode():
        for inputs in session.proofs:
            if seen.detections:
                model(*inputs)
                continue
            want = seen.of(original)(*inputs).double()
            signal += want.square().sum().item()
            error += (seen.of(model)(*inputs).double() - want).square().sum().item()
    return None if seen.detections else decibels(signal, error)


def _check(found: dict[str, float | None], here: str | None) -> None:
    own = found.get(here or "")
    for name, sqnr in found.items():
        if own is None or sqnr is None:
            continue
        if sqnr < min(own - _TOLERANCE_DB, _ENOUGH_DB):
            raise VerificationError(
                f"the int8 file has {sqnr:.1f} dB of SQNR on {name}, and {own:.1f} on {here}: "
                "its sums overflow there",
                where="verification",
                fix="keep the layers at fault in float (quantization.layers), and report it",
            )
