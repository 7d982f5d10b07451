"""Makes the plan from the fused model, the calibration and the qconfig."""

from __future__ import annotations

from typing import Literal

from torch.fx import Node

from qconvert.errors import QConfigError
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    clip_bounds,
    kind_of,
    module_of,
    multiply_accumulates,
    operator_name,
    tensor_inputs,
)
from qconvert.qconfig import ActivationScheme, Isa, QuantizationSection
from qconvert.quantization import rules
from qconvert.quantization.affine import affine, symmetric
from qconvert.quantization.calibration import Calibration
from qconvert.quantization.layer_rules import asked_for, split_pairs, without_effect
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams, WeightParams
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
        self._asked = asked_for(model, section)
        self._split = split_pairs(model, self._asked)
        self._nodes = {n.name: n for n in model.graph.graph.nodes if n.name in self._asked}
        self._producers = {follower: node for node, follower in model.pairs.items()}
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
        read_in_int8 = {v for o in operators if o.precision == "int8" for v in o.inputs}
        finished = tuple(_with_float_output(operator, read_in_int8) for operator in operators)
        results = {o.value for o in finished if o.precision == "int8" and not o.float_output}
        own = {
            name
            for o in finished
            if o.value in results and o.kind not in rules.SAME_RANGE
            for name in (o.node, o.value)
        }
        return Plan(
            isa=self._section.isa,
            operators=finished,
            tensors={n: p for n, p in self._tensors.items() if n in read_in_int8 | results},
            notes=without_effect(self._section, self._asked, own),
        )

    def _operator(self, node: Node) -> PlannedOperator:
        kind = kind_of(self._model.graph, node)
        reason = self._why_float(node, kind)
        int8 = reason is None
        follower = self._follower(node) if int8 else None
        last = follower or node
        inputs = tensor_inputs(node)
        if int8:
            for source in inputs:
                self._hold(source)
            self._hold_result(node, last, kind)
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
            weight=self._weight(node) if int8 and kind in rules.INT8_WEIGHTED else None,
        )

    def _follower(self, node: Node) -> Node | None:
        """The activation that is computed with a layer, unless the qconfig wants it in float."""
        if node.name not in self._model.pairs or node.name in self._split:
            return None
        return self._nodes[self._model.pairs[node.name]]

    def _weight(self, node: Node) -> WeightParams:
        module, scheme = module_of(self._model.graph, node), self._asked[node.name].weights
        narrow = self._section.isa == "vnni" and rules.overflows_with_vnni(module, scheme.scheme)
        return choose_params(module.weight, scheme, narrow)

    def _why_float(self, node: Node, kind: str) -> str | None:
        asked = self._asked[node.name]
        if asked.precision == "float32":
            return f"the qconfig asks for it ({asked.precision_from})"
        reason = rules.why_impossible(self._model.graph, node, kind)
        if reason is None and kind not in rules.INT8_WEIGHTED:
            sources = tensor_inputs(node)
            outside = [s for s in sources if s.name not in self._int8]
            if not sources:
                reason = "it reads no float tensor"
            elif outside:
                reason = f"its input {operator_name(outside[0])} is float"
        if reason is not None and asked.precision == "int8":
            self._facts.append(
                f"quantization.layers: {operator_name(node)} cannot be int8: {reason}"
            )
        if reason is None and asked.precision != "int8":
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
        """The scheme of a value: what is asked for its activation, or else for its layer."""
        asked = self._asked.get(value.name)
        if asked is None:  # the model's input
            return self._section.activations
        if asked.own_activations or value.name not in self._producers:
            return asked.activations
        return self._asked[self._producers[value.name]].activations


def _with_float_output(operator: PlannedOperator, read_in_int8: set[str]) -> PlannedOperator:
    """A linear layer that nobody reads in int8 computes int8 and returns float.

    Its sums are never rounded to 8 bits, which keeps close answers apart.
    """
    if (
        operator.precision != "int8"
        or operator.kind != "linear"
        or operator.activation is not None
        or operator.value in read_in_int8
    ):
        return operator
    return operator.model_copy(update={"float_output": True})


def _activation(kind: str) -> Literal["relu", "saturation"]:
    return "relu" if kind == "relu" else "saturation"
