"""Scales channels of float models so that all channels of a tensor use its 8 bits alike.

A layer may return a channel k times as large if whoever reads it divides by k: ReLU, poolings and
sums let k pass. Nagel et al. 2019 (arXiv:1906.04721) equalize the weights of two layers so; here
the channels of activations are equalized, which per-channel weights make the better bargain, over
all layers that read or write the same sums. A clip lets k pass only for channels that stay below
its upper bound: these are kept well below it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import (
    clip_bounds,
    is_tensor,
    kind_of,
    module_of,
    shape_of,
    tensor_inputs,
)
from qconvert.quantization.watched import watched

# They compute with each channel alone, and k times as much of k times as much.
_PASSING = (
    "relu", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "identity", "mean",
)  # fmt: skip
# Of what would make all channels alike, by its exponent: the rest is left to the weights.
_STRENGTH = 0.5
_LARGEST = 8.0
# How far below the bound of a clip a channel stays.
_MARGIN = 2.0


@dataclass(frozen=True)
class Together:
    """Values whose channels have one factor each: the `writers` (layers, by their nodes) multiply
    by it, the `readers` divide. `held` are the values that are held in int8; `clipped` has the
    upper bound of each value that a clip returns."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    held: tuple[str, ...]
    clipped: Mapping[str, float]


def groups_of(model: FusedModel) -> list[Together]:
    """All that can be scaled, in the order of the graph."""
    graph = model.graph
    nodes = [node for node in graph.graph.nodes if node.op != "output"]
    calls = [str(node.target) for node in nodes if node.op == "call_module"]
    joined = DisjointSet(node.name for node in nodes)
    fixed, clipped = set[str](), dict[str, float]()
    layers: list[Node] = []
    for node in nodes:
        sources = tensor_inputs(node)
        if _is_layer(graph, node) and calls.count(str(node.target)) == 1:
            layers.append(node)
        elif node.op.startswith("call_") and _passes(graph, node):
            for source in sources:
                joined.merge(node.name, source.name)
            if kind_of(graph, node) == "clip":
                clipped[node.name] = (clip_bounds(graph, node) or (0.0, 0.0))[1]
        else:
            fixed |= {node.name, *(source.name for source in sources)}
    output = next(node for node in graph.graph.nodes if node.op == "output")
    fixed |= {node.name for node in output.all_input_nodes}
    roots = {joined[name] for name in fixed}
    members: dict[str, list[str]] = {}
    for node in nodes:
        if is_tensor(node) and joined[node.name] not in roots:
            members.setdefault(joined[node.name], []).append(node.name)
    found = []
    for values in members.values():
        writers = tuple(node.name for node in layers if node.name in values)
        readers = tuple(n.name for n in layers if tensor_inputs(n)[0].name in values)
        held = tuple(name for name in values if model.pairs.get(name) not in values)
        if writers and readers:
            bounds = {name: clipped[name] for name in values if name in clipped}
            found.append(Together(writers, readers, held, bounds))
    return found


def equalized(model: FusedModel, images: Sequence[Inputs]) -> FusedModel:
    """The model with all groups scaled by what these images show of their channels; it computes the
    same but for channels that other images bring above a clip's bound."""
    groups = groups_of(model)
    peaks = _peaks(model, {name for group in groups for name in group.held}, images)
    graph = copy.deepcopy(model.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for group in groups:
        factors = _factors(group, peaks)
        if factors is None:
            continue
        for name in group.writers:
            _scale(module_of(graph, nodes[name]), factors, written=True)
        for name in group.readers:
            _scale(module_of(graph, nodes[name]), factors, written=False)
    return replace(model, graph=graph)


def _is_layer(graph: GraphModule, node: Node) -> bool:
    """A convolution with all or one channel for each filter, or a linear layer of rows."""
    if node.op != "call_module":
        return False
    module: Any = module_of(graph, node)
    if kind_of(graph, node) == "conv2d":
        return module.groups == 1 or module.groups == module.in_channels == module.out_channels
    return kind_of(graph, node) == "linear" and len(shape_of(node)) == 2


def _passes(graph: GraphModule, node: Node) -> bool:
    kind, sources = kind_of(graph, node), tensor_inputs(node)
    if kind == "add":
        return len(sources) == 2 and shape_of(sources[0]) == shape_of(sources[1])
    if len(sources) != 1:
        return False
    if kind == "flatten":
        return set(shape_of(sources[0])[2:]) == {1} and len(shape_of(node)) == 2
    if kind == "clip":
        return (clip_bounds(graph, node) or (1.0, 1.0))[0] == 0.0
    if kind == "mean":
        return len(shape_of(sources[0])) == 4 and shape_of(node)[1] == shape_of(sources[0])[1]
    return kind in _PASSING


def _peaks(model: FusedModel, wanted: set[str], images: Sequence[Inputs]) -> dict[str, Tensor]:
    """The largest magnitude of each channel in each image: (images, channels)."""
    found: dict[str, list[Tensor]] = {}

    def see(name: str, value: Tensor) -> None:
        found.setdefault(name, []).append(value.abs().transpose(0, 1).flatten(1).amax(1))

    run: Callable[..., Any] = watched(model, wanted, see)
    for inputs in images:
        run(*inputs)
    return {name: torch.stack(values).double() for name, values in found.items()}


def _factors(group: Together, peaks: Mapping[str, Tensor]) -> Tensor | None:
    """One for each channel, from 1 to `_LARGEST`; None for what no image reaches."""
    seen = [peaks[name] for name in group.held if name in peaks]
    if not seen:
        return None
    usual = torch.stack([peak.mean(0) / peak.mean(0).max().clamp(min=1e-30) for peak in seen])
    share = usual.clamp(min=1e-6).log().mean(0).exp()
    factors = (share.max() / share).pow(_STRENGTH).clamp(max=_LARGEST)
    for name, bound in group.clipped.items():
        room = bound / (_MARGIN * peaks[name].amax(0).clamp(min=1e-30))
        factors = torch.minimum(factors, room.clamp(min=1.0))
    return factors


def _scale(module: Any, factors: Tensor, written: bool) -> None:
    weight, bias = module.weight.detach().double(), module.bias
    outputs = written or (isinstance(module, nn.Conv2d) and module.groups > 1)
    shape = [1] * weight.dim()
    shape[0 if outputs else 1] = -1
    change = factors.view(shape)
    weight = weight * change if written else weight / change
    module.weight = nn.Parameter(weight.float(), requires_grad=False)
    if written and bias is not None:
        scaled = (bias.detach().double() * factors).float()
        module.bias = nn.Parameter(scaled, requires_grad=False)
