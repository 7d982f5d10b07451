"""Times single operators of a model in every way in which they can be computed, at one thread.

Each is cut out of its graph and runs as a file would run it: traced, frozen, its inputs in the form
that it reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from qconvert import torchscript
from qconvert.images.stream import one_thread
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.calibration import Calibration, observed_in
from qconvert.quantization.costs import Way
from qconvert.quantization.deciding import Decision
from qconvert.quantization.layer_rules import asked_for
from qconvert.quantization.lowering.backend import FLOAT, lower
from qconvert.quantization.lowering.targets import Int8
from qconvert.quantization.plan import Lowering
from qconvert.quantization.planning import written
from qconvert.quantization.units import Unit, apart, units_of

# At least so many turns of each way, of so many calls, and at least so long in all.
_TURNS = 9
_IN_A_ROW = 4
_SECONDS = 0.02
_FAMILIES: dict[Way, Lowering] = {
    "classic": "classic", "classic_float": "classic",
    "direct": "direct", "direct_float": "direct",
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What can be timed: a frozen module and its inputs."""

    module: Callable[..., Any]
    inputs: tuple[Tensor, ...]

    def __call__(self) -> None:
        self.module(*self.inputs)


class _Nothing(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


_SCALAR = (torch.zeros(1),)
_NOTHING = Program(torchscript.freeze(torchscript.trace(_Nothing(), _SCALAR)), _SCALAR)


def time_units(
    model: FusedModel, units: Sequence[Unit], section: QuantizationSection
) -> dict[str, dict[str, float]]:
    """Nanoseconds of each operator, by the name of its node and the way to compute it; layers and
    the activations after them apart.

    Operators of the same kind, settings and shapes are timed once. Left out is what cannot be cut
    out: an operator that reads sizes which others compute.
    """
    found: dict[str, dict[str, float]] = {}
    seen: dict[str, dict[str, float]] = {}
    for whole in units:
        for unit in apart(model.graph, whole):
            key = _signature(model, unit)
            if key not in seen:
                # Classic layers remember how they computed with the number of threads that they
                # first met, and are three times as slow with another.
                with one_thread():
                    seen[key] = time_unit(model, unit, section)
            if seen[key]:
                found[unit.node.name] = seen[key]
    return found


def _signature(model: FusedModel, unit: Unit) -> str:
    """Equal for units that take the same time."""
    parts = []
    for node in (unit.node, unit.follower):
        if node is None:
            continue
        what = module_of(model.graph, node) if node.op == "call_module" else node.target
        settings = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: "value")
        shapes = [tuple(source.meta["tensor_meta"].shape) for source in unit.inputs]
        parts.append(f"{what} {settings} {shapes}")
    return " ".join([*parts, *unit.lowerings])


def time_unit(model: FusedModel, unit: Unit, section: QuantizationSection) -> dict[str, float]:
    """Nanoseconds of one unit, its activation included, by the way to compute it; inside of
    `one_thread`."""
    cut = cut_out(model, unit)
    if cut is None:
        return {}
    programs: dict[str, Program] = {"float32": float_program(cut)}
    for way, family in _FAMILIES.items():
        floats = way.endswith("float")
        if family in unit.lowerings and (
            not floats or (unit.weighted and unit.returns_float(family))
        ):
            programs[way] = int8_program(cut, section, Decision("int8", None, family, floats))
    if unit.not_dynamic is None:
        programs["dynamic"] = int8_program(cut, section, Decision("dynamic"))
    return {way: 1e9 * s for way, s in time_programs(programs).items()}


def cut_out(model: FusedModel, unit: Unit) -> FusedModel | None:
    """A unit as a model of its own; None where it reads what is no tensor."""
    graph, copies = Graph(), dict[Node, Node]()
    nodes = [node for node in (unit.node, unit.follower) if node is not None]
    for source in unit.inputs:
        if source not in copies:
            copies[source] = graph.placeholder(source.name)
            copies[source].meta = dict(source.meta)
    for node in nodes:
        if any(source not in copies for source in node.all_input_nodes):
            return None
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(copies[nodes[-1]])
    pairs = {} if unit.follower is None else {copies[nodes[0]].name: copies[nodes[1]].name}
    return FusedModel(GraphModule(model.graph, graph), (), (), (), (), pairs)


def float_program(cut: FusedModel) -> Program:
    """The float operator."""
    inputs = _inputs(cut)
    return Program(torchscript.freeze(torchscript.trace(cut.graph, inputs)), inputs)


def int8_program(cut: FusedModel, section: QuantizationSection, decision: Decision) -> Program:
    """The operator as it is decided, on inputs that are int8 already (but for kernels that read
    float)."""
    settings = {"layers": (), "lowering": decision.lowering or "auto"}
    section = section.model_copy(update=settings)
    inputs = _inputs(cut)
    asked = asked_for(cut, section)
    units = units_of(cut, section, asked, frozenset())
    plan = written(cut, Calibration(1, observed_in(cut, inputs)), section, units, [decision], {})
    reads_float = decision.precision == "dynamic" or (
        decision.lowering == "classic" and decision.float_output
    )
    names = [node.name for node in cut.graph.graph.nodes if node.op == "placeholder"]
    form = FLOAT if reads_float or decision.lowering is None else decision.lowering
    if form != FLOAT:
        held = [plan.tensors[name] for name in names]
        inputs = tuple(
            torch.quantize_per_tensor(x, h.scale, h.zero_point, torch.quint8)
            for x, h in zip(inputs, held, strict=True)
        )
        if form == "direct":
            inputs = tuple(x.int_repr() for x in inputs)
    given = dict.fromkeys(names, form)
    lowered = lower(cut, plan, Int8(plan), given)
    return Program(torchscript.freeze(torchscript.trace(lowered, inputs)), inputs)


def _inputs(cut: FusedModel) -> tuple[Tensor, ...]:
    """Normally distributed, in the layout that int8 kernels return."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for node in cut.graph.graph.nodes:
        if node.op == "placeholder":
            x = torch.randn(tuple(node.meta["tensor_meta"].shape), generator=generator)
            found.append(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x)
    return tuple(found)


def time_programs(programs: dict[str, Program]) -> dict[str, float]:
    """The median seconds of a call of each, in turn, at one thread, without what a call of a
    program that does nothing takes. Of processor time: other processes do not count.

    To be called inside of `one_thread`, in which the programs were made.
    """
    everything = {**programs, "nothing": _NOTHING}
    times: dict[str, list[float]] = {name: [] for name in everything}
    with torch.inference_mode():
        for program in everything.values():
            for _ in range(3):  # TorchScript optimizes in the first calls
                program()
        end = time.perf_counter() + _SECONDS * len(everything)
        while len(times["nothing"]) < _TURNS or time.perf_counter() < end:
            for name, program in everything.items():
                program()  # after the others, its code is in no cache; in a network it mostly is
                start = time.process_time()
                for _ in range(_IN_A_ROW):
                    program()
                times[name].append((time.process_time() - start) / _IN_A_ROW)
    nothing = median(times.pop("nothing"))
    return {name: max(median(values) - nothing, 0.0) for name, values in times.items()}
