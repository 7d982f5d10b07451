"""Measures which int8 layers overflow on CPUs without VNNI.

Each layer that could runs alone, on what it reads in the network on real images, in a process that
is limited to a class of CPUs. Its result is compared with exact integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qconvert.images.preprocess import Inputs
from qconvert.measurement.limited import LimitedProcess
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.quantization.fewer_bits import bounded, channels_in_doubt
from qconvert.quantization.lowering.alone import DynamicCall, LayerCall, Layers, errors_in_steps
from qconvert.quantization.plan import FewerBits, Plan

# An overflow matters where its error has more than this share of the power of the layer's own
# rounding error (a twelfth of a step squared), or where any result is off by more steps than that.
_SHARE = 0.05
_STEPS = 3
# A tie may be rounded to either side.
_TIE_STEPS = 1.01
_ROUNDING_POWER = 1 / 12


def measure_overflow(
    model: FusedModel, plan: Plan, images: Sequence[Inputs], classes: Sequence[str]
) -> dict[str, FewerBits]:
    """What layers of a plan with 8 bits everywhere must give up on these classes of CPUs (see
    `cpu_classes`), by the names of their nodes.

    A static layer gives up bits of the weights of those channels that overflow, in a layer where
    that matters. A layer with dynamic ranges gives up a bit of its inputs where it is nearer to
    float with 7 bits. A layer that no image reaches gives up what could overflow.

    Raises VerificationError when a limited process does not run.
    """
    seen: dict[str, dict[str, _Errors | _Choice]] = {}
    layers = Layers(model, plan, frozenset(channels_in_doubt(model, plan)))
    with ExitStack() as stack:
        processes = {name: stack.enter_context(LimitedProcess(name)) for name in classes}
        runs = _Runs(processes)
        for inputs in images:
            for call in layers.on(inputs):
                of_layer = seen.setdefault(call.node, {})
                if isinstance(call, DynamicCall):
                    _compare(call, runs, of_layer)
                else:
                    _judge(call, runs, of_layer)
    found = bounded(model, plan, "no image reached it")
    return {
        node: given_up
        for node, unseen in found.items()
        if (given_up := _given_up(unseen, seen[node]) if node in seen else unseen) is not None
    }


class _Runs:
    """Calls layers in each process, into which they are loaded once."""

    def __init__(self, processes: Mapping[str, LimitedProcess]) -> None:
        self._processes = processes
        self._loaded: dict[tuple[str, str], Callable[..., Any]] = {}

    def of(self, key: str, file: Callable[[], bytes], inputs: tuple[Any, ...]) -> dict[str, Any]:
        """The results by class; `file` makes the layer's TorchScript file, for its first call."""
        if any((key, name) not in self._loaded for name in self._processes):
            content = file()
            for name, process in self._processes.items():
                self._loaded[key, name] = process.load(key, content)
        return {name: self._loaded[key, name](*inputs) for name in self._processes}


@dataclass
class _Errors:
    """The errors of a static layer on one class of CPUs, by output channel, in steps."""

    power: Tensor
    largest: Tensor
    calls: int = 1

    def add(self, other: _Errors) -> None:
        self.power = self.power + other.power
        self.largest = torch.maximum(self.largest, other.largest)
        self.calls += 1

    @property
    def share(self) -> Tensor:
        """Of the power of the rounding error."""
        return self.power / self.calls / _ROUNDING_POWER

    @property
    def matters(self) -> bool:
        return bool(self.share.mean() > _SHARE or self.largest.max() > _STEPS)

    def channels(self) -> set[int]:
        """Those that are wrong, where that matters."""
        if not self.matters:
            return set()
        wrong = (self.share > _SHARE) | (self.largest > _TIE_STEPS)
        return set(wrong.nonzero().flatten().tolist())


@dataclass
class _Choice:
    """The power of a dynamic layer's distance from float on one class of CPUs, by the bits of its
    inputs."""

    power: dict[int, float] = field(default_factory=lambda: {7: 0.0, 8: 0.0})


def _judge(call: LayerCall, runs: _Runs, seen: dict[str, Any]) -> None:
    for name, result in runs.of(call.node, call.file, call.inputs).items():
        errors = errors_in_steps(call, result)
        axis = errors.dim() - 1 if call.layer.operator.kind == "linear" else 1
        rows = errors.transpose(0, axis).flatten(1)
        found = _Errors(rows.square().mean(1), rows.abs().amax(1))
        if name in seen:
            seen[name].add(found)
        else:
            seen[name] = found


def _compare(call: DynamicCall, runs: _Runs, seen: dict[str, Any]) -> None:
    want = tensors(call.in_float())
    for bits in (7, 8):
        results = runs.of(f"{call.node} {bits}", partial(call.file, bits), call.inputs)
        for name, result in results.items():
            have = tensors(result)
            choice = seen.setdefault(name, _Choice())
            for output, expected in want.items():
                difference = have[output].double() - expected.double()
                choice.power[bits] += float(difference.square().sum())


def _given_up(could: FewerBits, seen: Mapping[str, Any]) -> FewerBits | None:
    """What a layer must give up of what it `could`, by what was seen on each class."""
    if could.what == "inputs":
        worse = [name for name, choice in seen.items() if choice.power[8] > choice.power[7]]
        if not worse:
            return None
        reason = f"with 8 bits it is farther from float on {' and '.join(worse)}"
        return could.model_copy(update={"reason": reason})
    wrong = {name: errors for name, errors in seen.items() if errors.matters}
    channels = set().union(*(errors.channels() for errors in wrong.values()))
    kept = tuple(channel for channel in could.channels if channel in channels)
    if not kept:
        return None
    steps = max(float(errors.largest.max()) for errors in wrong.values())
    share = max(float(errors.share.mean()) for errors in wrong.values())
    reason = (
        f"8 bits overflow on {' and '.join(wrong)}: results off by up to {steps:.0f} steps, "
        f"{share:.2g} times the power of the rounding error"
    )
    return could.model_copy(update={"channels": kept, "reason": reason})
