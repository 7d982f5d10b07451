"""What will become of every operator: the planner's decisions, told before anything is calibrated.

The decisions are those of `planning.make_plan`; what a plan adds to them, the ranges, changes none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qconvert.models.assembly import CALLS, Assembly
from qconvert.models.calls import Call
from qconvert.models.execution import Executed, float_macs, watch
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    is_constant,
    is_tensor,
    kind_of,
    operator_name,
    shape_of,
    tensor_inputs,
)
from qconvert.models.parts import needed_for
from qconvert.qconfig import QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.costs import Costs, Way, Work
from qconvert.quantization.deciding import Decision, decide
from qconvert.quantization.kernels import FLOAT_LINEAR
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.quantization.plan import Lowering
from qconvert.quantization.planning import in_float, kernel_of
from qconvert.quantization.units import Unit, units_of
from qconvert.quantization.work import counted_by_running, first_shape
from qconvert.records import Record

# Where a value changes between float and int8.
Boundary = Literal["quantize", "dequantize"]
_PRODUCTS = ("matmul", "bmm")


class Operator(Record):
    """One operator of the file that `convert` would write.

    `includes` names what its kernel computes beside it: a batch norm, a sum, an activation. `reads`
    are the operators whose results it reads, or the model's inputs. `kept` is a part of the model
    that is computed as it is written. `before` and `after` are the boundaries at its inputs and at
    its result. Multiply-accumulates are of one image; microseconds are estimated by the table of
    costs, those of its `boundaries` are apart: of values that this operator makes or reads in
    float. `calls` tells how often its part of the model is called for the example: zero where only
    other images reach it.
    """

    name: str
    kind: str
    includes: tuple[str, ...]
    included_kinds: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    macs: int
    calls: int
    precision: Literal["int8", "dynamic", "float32"]
    lowering: Lowering | None
    kernel: str | None
    float_output: bool
    reason: str | None
    kept: bool
    reads: tuple[str, ...]
    before: tuple[Boundary, ...]
    after: tuple[Boundary, ...]
    microseconds: float
    boundary_microseconds: float

    @property
    def reads_float(self) -> bool:
        """Whether its inputs must be float: of int8 kernels, that of the last layer quantizes its
        input by itself."""
        return (
            self.precision != "int8" or self.kernel == FLOAT_LINEAR or self.kind == rules.TWO_TERMS
        )

    @property
    def makes_float(self) -> bool:
        """Whether its result is float."""
        return self.precision != "int8" or self.float_output


class CodePart(Record):
    """A part of the model that code calls which is kept, or the model itself (of an empty path):
    what it reads, its operators, and those whose results it returns."""

    path: str
    inputs: dict[str, tuple[int, ...]]
    operators: tuple[str, ...]
    returned: tuple[str, ...]


class KeptCode(Record):
    """Code of the module at `path` (empty: of the model) that is computed as it is written, how
    often it runs for the example, and the multiply-accumulates of one image in it, without those of
    the modules that it calls."""

    path: str
    reason: str
    calls: int
    macs: int


class Forecast(Record):
    """All operators in the order of the file; `inputs` are the model's, `returned` names the
    operators whose results it returns (none, if its own code is kept), `boundaries` counts the
    values that change between float and int8, `counted` tells whether the work is known."""

    operators: tuple[Operator, ...]
    inputs: dict[str, tuple[int, ...]]
    returned: tuple[str, ...]
    boundaries: int
    parts: tuple[CodePart, ...]
    kept_code: tuple[KeptCode, ...]
    counted: bool

    @property
    def kept_macs(self) -> int:
        """The work in code that stays as it is written."""
        return sum(kept.macs for kept in self.kept_code)

    def macs(self, precision: str | None = None) -> int:
        """Multiply-accumulates in a precision, or all; those of code that is kept are float."""
        own = sum(o.macs for o in self.operators if precision in (None, o.precision))
        return own + (self.kept_macs if precision in (None, "float32") else 0)

    def share(self, precision: str) -> float:
        """The share of multiply-accumulates in a precision."""
        total = self.macs()
        return self.macs(precision) / total if total else 0.0

    @property
    def microseconds(self) -> float:
        """The estimated time of all operators and boundaries."""
        return sum(o.microseconds + o.boundary_microseconds for o in self.operators)


@dataclass(frozen=True)
class _Line:
    """A unit, its decision, and the last unit that its kernel computes; `place` is that one's."""

    unit: Unit
    decision: Decision
    last: Unit
    place: int

    @property
    def value(self) -> str:
        return self.last.value.name

    @property
    def sources(self) -> list[Node]:
        own = [self.unit.node]
        if self.last is not self.unit:
            own.append(self.last.node)
        inside = {self.unit.node.name, self.unit.value.name}
        found = [s for node in own for s in node.all_input_nodes if s.name not in inside]
        return list(dict.fromkeys(found))


def forecast(
    model: FusedModel,
    section: QuantizationSection,
    costs: Costs,
    kept: frozenset[str] = frozenset(),
    example: Sequence[Tensor] = (),
) -> Forecast:
    """Decides for every operator of a fused model; `kept` are the names of those that are computed
    as they are written. The work inside of them is counted on the example.

    Raises QConfigError when a rule of `quantization.layers` matches nothing, or asks for an int8
    operator that does not exist.
    """
    asked = asked_for(model, section)
    units = units_of(model, section, asked, split_pairs(model, asked), costs)
    decisions = decide(model, units, section, costs)
    lines = sorted(_lines(model.graph, units, decisions), key=lambda line: line.place)
    work = counted_by_running(model.graph, example)
    return _Forecasting(model, costs, lines, kept, work).result()


def _lines(
    graph: GraphModule, units: Sequence[Unit], decisions: Sequence[Decision]
) -> Iterator[_Line]:
    """A line for each operator of the file. A layer that computes a sum stands where that is."""
    for i, (unit, decision) in enumerate(zip(units, decisions, strict=True)):
        if decision.sum_of is not None:
            continue
        if decision.precision == "int8":
            place = i if decision.with_sum is None else decision.with_sum
            yield _Line(unit, decision, units[place], place)
            continue
        for single, outcome in in_float(graph, unit, decision):
            yield _Line(single, outcome, single, i)


class _Forecasting:
    def __init__(
        self,
        model: FusedModel,
        costs: Costs,
        lines: Sequence[_Line],
        kept: frozenset[str],
        work: Mapping[str, int],
    ) -> None:
        self._graph, self._costs = model.graph, costs
        self._assembly = model.assembly
        self._lines, self._kept, self._work = lines, kept, work
        self._makers = {line.value: line for line in lines}
        self._readers: dict[str, list[_Line]] = {}
        for line in lines:
            for source in line.sources:
                self._readers.setdefault(source.name, []).append(line)
        self._inputs = [n for n in model.graph.graph.nodes if n.op == "placeholder"]
        self._output = next(n for n in model.graph.graph.nodes if n.op == "output")
        self._returned = [node.name for node in self._output.all_input_nodes]
        self._norms = {group[0]: group[1] for group in model.folded}

    def result(self) -> Forecast:
        bare = [self._operator(line) for line in self._lines]
        crossings = self._crossings(bare)
        told = []
        for line, operator in zip(self._lines, bare, strict=True):
            read = {s.name for s in line.sources}
            paid = self._paid(line, operator, crossings)
            told.append(
                operator.model_copy(
                    update={
                        "before": _kinds(
                            kind
                            for name, kind in crossings
                            if name in read and (kind == "dequantize") == operator.reads_float
                        ),
                        "after": _kinds(kind for name, kind in crossings if name == line.value),
                        "boundary_microseconds": paid / 1e3,
                    }
                )
            )
        parts = self._parts()
        model = next((part for part in parts if not part.path), None)
        return Forecast(
            operators=tuple(told),
            inputs=_inputs_of(self._assembly) if model is None else model.inputs,
            returned=() if model is None else model.returned,
            boundaries=len(crossings),
            parts=parts,
            kept_code=_kept_code(self._assembly),
            counted=bool(self._work),
        )

    def _parts(self) -> tuple[CodePart, ...]:
        shapes = {node.name: shape_of(node) for node in self._inputs}
        parts = self._assembly.parts
        results = self._output.args[0] if len(parts) > 1 else (self._output.args[0],)
        found = []
        for part, result in zip(parts, results, strict=True):
            ends: list[Node] = []
            torch.fx.node.map_arg(result, ends.append)
            needed = {node.name for node in needed_for(result)}
            makers = (self._makers.get(node.name) for node in ends)
            found.append(
                CodePart(
                    path=part.path,
                    inputs={name: shapes[name] for name in part.placeholders},
                    operators=tuple(x.unit.name for x in self._lines if x.value in needed),
                    returned=tuple(dict.fromkeys(x.unit.name for x in makers if x is not None)),
                )
            )
        return tuple(found)

    def _operator(self, line: _Line) -> Operator:
        unit, decision, node = line.unit, line.decision, line.unit.node
        included = [unit.follower] if line.last is unit else [line.last.node, line.last.follower]
        beside = [n for n in included if n is not None]
        norm = self._norms.get(unit.name)
        return Operator(
            name=unit.name,
            kind=unit.kind,
            includes=((norm,) if norm else ()) + tuple(map(operator_name, beside)),
            included_kinds=(("batch_norm",) if norm else ())
            + tuple(kind_of(self._graph, n) for n in beside),
            inputs=tuple(shape_of(source) for source in tensor_inputs(node)),
            shape=first_shape(line.last.value),
            macs=self._work.get(node.name, 0),
            calls=node.meta.get(CALLS, 1),
            precision="int8" if decision.precision == "given" else decision.precision,
            lowering=decision.lowering,
            kernel=kernel_of(line.unit, decision, line.last),
            float_output=decision.float_output,
            reason=decision.reason,
            kept=unit.name.partition(":")[0] in self._kept,
            reads=tuple(
                self._makers[s.name].unit.name if s.name in self._makers else s.name
                for s in line.sources
                if s.name in self._makers or s in self._inputs
            ),
            before=(),
            after=(),
            microseconds=self._nanoseconds(line) / 1e3,
            boundary_microseconds=0,
        )

    def _nanoseconds(self, line: _Line) -> int:
        unit, decision = line.unit, line.decision
        if decision.precision == "dynamic":
            return self._costs.of(self._graph, unit.node, "dynamic")
        if decision.lowering is None:
            return self._costs.of(self._graph, unit.node, "float32")
        floats: dict[Lowering, Way] = {"classic": "classic_float", "direct": "direct_float"}
        way: Way = floats[decision.lowering] if decision.float_output else decision.lowering
        cost = self._costs.of(self._graph, unit.node, way)
        written = prod(first_shape(line.last.value))
        if line.last is not unit:
            cost += self._costs.estimate("with sum", decision.lowering, Work(0, written, 0))
        if line.last.activation is not None:
            cost += self._costs.activation(line.last.activation, way, written)
        return cost

    def _crossings(self, operators: Sequence[Operator]) -> list[tuple[str, Boundary]]:
        """The values that change between float and int8, each once: it is kept in both forms."""
        floats = {n.name for n in self._inputs}
        floats |= {x.value for x, o in zip(self._lines, operators, strict=True) if o.makes_float}
        found: dict[tuple[str, Boundary], None] = {}
        for line, operator in zip(self._lines, operators, strict=True):
            for source in line.sources:
                if is_constant(source) or not is_tensor(source):  # pixels are integers already
                    continue
                made_float = source.name in floats
                if made_float != operator.reads_float:
                    found[source.name, "quantize" if made_float else "dequantize"] = None
        for name in self._returned:
            if name in self._makers and name not in floats:
                found[name, "dequantize"] = None
        return list(found)

    def _paid(
        self, line: _Line, operator: Operator, crossings: Sequence[tuple[str, Boundary]]
    ) -> float:
        """The boundaries of a float operator's own; those of the model's ends go to who is there.

        A value that several operators read in float is paid for by all of them, in equal parts.
        """
        read = {s.name for s in line.sources}
        total = 0.0
        for name, kind in crossings:
            node = self._makers[name].last.value if name in self._makers else None
            cost = 0 if node is None else self._costs.crossing(kind, prod(first_shape(node)))
            in_float = [x for x in self._readers.get(name, ()) if x.decision.precision != "int8"]
            if kind == "quantize" and name == line.value:
                total += cost
            elif kind == "dequantize" and name in read and operator.precision != "int8":
                total += cost / len(in_float)
        return total


def _inputs_of(assembly: Assembly) -> dict[str, tuple[int, ...]]:
    """Of a model whose own code is kept."""
    tensors = Call.of(assembly.model, assembly.example, {}).named
    return {name: tuple(x.shape) for name, x in tensors.items() if isinstance(x, Tensor)}


def _kept_code(assembly: Assembly) -> tuple[KeptCode, ...]:
    """What is kept, with its work for the example."""
    work: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    # The kept code that runs; nothing where that of a part does.
    running: list[str | None] = [None]

    def enter(owner: str | None, *_: object) -> None:
        running.append(owner)
        if owner is not None:
            calls[owner] += 1

    def visit(executed: Executed) -> None:
        if running[-1] is not None:
            work[running[-1]] += float_macs(executed)

    owners: dict[str, str | None] = {kept.path: kept.path for kept in assembly.kept}
    owners |= {part.path: None for part in assembly.parts}
    hooks = []
    for path, owner in owners.items() if assembly.kept else ():
        module = assembly.model.get_submodule(path)
        hooks.append(module.register_forward_pre_hook(partial(enter, owner)))
        hooks.append(module.register_forward_hook(lambda *_: running.__delitem__(-1)))
    try:
        if hooks:
            watch(assembly.model, assembly.example, visit)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        KeptCode(path=path, reason=reason, calls=calls[path], macs=work[path])
        for path, reason in {kept.path: kept.reason for kept in assembly.kept}.items()
    )


def _kinds(found: Iterable[Boundary]) -> tuple[Boundary, ...]:
    return tuple(dict.fromkeys(found))
