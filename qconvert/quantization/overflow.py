"""Measures which int8 layers overflow on CPUs without VNNI, and what they must give up.

Each layer that could overflow runs alone, on what it reads in the network on real images, in a
process that is limited to a class of CPUs. Its result is compared with exact integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qconvert.images.preprocess import Inputs
from qconvert.measurement.limited import LimitedProcess
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.quantization.fewer_bits import bounded, channels_in_doubt, dynamic_layers
from qconvert.quantization.lowering.alone import DynamicCall, LayerCall, Layers, errors_in_steps
from qconvert.quantization.plan import FewerBits, Plan, PlannedOperator

PlanOf = Callable[[Mapping[str, FewerBits]], Plan]
# An overflow matters where its error has more than this share of the power of the layer's own
# rounding error (a twelfth of a step squared), or where any result is off by more steps than that.
_SHARE = 0.05
_STEPS = 3
# A tie may be rounded to either side.
_TIE_STEPS = 1.01
_ROUNDING_POWER = 1 / 12


def measure_overflow(
    model: FusedModel, plan_of: PlanOf, images: Sequence[Inputs], classes: Sequence[str]
) -> dict[str, FewerBits]:
    """What layers must give up on these classes of CPUs (see `cpu_classes`), by the names of their
    nodes. `plan_of` makes the plan in which layers give up what it is told.

    A static layer gives up bits in the weights of those channels that overflow, in a layer where
    that matters: as much as neighbouring inputs need, which torch's kernels mostly sum in pairs;
    where it overflows with that, as much as any two inputs need. A layer with dynamic ranges gives
    up what brings it nearest to float, or nothing. A layer that no image reaches gives up what
    could overflow.

    Raises VerificationError when a limited process does not run.
    """
    plan = plan_of({})
    doubts = channels_in_doubt(model, plan)
    unseen = bounded(model, plan, "no image reached it")
    ways = _ways(plan_of, plan)
    with ExitStack() as stack:
        runs = _Runs([stack.enter_context(LimitedProcess(name)) for name in classes], classes)
        first = _Seen(runs, ways)
        first.look_at(Layers(model, plan, frozenset(doubts)), images)
        found = {
            node: first.given_up(node, could) if node in first.nodes else could
            for node, could in unseen.items()
        }
        again = frozenset(node for node, given_up in found.items() if given_up.neighbours)
        if again:
            second = _Seen(runs, {})
            plan = plan_of(found)
            second.look_at(Layers(model, plan, again, dynamic=False), images)
            found |= {node: second.still(node, found[node]) for node in again}
    return {node: given_up for node, given_up in found.items() if given_up.reason}


def _ways(plan_of: PlanOf, plan: Plan) -> dict[str, list[PlannedOperator]]:
    """The lines of layers with dynamic ranges: as they are, with coarser weights, with 7 bits for
    inputs; by the names of their nodes."""
    nodes = [operator.node for operator in dynamic_layers(plan)]
    found: dict[str, list[PlannedOperator]] = {node: [] for node in nodes}
    if nodes:
        for what in (None, "weights", "inputs"):
            given_up = {} if what is None else {n: _dynamic(what) for n in nodes}
            for operator in dynamic_layers(plan_of(given_up)):
                found[operator.node].append(operator)
    return found


def _dynamic(what: Any, reason: str = "") -> FewerBits:
    return FewerBits(what=what, reason=reason)


class _Runs:
    """Calls layers in each process, into which they are loaded once."""

    def __init__(self, processes: Sequence[LimitedProcess], classes: Sequence[str]) -> None:
        self._processes = dict(zip(classes, processes, strict=True))

    def load(self, file: bytes) -> dict[str, Callable[..., Any]]:
        """A TorchScript module in each class."""
        return {name: process.load(file) for name, process in self._processes.items()}


@dataclass
class _Errors:
    """The errors of a static layer on one class of CPUs, by output channel, in steps."""

    power: Tensor
    largest: Tensor
    calls: int = 1

    def with_more(self, other: _Errors) -> _Errors:
        largest = torch.maximum(self.largest, other.largest)
        return _Errors(self.power + other.power, largest, self.calls + other.calls)

    @property
    def share(self) -> Tensor:
        """Of the power of the rounding error."""
        return self.power / self.calls / _ROUNDING_POWER

    @property
    def matters(self) -> bool:
        return bool(self.share.mean() > _SHARE or self.largest.max() > _STEPS)

    @property
    def channels(self) -> set[int]:
        """Those that are wrong."""
        wrong = (self.share > _SHARE) | (self.largest > _TIE_STEPS)
        return set(wrong.nonzero().flatten().tolist())


class _Seen:
    """What layers of one plan did on each class of CPUs."""

    def __init__(self, runs: _Runs, ways: Mapping[str, Sequence[PlannedOperator]]) -> None:
        self._runs = runs
        self._ways = ways
        self._loaded: dict[str, dict[str, Callable[..., Any]]] = {}
        self._errors: dict[str, dict[str, _Errors]] = {}
        # The power of the distance from float, by node, class, and way.
        self._distances: dict[str, dict[str, list[float]]] = {}

    @property
    def nodes(self) -> set[str]:
        """The layers that were called."""
        return {*self._errors, *self._distances}

    def look_at(self, layers: Layers, images: Iterable[Inputs]) -> None:
        """Runs the layers on what they read on these images."""
        for inputs in images:
            for call in layers.on(inputs):
                if isinstance(call, DynamicCall):
                    self._compare(call)
                else:
                    self._judge(call)

    def _results(
        self, key: str, file: Callable[[], bytes], inputs: tuple[Any, ...]
    ) -> dict[str, Any]:
        if key not in self._loaded:
            self._loaded[key] = self._runs.load(file())
        return {name: run(*inputs) for name, run in self._loaded[key].items()}

    def _judge(self, call: LayerCall) -> None:
        of_layer = self._errors.setdefault(call.node, {})
        for name, result in self._results(call.node, call.file, call.inputs).items():
            errors = errors_in_steps(call, result)
            axis = errors.dim() - 1 if call.layer.operator.kind == "linear" else 1
            rows = errors.transpose(0, axis).flatten(1)
            found = _Errors(rows.square().mean(1), rows.abs().amax(1))
            of_layer[name] = of_layer[name].with_more(found) if name in of_layer else found

    def _compare(self, call: DynamicCall) -> None:
        want, ways = tensors(call.in_float()), self._ways[call.node]
        of_layer = self._distances.setdefault(call.node, {})
        for i, way in enumerate(ways):
            key = f"{call.node} {i}"
            for name, result in self._results(key, partial(call.file, way), call.inputs).items():
                have = tensors(result)
                distance = sum(
                    float((have[output].double() - expected.double()).square().sum())
                    for output, expected in want.items()
                )
                of_layer.setdefault(name, [0.0] * len(ways))[i] += distance

    def given_up(self, node: str, could: FewerBits) -> FewerBits:
        """What a layer must give up; nothing has no reason."""
        if node in self._distances:
            return self._nearest(self._distances[node])
        wrong, channels = self._wrong(node)
        if not wrong:
            return could.model_copy(update={"any_two": (), "reason": ""})
        steps = max(float(errors.largest.max()) for errors in wrong.values())
        share = max(float(errors.share.mean()) for errors in wrong.values())
        reason = (
            f"8 bits overflow on {' and '.join(wrong)}: results are off by up to {steps:.0f} "
            f"steps, with {share:.2g} times the power of the rounding error"
        )
        return could.model_copy(
            update={"neighbours": tuple(sorted(channels)), "any_two": (), "reason": reason}
        )

    def still(self, node: str, given_up: FewerBits) -> FewerBits:
        """What a layer must give up where what it gave up is not enough."""
        channels = tuple(sorted(self._wrong(node)[1])) if node in self._errors else ()
        return given_up.model_copy(update={"any_two": channels})

    def _wrong(self, node: str) -> tuple[dict[str, _Errors], set[int]]:
        wrong = {name: e for name, e in self._errors[node].items() if e.matters}
        return wrong, set().union(*(errors.channels for errors in wrong.values()))

    @staticmethod
    def _nearest(distances: Mapping[str, Sequence[float]]) -> FewerBits:
        """The way that is nearest to float where it is farthest; the first of equals."""
        worst = [max(of_class) for of_class in zip(*distances.values(), strict=True)]
        best = worst.index(min(worst))
        what = ("weights", "weights", "inputs")[best]
        decibels = 10 * torch.tensor(worst[0] / max(worst[best], 1e-30)).log10()
        classes = " and ".join(distances)
        reason = f"with 8 bits it is {float(decibels):.1f} dB farther from float on {classes}"
        return _dynamic(what, reason if best else "")
