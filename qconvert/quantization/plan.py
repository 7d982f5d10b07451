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


class FewerBits(Record):
    """What a layer gave up so that its sums of two products fit into 16 bits, and why.

    `weights`: of `of` output channels, those in `neighbours` and `any_two` have coarser weights, by
    at most one bit: as coarse as the two largest weights of neighbouring inputs need, or the two
    largest of all. In layers with dynamic ranges these are all channels, and are not listed.
    `inputs`: the inputs have 7 bits (layers with dynamic ranges only).
    """

    what: Literal["weights", "inputs"]
    neighbours: tuple[int, ...] = ()
    any_two: tuple[int, ...] = ()
    of: int = 0
    reason: str

    @property
    def extent(self) -> str:
        """In words.

        >>> FewerBits(what="weights", neighbours=(0, 2), of=16, reason="").extent
        'weights of 2 of 16 channels'
        """
        channels = len({*self.neighbours, *self.any_two})
        return f"weights of {channels} of {self.of} channels" if channels else self.what


Lowering = Literal["classic", "direct"]
Precision = Literal["int8", "dynamic", "float32", "given"]
Activation = Literal[
    "relu", "saturation", "hardswish", "silu", "gelu", "gelu_tanh", "tanh", "leaky_relu"
]


class PlannedOperator(Record):
    """One operator of the fused model.

    `inputs` and `node` name graph values; `value` is the one that holds the operator's result
    (after the sum and the activation that are computed with it). `precision` is `int8` with ranges
    from calibration, `dynamic` (int8 weights, ranges as the model runs, float in and out),
    `float32` or `given` (quantized in the source); `reason` says why the operator stays as it is.
    `kernel` is the operator that the file calls for it, where that is one of torch's int8
    operators; `lowering` is the family that it comes from. `with_sum` names the addition computed
    with it, whose other term is the last of `inputs`. `bounds` are those of a clip, `slope` that of
    a leaky ReLU. `macs` counts one image, for which the operator runs `calls` times (0 where only
    another image needs it). `cell_weights` are those of a recurrent layer, by their names in it.
    `fewer_bits` is what it gave up for CPUs without VNNI.
    """

    name: str
    node: str
    kind: str
    precision: Precision
    reason: str | None
    lowering: Lowering | None
    kernel: str | None
    with_sum: str | None
    with_activation: str | None
    activation: Activation | None
    bounds: tuple[float, float] | None
    slope: float | None
    value: str
    inputs: tuple[str, ...]
    float_output: bool
    macs: int
    weight: WeightParams | None
    cell_weights: dict[str, WeightParams] | None = None
    calls: int = 1
    fewer_bits: FewerBits | None = None


class KeptCode(Record):
    """A module whose own code stays as it is written, and why."""

    name: str
    reason: str


class Plan(Record):
    """All operators in the order of the graph, and how every tensor in int8 is held; `notes` are
    what the qconfig asks for in vain. `plain` plans use no quantized dtype at all.

    Of a model that torch.fx does not trace whole, `kept` are the modules that it does not, and
    `kept_macs` the multiply-accumulates of one image that are in their own code.
    """

    version: Literal[2] = 2
    isa: str
    plain: bool = False
    operators: tuple[PlannedOperator, ...]
    tensors: dict[str, TensorParams]
    kept: tuple[KeptCode, ...] = ()
    kept_macs: int = 0
    notes: tuple[str, ...] = ()

    def macs(self, precision: str) -> int:
        """Multiply-accumulates of one image that are planned in this precision."""
        return sum(o.macs for o in self.operators if o.precision == precision)

    @property
    def int8_macs(self) -> float:
        """The share of multiply-accumulates that are planned in int8, static or dynamic."""
        return self._share(self.macs("int8") + self.macs("dynamic"))

    @property
    def dynamic_macs(self) -> float:
        """The part of that share whose ranges are found as the model runs."""
        return self._share(self.macs("dynamic"))

    def _share(self, macs: int) -> float:
        total = self.kept_macs + sum(operator.macs for operator in self.operators)
        return macs / total if total else 0.0

    def manifest_lines(self) -> list[list[str | None]]:
        """Name, precision and kernel of each operator, for the manifest of the file."""
        return [[o.name, o.precision, o.kernel] for o in self.operators]

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
