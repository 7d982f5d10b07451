"""What is analyzed: a plan, the float model that it is made of, and images' ways through both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.models.pixels import known_path
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.switched import Place, Switched
from qconvert.quantization.plan import Plan
from qconvert.quantization.recovery.corrected import Corrected, with_corrections
from qconvert.quantization.sensitivity.channels import channel_axes
from qconvert.quantization.sensitivity.walk import Body, Look


@dataclass(frozen=True)
class Subject:
    """`model` is the float model that int8 is made of, `corrected` what recovery made of it, `plan`
    that of the latter. `measured` names the output by which is judged; of a model that is traced in
    parts all that the parts return counts instead, each part on what it reads in the float model.
    """

    model: FusedModel
    corrected: FusedModel
    plan: Plan
    measured: str
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    @cached_property
    def _lowered(self) -> tuple[GraphModule, tuple[Place, ...]]:
        target = Switched(self.model, self.plan)
        graph = lower(self.corrected, self.plan, target)
        return graph, target.places

    @property
    def graph(self) -> GraphModule:
        """With its switches."""
        return self._lowered[0]

    @property
    def places(self) -> tuple[Place, ...]:
        """What can be switched, in order."""
        return self._lowered[1]

    @cached_property
    def bodies(self) -> tuple[Body, ...]:
        """The model, or its parts."""
        assembly, axes = self.model.assembly, channel_axes(self.model.graph)
        numbered = dict(enumerate(self.places))
        if assembly.whole:
            return (Body(self.graph, numbered, axes, self.measured),)
        return tuple(Body(part, numbered, axes, None) for part in assembly.split(self.graph))

    def parts(self) -> tuple[str | None, ...]:
        """The place in the model of each body; None for a whole model."""
        assembly = self.model.assembly
        names = tuple(known_path(part.path) or "the model" for part in assembly.parts)
        return (None,) if assembly.whole else names

    @contextmanager
    def looks(self, inputs: Inputs) -> Iterator[Iterator[Look]]:
        """Each body that an image reaches, on what it reads. Parts are found by watching the user's
        own model, which one image at a time can be."""
        assembly = self.model.assembly
        with nullcontext() if assembly.whole else self._lock:
            calls: list[tuple[int, Sequence[Tensor]]] = [(0, inputs)]
            if not assembly.whole:
                calls = [(i, given) for i, given, _ in assembly.part_calls(inputs)]
            yield (Look(self.bodies[i], given) for i, given in calls)


def with_plan(subject: Subject, plan: Plan) -> Subject:
    """Another plan of the same model, with what recovery made of the layers that it holds alike."""
    before = {o.node: o for o in subject.plan.operators if o.precision == "int8"}
    nodes = nodes_by_name(subject.corrected)
    kept = {}
    for operator in plan.operators:
        other = before.get(operator.node)
        if operator.precision != "int8" or operator.weight is None or other is None:
            continue
        if other.weight is not None and other.weight.scales == operator.weight.scales:
            module = module_of(subject.corrected.graph, nodes[operator.node])
            bias = None if module.bias is None else module.bias.detach()
            kept[operator.node] = Corrected(module.weight.detach(), bias)
    corrected, plan = with_corrections(subject.model, plan, kept)
    return Subject(subject.model, corrected, plan, subject.measured)
