"""The simulated int8 model as it learns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.models.fusion import FusedModel
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Trainable
from qconvert.quantization.lowering.trainable import LearnedLayer
from qconvert.quantization.plan import Plan
from qconvert.quantization.training.features import with_features
from qconvert.quantization.training.finetuned import Finetuned, TrainedLayer
from qconvert.quantization.training.sharing import with_learned_ranges

# The learned values by name.
State = dict[str, Tensor]


class Student:
    """Learns a model's int8 weights, biases and weight scales, and the ranges of its tensors, from
    those of a plan on. A layer that is called at several places keeps its weight: its int8 forms
    share one float weight. It shows the values named `features`. Unless it `rounds`, weights are
    used as they are: the noise of rounded tensors teaches alone."""

    def __init__(
        self,
        model: FusedModel,
        plan: Plan,
        features: Sequence[str],
        device: str = "cpu",
        rounds: bool = True,
    ) -> None:
        if device != "cpu":  # the float layers of the model stay where they are
            model = replace(model, graph=copy.deepcopy(model.graph))
        self.rounds = rounds
        marked, self._ranges = with_learned_ranges(plan)
        self._range_of = {name: held.observer for name, held in marked.tensors.items()}
        target = Trainable(self._ranges, _called_once(model, plan), rounds)
        graph = lower(model, marked, target)
        shown = {name: target.values[name] for name in features}
        self._module = with_features(graph, shown).to(device)
        found = {o.operator.node: graph.get_submodule(path) for path, o in target.layers.items()}
        self._layers = {n: layer for n, layer in found.items() if isinstance(layer, LearnedLayer)}

    def __call__(self, *inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """What the model returns, and the features."""
        found: tuple[Any, dict[str, Tensor]] = self._module(*inputs)
        return found

    @property
    def weights(self) -> list[nn.Parameter]:
        """Weights and biases that learn, in steps of int8."""
        of_layers = [p for x in self._layers.values() for p in (x.steps, x.bias_steps)]
        return [parameter for parameter in of_layers if parameter.requires_grad]

    @property
    def channels(self) -> list[nn.Parameter]:
        """Logarithms of the sizes of channels that learn, while weights are not rounded."""
        free = [layer for layer in self._layers.values() if layer.learns and not self.rounds]
        return [parameter for layer in free for parameter in (layer.growth, layer.reading)]

    @property
    def scales(self) -> list[nn.Parameter]:
        """Logarithms of weight scales, if weights are rounded, and of ranges; zero points."""
        found = [layer.growth for layer in self._layers.values() if self.rounds]
        found += [p for x in self._ranges.values() for p in (x.growth, x.shift)]
        return [parameter for parameter in found if parameter.requires_grad]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learn, always in the same order."""
        return [*self.weights, *self.scales, *self.channels]

    def keep_within(self) -> None:
        """Takes back what the kernels could not compute; after each step."""
        for layer in self._layers.values():
            if layer.learns and layer.rounds:
                layer.keep_within()
        for each in self._ranges.values():
            each.keep_within()

    def state(self) -> list[Tensor]:
        """A copy of all that was learned so far."""
        return [parameter.detach().cpu().clone() for parameter in self.parameters]

    @torch.no_grad()
    def load(self, state: Sequence[Tensor]) -> None:
        """Back to what `state` returned."""
        for parameter, value in zip(self.parameters, state, strict=True):
            parameter.copy_(value)

    @torch.no_grad()
    def finetuned(self) -> Finetuned:
        """What was learned, as it is applied to a plan; the weights lie on their steps if they were
        rounded. If they were not, the student rounds from here on."""
        layers = {}
        for name, layer in self._layers.items():
            if not layer.learns:
                continue
            weight = layer.rounded_weight if layer.rounds else layer.settled()
            tensors = (weight.contiguous(), layer.bias, layer.scales)
            layers[name] = TrainedLayer(*(tensor.detach().cpu() for tensor in tensors))
        ranges = {
            name: (float(own.scale), round(float(own.zero_point)))
            for name, own in ((n, self._ranges[r]) for n, r in self._range_of.items())
            if own.growth.requires_grad
        }
        return Finetuned(layers, ranges)


def _called_once(model: FusedModel, plan: Plan) -> set[str]:
    """The nodes of int8 layers whose module no other node calls."""
    nodes: Mapping[str, Any] = nodes_by_name(model)
    calls = [str(node.target) for node in nodes.values() if node.op == "call_module"]
    return {
        o.node
        for o in plan.operators
        if o.precision == "int8"
        and o.weight is not None
        and calls.count(str(nodes[o.node].target)) == 1
    }
