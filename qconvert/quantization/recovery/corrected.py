"""Corrects the layers of a plan one after the other, each on the inputs that the corrected layers
before it give it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.lowering.backend import Layer
from qconvert.quantization.plan import Plan, PlannedOperator
from qconvert.quantization.recovery.bias_correction import correction
from qconvert.quantization.recovery.drawn import Drawn, drawn
from qconvert.quantization.recovery.rounding import rounded_together
from qconvert.quantization.recovery.streams import Met, layers_in_order
from qconvert.quantization.rules import overflows_with_vnni
from qconvert.quantization.weights import fits_in_pairs, on_grid, quantized, with_digest_of

# Places that a layer is looked at, over all images: several times its inputs, within limits.
_PLACES, _FEWEST, _MOST = 8, 4096, 16384


@dataclass(frozen=True)
class Corrected:
    """A layer's float weight, which lies on the steps of its int8 form, and its float bias."""

    weight: Tensor
    bias: Tensor | None


def corrected_layers(
    model: FusedModel,
    plan: Plan,
    images: Sequence[Inputs],
    *,
    rounding: bool,
    bias_correction: bool,
    progress: Callable[[int, int], None] = lambda done, of: None,
    until: float = inf,
) -> dict[str, Corrected]:
    """The Conv2d and Linear layers in int8 that have one place in the graph, by their nodes; those
    that were not begun at the time `until` (of `time.monotonic`) are left out."""
    nodes = nodes_by_name(model)
    targets = [str(node.target) for node in nodes.values() if node.op == "call_module"]
    layers = sum(o.precision == "int8" and o.weight is not None for o in plan.operators)
    found = {}
    for done, met in enumerate(layers_in_order(model, plan, images)):
        if time.monotonic() > until:
            break
        progress(done, layers)
        operator = met.layer.operator
        inputs = met.module.weight[0].numel()
        places = min(max(_PLACES * inputs, _FEWEST), _MOST)
        seen = drawn(met.module, met.inputs, met.targets, places)
        if seen is None or targets.count(str(nodes[operator.node].target)) > 1:
            continue
        found[operator.node] = _correct(met, seen, rounding, bias_correction)
    return found


def with_corrections(
    model: FusedModel, plan: Plan, corrections: Mapping[str, Corrected]
) -> tuple[FusedModel, Plan]:
    """The model with these weights and biases, and the plan with the digests of their integers."""
    graph = copy.deepcopy(model.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for name, layer in corrections.items():
        module: Any = module_of(graph, nodes[name])
        module.weight = nn.Parameter(layer.weight, requires_grad=False)
        if layer.bias is not None:
            module.bias = nn.Parameter(layer.bias, requires_grad=False)

    def line(operator: PlannedOperator) -> PlannedOperator:
        if operator.node not in corrections or operator.weight is None:
            return operator
        weight = with_digest_of(corrections[operator.node].weight, operator.weight)
        return operator.model_copy(update={"weight": weight})

    operators = tuple(map(line, plan.operators))
    return replace(model, graph=graph), plan.model_copy(update={"operators": operators})


def _correct(met: Met, seen: Drawn, rounding: bool, bias_correction: bool) -> Corrected:
    """Changes the module of the simulation, and returns what it is changed to."""
    layer, module = met.layer, met.module
    weight = _rounded(layer, seen) if rounding else module.weight.detach()
    bias = layer.module.bias
    bias = None if bias is None else bias.detach()
    if bias_correction:
        groups = seen.rows.shape[0]
        grid = _on_grid(torch.zeros(len(weight)) if bias is None else bias, layer)
        more = correction(
            seen,
            weight.double().flatten(1).unflatten(0, (groups, -1)),
            grid.double().unflatten(0, (groups, -1)),
            *_unclipped(layer),
        )
        bias = (grid + more.flatten()).float()
    module.weight.copy_(weight)
    if bias is not None:
        module.bias = nn.Parameter(_on_grid(bias, layer), requires_grad=False)
    return Corrected(weight.clone(), bias)


def _on_grid(bias: Tensor, layer: Layer) -> Tensor:
    found = on_grid(bias, layer.x_held.scale, layer.weight)
    assert found is not None
    return found


def _rounded(layer: Layer, seen: Drawn) -> Tensor:
    """The layer's weight with its integers chosen together, in float32; the nearest integers in
    channels in which these would overflow."""
    float_weight, params = layer.module.weight.detach(), layer.weight
    groups = seen.rows.shape[0]
    rows = seen.rows.double()
    squares = rows.mT @ rows / rows.shape[1]
    outputs = len(float_weight)
    scales, zeros = (
        torch.tensor(numbers, dtype=torch.float64).expand(outputs).unflatten(0, (groups, -1))
        for numbers in (params.scales, params.zero_points)
    )
    together = rounded_together(
        float_weight.double().flatten(1).unflatten(0, (groups, -1)),
        squares,
        scales,
        params.quant_min - zeros,
        params.quant_max - zeros,
    )
    integers = together.reshape(float_weight.shape).to(torch.int64)
    weight = (together * scales[:, :, None]).reshape(float_weight.shape).float()
    narrow = layer.operator.lowering is not None and overflows_with_vnni(
        layer.module, layer.operator.lowering, params.scheme
    )
    fits = fits_in_pairs(integers, narrow, layer.operator.fewer_bits)
    nearest = quantized(float_weight, params).dequantize()
    return torch.where(fits.view(-1, *[1] * (weight.dim() - 1)), weight, nearest)


def _unclipped(layer: Layer) -> tuple[float, float]:
    """Between which of the layer's own results nothing is cut off by what comes after."""
    operator = layer.operator
    if layer.term_held is not None or operator.activation not in (None, "relu", "saturation"):
        return -inf, inf
    low, high = -inf, inf
    if layer.held is not None:
        low, high = layer.held.params.minimum, layer.held.params.maximum
    if operator.activation == "relu":
        low = max(low, 0.0)
    elif operator.activation == "saturation" and operator.bounds is not None:
        low, high = max(low, operator.bounds[0]), min(high, operator.bounds[1])
    return low, high
