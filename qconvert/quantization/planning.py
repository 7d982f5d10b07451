"""Makes the plan from the fused model, the calibration and the qconfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from qconvert.models.assembly import CALLS
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    RECURRENT,
    clip_bounds,
    kind_of,
    module_of,
    multiply_accumulates,
    operator_name,
    recurrent_weights,
    shape_of,
)
from qconvert.qconfig import QuantizationSection, WeightScheme
from qconvert.quantization import costs, rules
from qconvert.quantization.calibration import Calibration, observed_values
from qconvert.quantization.costs import Costs
from qconvert.quantization.deciding import Decision, decide
from qconvert.quantization.fewer_bits import bounded, nodes_by_name
from qconvert.quantization.kernels import dynamic_kernel, static_kernel
from qconvert.quantization.layer_rules import asked_for, split_pairs, without_effect
from qconvert.quantization.plan import (
    FewerBits,
    KeptCode,
    Plan,
    PlannedOperator,
    TensorParams,
    WeightParams,
)
from qconvert.quantization.ranges import Ranges
from qconvert.quantization.units import Unit, apart, units_of
from qconvert.quantization.weights import choose_params, least_scales


def make_plan(
    model: FusedModel,
    calibration: Calibration,
    section: QuantizationSection,
    measured: Costs | None = None,
    fewer_bits: Mapping[str, FewerBits] | None = None,
) -> Plan:
    """Decides every operator's precision and every tensor's range; the same for the same inputs.

    `measured` are the costs to decide by, in the place of the shipped ones. `fewer_bits` has what
    layers give up, by the names of their nodes; without it, a plan for CPUs without VNNI gives up
    what could overflow (see `fewer_bits.bounded`).

    Raises QConfigError when a rule of `quantization.layers` matches nothing, or asks for an int8
    operator that does not exist.
    """
    asked = asked_for(model, section)
    chosen = measured or costs.table(section.isa)
    split = split_pairs(model, asked)
    units = units_of(model, section, asked, split, chosen)
    never = observed_values(model, split) - calibration.tensors.keys()
    units = [unit if not never else _without_ranges(unit, never) for unit in units]
    decisions = decide(model, units, section, chosen)
    return written(model, calibration, section, units, decisions, fewer_bits)


def _without_ranges(unit: Unit, never: set[str]) -> Unit:
    """Code that is kept may call a part for some images only."""
    if not never & {unit.value.name, *(source.name for source in unit.inputs)}:
        return unit
    return replace(unit, lowerings=(), impossible="no calibration image reaches it")


def written(
    model: FusedModel,
    calibration: Calibration,
    section: QuantizationSection,
    units: list[Unit],
    decisions: list[Decision],
    fewer_bits: Mapping[str, FewerBits] | None = None,
) -> Plan:
    """The plan that these decisions, one for each unit, make; `fewer_bits` as in `make_plan`."""
    asked = asked_for(model, section)
    ranges = Ranges(model, calibration, section, asked)
    ranges.choose(units, decisions)
    operators = [
        _operator(model, line, outcome, units, ranges.tensors)
        for unit, decision in zip(units, decisions, strict=True)
        if decision.sum_of is None
        for line, outcome in _lines(model, unit, decision)
    ]
    read = {name for o in operators if _reads_int8(o) for name in o.inputs}
    made = {o.value for o in operators if o.precision == "int8" and not o.float_output}
    plan = Plan(
        isa=section.isa,
        plain=section.lowering == "direct",
        operators=tuple(operators),
        tensors={n: p for n, p in ranges.tensors.items() if n in read | made},
        kept=tuple(KeptCode(name=kept.name, reason=kept.reason) for kept in model.kept),
        kept_macs=model.assembly.kept_macs,
        notes=without_effect(section, asked, _with_range_of_their_own(operators, made)),
    )
    if fewer_bits is None and section.isa != "vnni":
        fewer_bits = bounded(model, plan, "nothing was measured")
    return _with_fewer_bits(model, plan, units, fewer_bits or {})


def _reads_int8(operator: PlannedOperator) -> bool:
    return operator.precision == "int8" and operator.kind != rules.TWO_TERMS


def _with_fewer_bits(
    model: FusedModel, plan: Plan, units: list[Unit], fewer_bits: Mapping[str, FewerBits]
) -> Plan:
    """The plan whose layers in int8 give this up, by the names of their nodes."""
    schemes = {unit.node.name: unit.asked.weights for unit in units}
    nodes = nodes_by_name(model)

    def line(operator: PlannedOperator) -> PlannedOperator:
        given_up = fewer_bits.get(operator.node)
        if given_up is None or operator.precision not in ("int8", "dynamic"):
            return operator
        changed: dict[str, Any] = {"fewer_bits": given_up}
        if given_up.what == "weights":
            module, scheme = module_of(model.graph, nodes[operator.node]), schemes[operator.node]
            held = plan.tensors.get(operator.inputs[0])
            changed |= _coarser_weights(operator, module, scheme, held, given_up)
        return operator.model_copy(update=changed)

    return plan.model_copy(update={"operators": tuple(map(line, plan.operators))})


def _coarser_weights(
    operator: PlannedOperator,
    module: Any,
    scheme: WeightScheme,
    x_held: TensorParams | None,
    given_up: FewerBits,
) -> dict[str, Any]:
    """The fields of an operator's weights; in layers with dynamic ranges all channels change."""
    if operator.precision == "int8":
        least = None if x_held is None else least_scales(module.bias, x_held.scale)
        channels = given_up.neighbours, given_up.any_two
        return {"weight": choose_params(module.weight, scheme, False, least, *channels)}

    def coarser(weight: Tensor) -> WeightParams:
        return choose_params(weight, scheme, neighbours=range(len(weight)))

    if operator.weight is not None:
        return {"weight": coarser(module.weight)}
    weights = recurrent_weights(module)
    return {"cell_weights": {name: coarser(weight) for name, weight in weights.items()}}


def _with_range_of_their_own(operators: list[PlannedOperator], made: set[str]) -> set[str]:
    return {
        name
        for o in operators
        if o.value in made and o.kind not in (*rules.SAME_RANGE, *rules.HELD_AS_THEY_ARE)
        for name in (o.node, o.value)
    }


def _lines(model: FusedModel, unit: Unit, decision: Decision) -> list[tuple[Unit, Decision]]:
    """A line for each operator of the file."""
    if decision.precision == "int8":
        return [(unit, decision)]
    return in_float(model.graph, unit, decision)


def in_float(graph: GraphModule, unit: Unit, decision: Decision) -> list[tuple[Unit, Decision]]:
    """The operators that a unit is outside of int8, where an activation is one of its own."""
    layer, *followers = apart(graph, unit)
    reason = Decision("float32", f"its input {unit.name} is float")
    return [(layer, decision), *((follower, reason) for follower in followers)]


def _operator(
    model: FusedModel,
    unit: Unit,
    decision: Decision,
    units: list[Unit],
    held: Mapping[str, TensorParams],
) -> PlannedOperator:
    """The plan's line for a unit, and the addition that is computed with it."""
    graph = model.graph
    last, inputs = unit, [source.name for source in unit.inputs]
    if decision.with_sum is not None:
        last = units[decision.with_sum]
        inputs += [s.name for s in last.inputs if s.name != unit.value.name]
    bounded = unit.node if unit.kind == "clip" else last.follower
    clips = bounded is not None and kind_of(graph, bounded) == "clip"
    follower = last.follower
    return PlannedOperator(
        name=unit.name,
        node=unit.node.name,
        kind=unit.kind,
        precision=decision.precision,
        reason=decision.reason,
        lowering=decision.lowering,
        kernel=kernel_of(unit, decision, last),
        with_sum=None if last is unit else last.name,
        with_activation=operator_name(follower) if follower is not None else None,
        activation=last.activation,
        bounds=clip_bounds(graph, bounded) if clips and bounded is not None else None,
        slope=_slope(model, last),
        value=last.value.name,
        inputs=tuple(inputs),
        float_output=decision.float_output,
        macs=multiply_accumulates(graph, unit.node) * unit.node.meta.get(CALLS, 1),
        calls=unit.node.meta.get(CALLS, 1),
        weight=_weight(model, unit, decision, held.get(inputs[0]) if inputs else None),
        cell_weights=_cell_weights(model, unit, decision),
    )


def kernel_of(unit: Unit, decision: Decision, last: Unit) -> str | None:
    """The int8 operator of torch that computes a unit, if one does; `last` is the unit with it
    whose result it has."""
    if decision.precision == "dynamic":
        return dynamic_kernel(unit.kind)
    if decision.lowering is None:
        return None
    return static_kernel(
        unit.kernel_kind(decision.lowering),
        decision.lowering,
        relu=last.activation is not None,
        float_output=decision.float_output,
        dimensions=len(shape_of(unit.node)),
    )


def _slope(model: FusedModel, unit: Unit) -> float | None:
    """The slope of a leaky ReLU."""
    node = unit.node if unit.kind == "leaky_relu" else unit.follower
    if node is None or kind_of(model.graph, node) != "leaky_relu":
        return None
    if node.op == "call_module":
        return float(module_of(model.graph, node).negative_slope)
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    return float(given)  # type: ignore[arg-type]


def _weight(
    model: FusedModel,
    unit: Unit,
    decision: Decision,
    x_held: TensorParams | None,
) -> WeightParams | None:
    if not unit.weighted or decision.precision == "float32":
        return None
    module, scheme = module_of(model.graph, unit.node), unit.asked.weights
    narrow = decision.lowering is not None and rules.overflows_with_vnni(
        module, decision.lowering, scheme.scheme
    )
    least = None if x_held is None else least_scales(module.bias, x_held.scale)
    return choose_params(module.weight, scheme, narrow, least)


def _cell_weights(
    model: FusedModel, unit: Unit, decision: Decision
) -> dict[str, WeightParams] | None:
    """Those of a recurrent layer."""
    if unit.kind not in RECURRENT or decision.precision != "dynamic":
        return None
    weights = recurrent_weights(module_of(model.graph, unit.node))
    return {name: choose_params(w, unit.asked.weights) for name, w in weights.items()}
