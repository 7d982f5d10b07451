"""The plan: what becomes of every operator, written down before it is carried out."""

from __future__ import annotations

import json
from typing import Literal

from qconvert.quantization.affine import QuantParams
from qconvert.records import Record
from qconvert.workspace import digest


class TensorParams(Record):
    """How one tensor is held in quint8: its observed range and what follows from it."""

    observer: str
    range_min: float
    range_max: float
    scale: float
    zero_point: int
    quant_min: int
    quant_max: int

    @property
    def params(self) -> QuantParams:
        """The affine map."""
        return QuantParams(self.scale, self.zero_point, self.quant_min, self.quant_max)


class WeightParams(Record):
    """How a weight is held in qint8: one scale and zero point, or one for each output channel.

    `digest` is the SHA-256 of the integers, in the order of the weight's axes.
    """

    granularity: Literal["per_channel", "per_tensor"]
    scheme: Literal["symmetric", "affine"]
    observer: str
    quant_min: int
    quant_max: int
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    digest: str


class PlannedOperator(Record):
    """One operator of the fused model.

    `inputs` and `node` name graph values; `value` is the one that holds the operator's result
    (after the activation that is computed with it). `bounds` are those of a clip. `macs`
    counts one image. `reason` says why the operator stays in float.
    """

    name: str
    node: str
    kind: str
    precision: Literal["int8", "float32"]
    reason: str | None
    with_activation: str | None
    activation: Literal["relu", "saturation"] | None
    bounds: tuple[float, float] | None
    value: str
    inputs: tuple[str, ...]
    float_output: bool
    macs: int
    weight: WeightParams | None


class Plan(Record):
    """All operators in the order of the graph, and how every tensor in int8 is held; `notes` are
    what the qconfig asks for in vain."""

    version: Literal[1] = 1
    isa: str
    operators: tuple[PlannedOperator, ...]
    tensors: dict[str, TensorParams]
    notes: tuple[str, ...] = ()

    @property
    def int8_macs(self) -> float:
        """The share of multiply-accumulates that are planned in int8."""
        total = sum(operator.macs for operator in self.operators)
        int8 = sum(o.macs for o in self.operators if o.precision == "int8")
        return int8 / total if total else 0.0

    def digest(self) -> str:
        """SHA-256 of the whole plan."""
        return digest(self.model_dump(mode="json"))

    def to_json(self) -> str:
        """JSON with one line an operator and one a tensor, to be read and compared."""
        content = self.model_dump(mode="json")
        operators, tensors = content.pop("operators"), content.pop("tensors")
        head = json.dumps(content, indent=2)[:-2]
        rows = ",\n".join("    " + json.dumps(row) for row in operators)
        values = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items())
        return f'{head},\n  "operators": [\n{rows}\n  ],\n  "tensors": {{\n{values}\n  }}\n}}\n'
