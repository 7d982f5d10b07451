"""What will become of every operator: the planner's decisions, told before anything is calibrated.

The decisions are those of `planning.make_plan`; what a plan adds to them, the ranges, changes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor
from torch.fx import GraphModule, Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    is_constant,
    kind_of,
    operator_name,
    shape_of,
    tensor_inputs,
)
from qconvert.qconfig import QuantizationSection
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
    float.
    """

    name: str
    kind: str
    includes: tuple[str, ...]
    included_kinds: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    macs: int
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
        return self.precision != "int8" or self.kernel == FLOAT_LINEAR

    @property
    def makes_float(self) -> bool:
        """Whether its result is float."""
        return self.precision != "int8" or self.float_output


class Forecast(Record):
    """All operators in the order of the file; `returned` names those whose results the model
    returns, `boundaries` counts the values that change between float and int8, `kept_macs` the
    work in code that stays as it is written."""

    operators: tuple[Operator, ...]
    inputs: dict[str, tuple[int, ...]]
    returned: tuple[str, ...]
    boundaries: int
    kept_macs: int

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
        self._kept_macs = model.assembly.kept_macs
        self._lines, self._kept, self._work = lines, kept, work
        self._makers = {line.value: line for line in lines}
        self._readers: dict[str, list[_Line]] = {}
        for line in lines:
            for source in line.sources:
                self._readers.setdefault(source.name, []).append(line)
        self._inputs = [n for n in model.graph.graph.nodes if n.op == "placeholder"]
        output = next(n for n in model.graph.graph.nodes if n.op == "output")
        self._returned = [node.name for node in output.all_input_nodes]
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
        return Forecast(
            operators=tuple(told),
            inputs={node.name: shape_of(node) for node in self._inputs},
            returned=tuple(
                self._makers[name].unit.name for name in self._returned if name in self._makers
            ),
            boundaries=len(crossings),
            kept_macs=self._kept_macs,
        )

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
                if is_constant(source) or not hasattr(source.meta.get("tensor_meta"), "shape"):
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


def _kinds(found: Iterable[Boundary]) -> tuple[Boundary, ...]:
    return tuple(dict.fromkeys(found))
