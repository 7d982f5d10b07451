"""Tensors that cost most accuracy are held in two terms of 8 bits instead of one, and what makes
them is computed in float up to there.

8 bits of a whole tensor are too few where some images, or some channels, are far larger than the
rest; per-channel weights cannot make up for it, and no rounding of weights can. Frameworks with
16-bit kernels hold such tensors in 16 bits (W8A16). A second term does it with kernels of 8 bits
alone: the layer reads twice as many inputs. What is read between two layers as float (residual
sums) is not rounded on the way at all.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import NAME, kind_of, module_of, operator_name, shape_of
from qconvert.models.two_terms import FACTOR, TwoTerms, reading_two_terms
from qconvert.quantization import rules
from qconvert.quantization.affine import QuantParams, affine
from qconvert.quantization.calibration import Calibration
from qconvert.quantization.plan import Plan
from qconvert.quantization.recovery.tensor_noise import noise_of_tensors

_LEVELS = 255
# Tensors that are tried; of the noise of all, the share that is worth a look; how many percent of
# the noise must go for each percent of time; and the share of time that all may take.
_TRIED, _LEAST_SHARE, _WORTH, _SLOWEST = 12, 0.02, 4.0, 0.08


@dataclass(frozen=True)
class Maker:
    """What becomes of a model: its `plan` (before ranges are shared out again), and the
    `microseconds` that its plan is foreseen to take."""

    plan: Callable[[FusedModel], Plan]
    microseconds: Callable[[FusedModel], float]


@dataclass(frozen=True)
class Chosen:
    """The tensors that are worth two terms, with the steps of the first, and the layers that read
    them; all by their nodes. `slower` is the share of the foreseen time that they add."""

    params: dict[str, QuantParams]
    readers: dict[str, tuple[str, ...]]
    slower: float


def choose(
    model: FusedModel, calibration: Calibration, make: Maker, images: Sequence[Inputs], least: float
) -> Chosen:
    """One after the other, those whose rounding costs most: while the noise that goes is worth the
    time that comes, and noise is above `least` (a share of the outputs' power).

    Raises RuntimeError (torch's) for a model that has no derivatives.
    """
    plan = make.plan(model)
    noise = noise_of_tensors(model, plan, images)
    readers = candidates(model, plan)
    before = now = make.microseconds(model)
    total = left = sum(noise.values())
    params: dict[str, QuantParams] = {}
    for value in sorted(readers, key=lambda name: (-noise.get(name, 0.0), name))[:_TRIED]:
        if left <= least or noise.get(value, 0.0) < _LEAST_SHARE * total:
            break
        tried = {**params, value: params_for(calibration, value)}
        changed = with_two_terms(model, tried, readers)
        held = make.plan(changed).tensors
        still = sum(power for name, power in noise.items() if name in held)
        time = make.microseconds(changed)
        price = max(time - now, 0.0) / before
        if time <= (1 + _SLOWEST) * before and (left - still) / left >= _WORTH * price:
            params, left, now = tried, still, time
    chosen = {value: readers[value] for value in params}
    return Chosen(params, chosen, now / before - 1)


def candidates(model: FusedModel, plan: Plan) -> dict[str, tuple[str, ...]]:
    """What a plan holds in int8 and could hold in two terms, with those who would read these:
    convolutions without groups and linear layers in int8. It must be made by such a layer, a sum,
    or in float."""
    graph = model.graph
    nodes = {node.name: node for node in graph.graph.nodes}
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    makers = {o.value: o for o in plan.operators}
    found: dict[str, list[str]] = {}
    for operator in plan.operators:
        if operator.precision != "int8" or operator.weight is None:
            continue
        node = nodes[operator.node]
        value = operator.inputs[0]
        maker = makers.get(value)
        kind = None if maker is None else maker.kind
        if maker is None or not (
            maker.precision == "float32" or kind in rules.INT8_WEIGHTED or kind == "add"
        ):
            continue
        if _can_read(module_of(graph, node)) and calls[str(node.target)] == 1:
            found.setdefault(value, []).append(operator.node)
    return {value: tuple(readers) for value, readers in found.items()}


def params_for(calibration: Calibration, value: str) -> QuantParams:
    """The steps of the first term: all that calibration saw, and as much room at both ends as what
    is left over needs."""
    seen = calibration.tensors[value]
    low, high = min(seen.minimum, 0.0), max(seen.maximum, 0.0)
    room = FACTOR / 2 * (high - low) / (_LEVELS - FACTOR)
    return affine(low - room, high + room)


def with_two_terms(
    model: FusedModel, chosen: Mapping[str, QuantParams], readers: Mapping[str, Sequence[str]]
) -> FusedModel:
    """The model whose `readers` of the `chosen` values read two terms; it computes the same."""
    if not chosen:
        return model
    graph: GraphModule = copy.deepcopy(model.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for value, params in chosen.items():
        layers = [nodes[name] for name in readers[value]]
        linear = kind_of(graph, layers[0]) == "linear"
        source = nodes[value]
        module = TwoTerms(params.scale, params.zero_point, -1 if linear else 1)
        terms = _inserted(graph, source, module)
        for layer in layers:
            graph.set_submodule(str(layer.target), reading_two_terms(module_of(graph, layer)))
            layer.replace_input_with(source, terms)
    graph.graph.lint()
    graph.recompile()
    return replace(model, graph=graph)


def _inserted(graph: GraphModule, source: Node, module: TwoTerms) -> Node:
    path = f"two_terms_{source.name}"
    graph.add_submodule(path, module.eval())
    with graph.graph.inserting_after(source):
        node: Node = graph.graph.call_module(path, (source,))
    shape = list(shape_of(source))
    shape[module.axis] *= 2
    node.meta = dict(source.meta)
    node.meta["tensor_meta"] = source.meta["tensor_meta"]._replace(shape=torch.Size(shape))
    node.meta[NAME] = f"{operator_name(source)}.two_terms"
    return node


def _can_read(module: Any) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and module.groups == 1
