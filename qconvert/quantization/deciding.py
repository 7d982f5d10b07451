"""Decides where each unit is computed: in float, in int8 by one family of kernels or the other, or
with dynamic ranges.

First float against int8, then the family, each as the cheapest cut of the graph: what an operator
costs is weighed against what it costs to bring its inputs and its result into the other form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch.fx import Node

from qconvert.errors import QConfigError
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import RECURRENT, is_constant, operator_name, shape_of
from qconvert.qconfig import QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.costs import Costs, Way, Work
from qconvert.quantization.partition import NEVER, Value, divide
from qconvert.quantization.plan import Lowering, Precision
from qconvert.quantization.units import Readers, Unit


@dataclass(frozen=True)
class Decision:
    """What becomes of a unit. `sum_of` is the index of the layer that computes this addition;
    `with_sum` that of the addition which this layer computes."""

    precision: Precision
    reason: str | None = None
    lowering: Lowering | None = None
    float_output: bool = False
    with_sum: int | None = None
    sum_of: int | None = None


def decide(
    model: FusedModel, units: Sequence[Unit], section: QuantizationSection, costs: Costs
) -> list[Decision]:
    """A decision for each unit.

    Raises QConfigError when the qconfig asks for what does not exist.
    """
    facts = [fact for unit in units if (fact := _impossible_wish(unit)) is not None]
    if facts:
        raise QConfigError(facts, where="qconfig")
    return _Deciding(model, list(units), section, costs).decisions()


def _impossible_wish(unit: Unit) -> str | None:
    start = f"quantization.layers: {unit.name} cannot be"
    if unit.asked.precision == "int8" and not unit.lowerings:
        return f"{start} int8: {unit.impossible}"
    if unit.asked.precision == "dynamic" and unit.not_dynamic is not None:
        return f"{start} dynamic: {unit.not_dynamic}"
    return None


class _Deciding:
    def __init__(
        self, model: FusedModel, units: list[Unit], section: QuantizationSection, costs: Costs
    ) -> None:
        self._graph = model.graph
        self._units = units
        self._section = section
        self._costs = costs
        output = next(n for n in model.graph.graph.nodes if n.op == "output")
        self._readers = Readers(units, output)
        self._exact = self._made_in_float()

    def decisions(self) -> list[Decision]:
        in_int8 = (
            self._where_possible() if self._section.decide == "int8" else self._where_it_pays()
        )
        sums = self._sums(in_int8)
        family = self._families(in_int8, sums)
        # An addition is computed by the layer before it only by oneDNN.
        sums = {layer: add for layer, add in sums.items() if family[layer] == "direct"}
        layers = {add: layer for layer, add in sums.items()}
        found = []
        for i, unit in enumerate(self._units):
            if not in_int8[i]:
                found.append(self._outside(unit, in_int8))
                continue
            floats = i not in sums and self._returns_float(i, in_int8, family[i])
            found.append(Decision("int8", None, family[i], floats, sums.get(i), layers.get(i)))
        return found

    def _where_possible(self) -> list[bool]:
        """Every layer, and what lies between: operators whose inputs are all in int8."""
        found: list[bool] = []
        for unit in self._units:
            asked = unit.asked.precision
            reached = unit.weighted or all(self._made_in_int8(s.name, found) for s in unit.inputs)
            reached = reached and (bool(unit.inputs) or unit.kind == rules.PIXELS)
            reached = reached and not self._is_exact_sum(len(found))
            wanted = asked == "int8" or (asked == "auto" and reached)
            found.append(unit.kind == rules.TWO_TERMS or (bool(unit.lowerings) and wanted))
        return found

    def _where_it_pays(self) -> list[bool]:
        """The cheapest division between float and int8."""
        costs = [self._float_and_int8(unit) for unit in self._units]
        for add in self._sums([bool(unit.lowerings) for unit in self._units]).values():
            summed = self._costs.estimate("with sum", "direct", self._written(add))
            in_float, in_int8 = costs[add]
            if in_int8 != NEVER:  # the qconfig may want it in float
                costs[add] = in_float, min(in_int8, summed)
        values = []
        outside = len(costs)  # whoever makes the model's inputs and takes its outputs, in float
        costs.append((0, NEVER))
        for value in self._readers.values():
            maker = self._readers.makers.get(value.name, outside)
            readers = self._readers.of(value)
            if value.name in self._readers.returned:
                readers = [*readers, outside]
            elements = prod(shape_of(value))
            back = self._costs.crossing("dequantize", elements)
            if maker != outside and self._units[maker].weighted:
                back = min(back, self._float_result(self._units[maker]))
            if maker == outside and value.op == "get_attr":
                continue  # constants are quantized once, when the model is saved
            forth = self._costs.crossing("quantize", elements)
            values.append(Value(maker, tuple(readers), forth, back))
        return [
            in_int8 or unit.kind == rules.TWO_TERMS
            for unit, in_int8 in zip(self._units, divide(costs, values)[:outside], strict=True)
        ]

    def _made_in_float(self) -> set[int]:
        """What is read in two terms, and the terms of its sums, all the way up: layers return
        float, and sums are float."""
        found = set[int]()
        waiting = [s for unit in self._units if unit.kind == rules.TWO_TERMS for s in unit.inputs]
        while waiting:
            maker = self._readers.makers.get(waiting.pop().name)
            if maker is None or maker in found:
                continue
            unit = self._units[maker]
            if unit.kind == "add" and unit.asked.precision != "int8":
                waiting += unit.inputs
            elif not (unit.weighted and any(map(unit.returns_float, unit.lowerings))):
                continue
            found.add(maker)
        return found

    def _is_exact_sum(self, i: int) -> bool:
        return i in self._exact and self._units[i].kind == "add"

    def _reads_two_terms(self, unit: Unit) -> bool:
        makers = (self._readers.makers.get(source.name) for source in unit.inputs)
        return any(m is not None and self._units[m].kind == rules.TWO_TERMS for m in makers)

    def _float_and_int8(self, unit: Unit) -> tuple[int, int]:
        in_float = self._float(unit)
        if unit.kind == rules.TWO_TERMS or self._is_exact_sum(
            self._readers.makers[unit.value.name]
        ):
            return in_float, NEVER
        if self._reads_two_terms(unit) and unit.asked.precision == "auto":
            return NEVER, min(self._int8(unit, family) for family in unit.lowerings)
        if unit.asked.precision in ("float32", "dynamic") or not unit.lowerings:
            return in_float, NEVER
        in_int8 = min(self._int8(unit, family) for family in unit.lowerings)
        return (NEVER, in_int8) if unit.asked.precision == "int8" else (in_float, in_int8)

    def _float(self, unit: Unit) -> int:
        alone = self._costs.of(self._graph, unit.node, "float32")
        if unit.follower is not None:
            alone += self._costs.of(self._graph, unit.follower, "float32")
        return alone

    def _int8(self, unit: Unit, family: Lowering, float_output: bool = False) -> int:
        """The kernel alone, on inputs in its form."""
        ways: dict[Lowering, Way] = {"classic": "classic_float", "direct": "direct_float"}
        way: Way = ways[family] if float_output else family
        cost = self._costs.of(self._graph, unit.node, way)
        if unit.kind == rules.PIXELS and family == "classic":
            cost += self._costs.crossing("to_classic", prod(shape_of(unit.value)))
        if unit.activation is not None:
            cost += self._costs.activation(unit.activation, way, prod(shape_of(unit.value)))
        return cost

    def _written(self, i: int) -> Work:
        """What a unit writes, and nothing else."""
        return Work(0, prod(shape_of(self._units[i].value)), 0)

    def _float_result(self, unit: Unit) -> int:
        """What it costs more that a layer returns float."""
        possible = [f for f in unit.lowerings if unit.returns_float(f)]
        if not possible:
            return NEVER
        least = min(self._int8(unit, family) for family in unit.lowerings)
        return max(0, min(self._int8(unit, f, float_output=True) for f in possible) - least)

    def _outside(self, unit: Unit, in_int8: Sequence[bool]) -> Decision:
        """A unit that is not in int8 with static ranges: why, and whether it is dynamic."""
        asked = unit.asked
        if unit.given:
            return Decision("given", unit.impossible)
        if self._is_exact_sum(self._readers.makers[unit.value.name]):
            return Decision("float32", "its sum is read in two terms, or is part of one that is")
        if asked.precision == "float32":
            return Decision("float32", f"the qconfig asks for it ({asked.precision_from})")
        if asked.precision == "dynamic":
            return Decision("dynamic")
        if unit.kind in RECURRENT and unit.not_dynamic is None:
            dynamic = self._costs.of(self._graph, unit.node, "dynamic")
            in_float = self._costs.of(self._graph, unit.node, "float32")
            if self._section.decide == "int8" or dynamic < in_float:
                return Decision("dynamic")
            return Decision("float32", _slower(in_float, dynamic))
        if not unit.lowerings:
            return Decision(
                "float32", unit.not_dynamic if unit.kind in RECURRENT else unit.impossible
            )
        outside = [s for s in unit.inputs if not self._made_in_int8(s.name, in_int8)]
        if not unit.weighted and outside:
            name = operator_name(outside[0])
            return Decision("float32", f"its input {name} is float, and it is not worth a boundary")
        return Decision("float32", self._why_slower(unit, in_int8))

    def _made_in_int8(self, name: str, in_int8: Sequence[bool]) -> bool:
        maker = self._readers.makers.get(name)
        return maker is not None and in_int8[maker]

    def _why_slower(self, unit: Unit, in_int8: Sequence[bool]) -> str:
        """What the unit costs in float and would cost in int8, with the boundaries of each."""
        in_float, here = self._float_and_int8(unit)
        for source in unit.inputs:
            elements = prod(shape_of(source))
            if self._made_in_int8(source.name, in_int8):
                in_float += self._costs.crossing("dequantize", elements)
            else:
                here += self._costs.crossing("quantize", elements)
        elements = prod(shape_of(unit.value))
        if self._read_in_int8(unit.value, in_int8) == self._readers.of(unit.value):
            in_float += self._costs.crossing("quantize", elements)
        else:
            here += self._costs.crossing("dequantize", elements)
        return _slower(in_float, here)

    # Additions that a layer computes with its own result.

    def _sums(self, in_int8: Sequence[bool]) -> dict[int, int]:
        """The addition that each of some layers can compute: layer to addition.

        oneDNN adds into the memory of the other term. So nobody may read that term, or a slice of
        it, after the addition.
        """
        found: dict[int, int] = {}
        place = list(range(len(self._units)))
        overwritten: dict[str, int] = {}
        for add, unit in enumerate(self._units):
            if not in_int8[add] or unit.kind != "add":
                continue
            makers = [self._readers.makers.get(source.name, -1) for source in unit.inputs]
            for layer, other in sorted(
                zip(makers, reversed(unit.inputs), strict=True), reverse=True, key=lambda x: x[0]
            ):
                if layer < 0 or not self._can_sum(layer, add, in_int8) or layer in found:
                    continue
                if not self._may_overwrite(other, layer, add, place, overwritten):
                    continue
                found[layer] = add
                place[layer] = add
                overwritten[other.name] = add
                break
        return found

    def _can_sum(self, layer: int, add: int, in_int8: Sequence[bool]) -> bool:
        unit = self._units[layer]
        return (
            in_int8[layer]
            and "direct" in unit.lowerings
            and unit.follower is None
            and self._readers.of(unit.value) == [add]
            # Nobody asks for its shape either, as feature pyramids do: there is no such value.
            and list(unit.value.users) == [self._units[add].node]
            and unit.value.name not in self._readers.returned
            and rules.sums_with(self._graph, unit.node, self._units[add].node)
        )

    def _may_overwrite(
        self, term: Node, layer: int, add: int, place: list[int], overwritten: dict[str, int]
    ) -> bool:
        roots = [self._readers.root(source).name for source in self._units[layer].inputs]
        computed = term.op.startswith("call_") and not is_constant(term)
        # Pixels are read where the caller has them.
        computed = computed and self._maker_kind(term) != rules.PIXELS
        if not computed or self._readers.root(term) is not term or term.name in roots:
            return False
        # The layer reads its input later than it did: where the addition is.
        if any(overwritten.get(root, add) < add for root in roots):
            return False
        for value in self._readers.values():
            if self._readers.root(value) is not term:
                continue
            later = [i for i in self._readers.of(value) if i != add and place[i] >= add]
            if later or value.name in self._readers.returned:
                return False
        return True

    def _maker_kind(self, value: Node) -> str | None:
        maker = self._readers.makers.get(value.name)
        return None if maker is None else self._units[maker].kind

    # The family of kernels.

    def _families(self, in_int8: Sequence[bool], sums: Mapping[int, int]) -> list[Lowering]:
        """The cheapest division between the classic operators and oneDNN's."""
        layer_of = {add: layer for layer, add in sums.items()}
        # Float values are quantized by the classic operator first.
        outside = len(self._units)
        costs = [
            self._by_family(i, in_int8, sums) if in_int8[i] and i not in layer_of else (0, NEVER)
            for i in range(outside)
        ]
        costs.append((0, NEVER))
        values = []
        for value in self._readers.values():
            maker = self._readers.makers.get(value.name, outside)
            if maker != outside and (
                not in_int8[maker] or self._all_float(maker, in_int8) or maker in self._exact
            ):
                maker = outside
            readers = [
                layer_of.get(i, i)
                for i in self._read_in_int8(value, in_int8)
                if layer_of.get(i, i) != maker
            ]
            if not readers:
                continue
            elements = prod(shape_of(value))
            forth = self._costs.crossing("to_direct", elements)
            back = self._costs.crossing("to_classic", elements)
            values.append(
                Value(layer_of.get(maker, maker), tuple(dict.fromkeys(readers)), forth, back)
            )
        direct = divide(costs, values)
        return ["direct" if direct[layer_of.get(i, i)] else "classic" for i in range(outside)]

    def _by_family(
        self, i: int, in_int8: Sequence[bool], sums: Mapping[int, int]
    ) -> tuple[int, int]:
        unit = self._units[i]
        last = self._units[sums[i]] if i in sums else unit
        elements = prod(shape_of(last.value))
        to_float = self._costs.crossing("dequantize", elements)
        read_as_float = last.value.name in self._readers.returned or (
            self._read_in_int8(last.value, in_int8) != self._readers.of(last.value)
        )
        found = []
        for family in ("classic", "direct"):
            never = i in self._exact and not unit.returns_float(family)
            if family not in unit.lowerings or never:
                found.append(NEVER)
                continue
            floats = i not in sums and self._returns_float(i, in_int8, family)
            cost = self._int8(unit, family, floats)
            if i in sums:
                cost += (
                    self._int8(last, "classic") if family == "classic"
                    else self._costs.estimate("with sum", "direct", self._written(sums[i]))
                )  # fmt: skip
            if read_as_float and not floats:
                cost += to_float
                if family == "direct":
                    cost += self._costs.crossing("to_classic", elements)
            found.append(cost)
        return found[0], found[1]

    def _all_float(self, i: int, in_int8: Sequence[bool]) -> bool:
        """Whether nobody reads a unit's result in int8."""
        return not self._read_in_int8(self._units[i].value, in_int8)

    def _read_in_int8(self, value: Node, in_int8: Sequence[bool]) -> list[int]:
        """Who reads a value in int8."""
        return [
            i for i in self._readers.of(value)
            if in_int8[i] and self._units[i].kind != rules.TWO_TERMS
        ]  # fmt: skip

    def _returns_float(self, i: int, in_int8: Sequence[bool], family: Lowering) -> bool:
        """A layer that nobody reads in int8 returns its sums, which are never rounded to 8 bits."""
        unit = self._units[i]
        floats = i in self._exact or self._all_float(i, in_int8)
        return unit.weighted and unit.returns_float(family) and floats


def _slower(in_float: int, in_int8: int) -> str:
    return f"float is faster ({in_float / 1e3:.3g} microseconds, {in_int8 / 1e3:.3g} in int8)"
