"""Makes the plan from the fused model, the calibration and the qconfig."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Literal

from torch.fx import Node

from qconvert.errors import QConfigError, did_you_mean
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    clip_bounds,
    computes_tensors,
    kind_of,
    module_of,
    multiply_accumulates,
    operator_name,
    tensor_inputs,
)
from qconvert.qconfig import ActivationScheme, Isa, LayerRule, QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.affine import affine, symmetric
from qconvert.quantization.calibration import Calibration
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams
from qconvert.quantization.weights import choose_params
from qconvert.registry import ACTIVATION_OBSERVERS

# Largest integer of activations. Without VNNI two products of 8 bits each overflow the 16 bits
# that they are summed in; 127 * 128 * 2 does not.
ACTIVATION_MAX: dict[Isa, int] = {"vnni": 255, "avx512": 127, "avx2": 127, "portable": 127}


def make_plan(model: FusedModel, calibration: Calibration, section: QuantizationSection) -> Plan:
    """Decides every operator's precision and every tensor's range; the same for the same inputs.

    Raises QConfigError when a rule of `quantization.layers` matches nothing, or asks for an int8
    operator that does not exist.
    """
    return _Planner(model, calibration, section).plan()


class _Planner:
    def __init__(
        self, model: FusedModel, calibration: Calibration, section: QuantizationSection
    ) -> None:
        self._model = model
        self._calibration = calibration
        self._section = section
        self._nodes = {
            node.name: node for node in model.graph.graph.nodes if computes_tensors(node)
        }
        self._rules = dict(_matched_rules(model, self._nodes, section.layers))
        self._tensors: dict[str, TensorParams] = {}
        self._int8: set[str] = set()
        self._facts: list[str] = []

    def plan(self) -> Plan:
        absorbed: set[str] = set()
        operators: list[PlannedOperator] = []
        for node in self._nodes.values():
            if node.name in absorbed:
                continue
            operator = self._operator(node)
            operators.append(operator)
            if operator.with_activation is not None:
                absorbed.add(self._model.pairs[node.name])
            if operator.precision == "int8":
                self._int8.add(operator.value)
        if self._facts:
            raise QConfigError(self._facts, where="qconfig")
        finished = tuple(self._with_float_output(operator, operators) for operator in operators)
        used = {value for o in finished if o.precision == "int8" for value in o.inputs}
        used |= {o.value for o in finished if o.precision == "int8" and not o.float_output}
        tensors = {name: params for name, params in self._tensors.items() if name in used}
        return Plan(isa=self._section.isa, operators=finished, tensors=tensors)

    def _operator(self, node: Node) -> PlannedOperator:
        kind = kind_of(self._model.graph, node)
        reason = self._why_float(node, kind)
        int8 = reason is None
        follower = self._nodes[self._model.pairs[node.name]] if (
            int8 and node.name in self._model.pairs
        ) else None  # fmt: skip
        last = follower or node
        inputs = tensor_inputs(node)
        weight = None
        if int8:
            for source in inputs:
                self._hold(source)
            self._hold_result(node, last, kind)
            if kind in rules.INT8_WEIGHTED:
                module = module_of(self._model.graph, node)
                rule = self._rules.get(node.name)
                scheme = (rule and rule.weights) or self._section.weights
                weight = choose_params(module.weight, scheme)
        return PlannedOperator(
            name=operator_name(node),
            node=node.name,
            kind=kind,
            precision="int8" if int8 else "float32",
            reason=reason,
            with_activation=operator_name(follower) if follower else None,
            activation=_activation(kind_of(self._model.graph, follower)) if follower else None,
            bounds=clip_bounds(self._model.graph, node) if kind == "clip" else None,
            value=last.name,
            inputs=tuple(source.name for source in inputs),
            float_output=False,
            macs=multiply_accumulates(self._model.graph, node),
            weight=weight,
        )

    def _why_float(self, node: Node, kind: str) -> str | None:
        rule = self._rules.get(node.name)
        asked = rule.precision if rule else "auto"
        if asked == "float32":
            return f"the qconfig asks for it ({_described(rule)})"
        reason = rules.why_impossible(self._model.graph, node, kind)
        if reason is None and kind not in rules.INT8_WEIGHTED:
            sources = tensor_inputs(node)
            outside = [s for s in sources if s.name not in self._int8]
            if not sources:
                reason = "it reads no float tensor"
            elif outside:
                reason = f"its input {operator_name(outside[0])} is float"
        if reason is not None and asked == "int8":
            self._facts.append(
                f"quantization.layers: {operator_name(node)} cannot be int8: {reason}"
            )
        if reason is None and asked != "int8":
            reason = rules.why_slow(self._model.graph, node, kind)
        return reason

    def _hold(self, value: Node, bound: float | None = None) -> None:
        """Chooses how a tensor is held in int8, from its own distribution."""
        if value.name in self._tensors:
            return
        scheme = self._scheme(value)
        levels = ACTIVATION_MAX[self._section.isa]
        observe = ACTIVATION_OBSERVERS[scheme.observer].load()
        low, high = observe(
            self._calibration.tensors[value.name], percentile=scheme.percentile, levels=levels
        )
        if bound is not None:
            low, high = max(low, 0.0), min(high, bound)
        choose = affine if scheme.scheme == "affine" else symmetric
        params = choose(low, high, 0, levels)
        self._tensors[value.name] = TensorParams(
            observer=scheme.observer,
            range_min=low,
            range_max=high,
            scale=params.scale,
            zero_point=params.zero_point,
            quant_min=params.quant_min,
            quant_max=params.quant_max,
        )

    def _hold_result(self, node: Node, last: Node, kind: str) -> None:
        if kind in rules.SAME_RANGE:
            self._tensors[last.name] = self._tensors[tensor_inputs(node)[0].name]
            return
        bound = None
        if last is not node and kind_of(self._model.graph, last) == "clip":
            bounds = clip_bounds(self._model.graph, last)
            bound = bounds[1] if bounds else None
        self._hold(last, bound)

    def _scheme(self, value: Node) -> ActivationScheme:
        producers = {follower: node for node, follower in self._model.pairs.items()}
        rule = self._rules.get(producers.get(value.name, value.name))
        return (rule and rule.activations) or self._section.activations

    def _with_float_output(
        self, operator: PlannedOperator, operators: list[PlannedOperator]
    ) -> PlannedOperator:
        """A linear layer that nobody reads in int8 computes int8 and returns float.

        Its sums are never rounded to 8 bits, which keeps close answers apart.
        """
        if (
            operator.precision != "int8"
            or operator.kind != "linear"
            or operator.activation is not None
            or any(operator.value in o.inputs for o in operators if o.precision == "int8")
        ):
            return operator
        return operator.model_copy(update={"float_output": True})


def _activation(kind: str) -> Literal["relu", "saturation"]:
    return "relu" if kind == "relu" else "saturation"


def _described(rule: LayerRule | None) -> str:
    if rule is None:
        return ""
    return f"match: {rule.match}" if rule.match is not None else f"type: {rule.type}"


def _matched_rules(
    model: FusedModel, nodes: dict[str, Node], layers: tuple[LayerRule, ...]
) -> Iterator[tuple[str, LayerRule]]:
    """Node names with the last rule that matches each.

    A glob matches an operator's name, or the name of a module that holds it.
    """
    facts = []
    for i, rule in enumerate(layers):
        matched = [n for n in nodes.values() if _matches(model, n, rule)]
        if not matched:
            if rule.match is not None:
                known = [operator_name(n) for n in nodes.values()]
                hint = did_you_mean(rule.match, known)
            else:
                hint = did_you_mean(rule.type or "", sorted(set().union(
                    *(_types(model, n) for n in nodes.values()))))  # fmt: skip
            facts.append(f"quantization.layers[{i}]: {_described(rule)} matches no operator{hint}")
        for node in matched:
            yield node.name, rule
    if facts:
        raise QConfigError(facts, where="qconfig")


def _matches(model: FusedModel, node: Node, rule: LayerRule) -> bool:
    if rule.type is not None:
        return rule.type in _types(model, node)
    name = operator_name(node)
    pattern = rule.match or ""
    owners = name.split(".")
    return any(fnmatchcase(".".join(owners[:i]), pattern) for i in range(1, len(owners) + 1))


def _types(model: FusedModel, node: Node) -> set[str]:
    names = {kind_of(model.graph, node)}
    if node.op == "call_module":
        module = module_of(model.graph, node)
        names |= {base.__name__ for base in type(module).__mro__} - {"Module", "object"}
    return names
