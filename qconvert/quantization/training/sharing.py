"""Which tensors of a plan share a range, and with it what is learned of it."""

from __future__ import annotations

from scipy.cluster.hierarchy import DisjointSet

from qconvert.quantization import rules
from qconvert.quantization.lowering.trainable import LearnedRange
from qconvert.quantization.plan import Plan


def with_learned_ranges(plan: Plan) -> tuple[Plan, dict[str, LearnedRange]]:
    """The plan whose tensors name, as their observer, the range that rounds them, and the ranges by
    these names. Two tensors that happen to be held alike have two.

    The model's inputs keep theirs: they end at black and white, and what a step makes of a whole
    black background jumps as the range learns."""
    operators = [o for o in plan.operators if o.precision == "int8"]
    groups = DisjointSet(plan.tensors)
    made = {o.value for o in plan.operators}
    fixed, bounds = {name for name in plan.tensors if name not in made}, dict[str, float]()
    for operator in operators:
        value = operator.value
        if operator.kind in rules.SAME_RANGE:
            groups.merge(operator.inputs[0], value)
        elif operator.kind in rules.HELD_AS_THEY_ARE:
            fixed.add(value)
        elif operator.kind == "cat":
            for source in operator.inputs:
                # Its integers are copied.
                if plan.tensors[source] == plan.tensors[value]:
                    groups.merge(source, value)
        if operator.activation == "saturation" and operator.bounds and value in plan.tensors:
            bounds[value] = operator.bounds[1]
    ranges, tensors = {}, {}
    for i, members in enumerate(groups.subsets()):
        name, held = f"learned_range_{i}", plan.tensors[min(members)]
        bound = min((bounds[member] for member in members if member in bounds), default=None)
        ranges[name] = LearnedRange(held, bound, bool(members & fixed))
        for member in members:
            tensors[member] = plan.tensors[member].model_copy(update={"observer": name})
    ordered = {name: tensors[name] for name in plan.tensors}
    return plan.model_copy(update={"tensors": ordered}), ranges
