"""Tries the methods of recovery one after the other, each on top of those that are kept, and judges
each on images that it did not see."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from qconvert.images.preprocess import Inputs
from qconvert.images.stream import Progress
from qconvert.measurement.statistics import decibels
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.qconfig import RecoverySection
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Simulated
from qconvert.quantization.noise import NoiseShare
from qconvert.quantization.plan import Plan
from qconvert.quantization.recovery.corrected import (
    Corrected,
    corrected_layers,
    with_corrections,
)
from qconvert.quantization.recovery.trial import CORRECTING, Method, Trial

Bar = Callable[[str], AbstractContextManager[Progress]]


def recover(
    original: FusedModel,
    model: FusedModel,
    plan: Plan,
    fitted: Sequence[Inputs],
    unseen: Sequence[Inputs],
    section: RecoverySection,
    bar: Bar,
) -> tuple[dict[str, Corrected], tuple[Trial, ...]]:
    """The corrections of `model`, which computes what the `original` does: of the methods that are
    `on`, and of those on `auto` that help on `unseen` images; what each did."""
    kept: dict[Method, bool] = dict.fromkeys(CORRECTING, False)
    best: dict[str, Corrected] = {}
    trials = []
    before = sqnr_db(original, model, plan, best, unseen)
    for method in CORRECTING:
        switch = getattr(section, method)
        if switch == "off":
            continue
        start = time.perf_counter()
        with bar(f"recovery: {method}") as progress:
            tried = {**kept, method: True}
            until = time.monotonic() + 60 * section.minutes
            found = corrected_layers(
                model, plan, fitted,
                rounding=tried["rounding"], bias_correction=tried["bias_correction"],
                progress=progress, until=until,
            )  # fmt: skip
            stopped = time.monotonic() > until
        after = sqnr_db(original, model, plan, found, unseen)
        helps = switch == "on" or after > before
        seconds = time.perf_counter() - start
        trials.append(Trial(
            method=method, kept=helps, before_db=before, after_db=after, seconds=seconds,
            note=f"out of time after {len(found)} layers" if stopped else "",
        ))  # fmt: skip
        if helps:
            kept, best, before = tried, found, after
    return best, tuple(trials)


def sqnr_db(
    original: FusedModel,
    model: FusedModel,
    plan: Plan,
    corrections: Mapping[str, Corrected],
    images: Sequence[Inputs],
) -> float:
    """Of the simulated `model` with these corrections against the original float model; every
    output counts by its own power."""
    changed, plan = with_corrections(model, plan, corrections)
    simulated = lower(changed, plan, Simulated())
    noise = NoiseShare()
    with torch.inference_mode():
        for inputs in images:
            found = tensors(simulated(*inputs))
            for name, want in tensors(original.graph(*inputs)).items():
                noise.add(name, want, found[name])
    return decibels(float(len(noise.shares)), sum(noise.shares))
