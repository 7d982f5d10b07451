"""What training makes of a model and its plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.quantization.affine import QuantParams
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams
from qconvert.quantization.weights import with_digest_of

# The observer of ranges that were trained.
OBSERVER = "finetune"


@dataclass(frozen=True)
class TrainedLayer:
    """A layer's float32 weight and bias, and its weight scales (one for each output channel, or
    one)."""

    weight: Tensor
    bias: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Finetuned:
    """Layers by their nodes; scale and zero point of tensors by their names."""

    layers: Mapping[str, TrainedLayer]
    ranges: Mapping[str, tuple[float, int]]

    def to_bytes(self) -> bytes:
        """As safetensors."""
        arrays: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            for field in ("weight", "bias", "scales"):
                arrays[f"layer/{name}/{field}"] = getattr(layer, field).contiguous()
        for name, (scale, zero_point) in self.ranges.items():
            arrays[f"range/{name}"] = torch.tensor([scale, zero_point], dtype=torch.float64)
        return save(arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> Finetuned:
        """What `to_bytes` made."""
        layers: dict[str, dict[str, Tensor]] = {}
        ranges = {}
        for key, value in load(content).items():
            kind, name, *field = key.split("/")
            if kind == "layer":
                layers.setdefault(name, {})[field[0]] = value
            else:
                scale, zero_point = value.tolist()
                ranges[name] = scale, int(zero_point)
        return cls({name: TrainedLayer(**fields) for name, fields in layers.items()}, ranges)


def with_finetuned(model: FusedModel, plan: Plan, trained: Finetuned) -> tuple[FusedModel, Plan]:
    """The model with the trained weights and biases, and the plan that holds them and every tensor
    as was learned."""
    graph = copy.deepcopy(model.graph)
    nodes = {node.name: node for node in graph.graph.nodes}
    for name, layer in trained.layers.items():
        module: Any = module_of(graph, nodes[name])
        module.weight = nn.Parameter(layer.weight, requires_grad=False)
        module.bias = nn.Parameter(layer.bias, requires_grad=False)

    def line(operator: PlannedOperator) -> PlannedOperator:
        layer = trained.layers.get(operator.node)
        if layer is None or operator.weight is None:
            return operator
        update = {"scales": tuple(layer.scales.tolist()), "observer": OBSERVER}
        params = with_digest_of(layer.weight, operator.weight.model_copy(update=update))
        return operator.model_copy(update={"weight": params})

    tensors = {
        name: held if name not in trained.ranges else _held(held, *trained.ranges[name])
        for name, held in plan.tensors.items()
    }
    changed = {"operators": tuple(map(line, plan.operators)), "tensors": tensors}
    return replace(model, graph=graph), plan.model_copy(update=changed)


def _held(held: TensorParams, scale: float, zero_point: int) -> TensorParams:
    params = QuantParams(scale, zero_point, held.quant_min, held.quant_max)
    return TensorParams(
        observer=OBSERVER,
        range_min=params.minimum,
        range_max=params.maximum,
        scale=scale,
        zero_point=zero_point,
        quant_min=held.quant_min,
        quant_max=held.quant_max,
    )
