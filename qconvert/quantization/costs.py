"""What an operator costs, in float and in int8: the shipped table, read by rules of thumb.

`costs.json` is made by `make costs` (benchmarks/costs.py), which times operators of each class over
a grid of shapes at one thread, for each class of CPU, and fits four numbers to each class: a fixed
time, and the times of an element read, an element written and a multiply-accumulate. To that comes
what it takes to fetch the weights from beyond the processor's own cache. The table is part of the
package, so the same model gets the same plan on any machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch.fx import GraphModule, Node

from qconvert.models.operators import (
    CONVOLUTIONS,
    REARRANGING,
    RECURRENT,
    kind_of,
    module_of,
    multiply_accumulates,
    recurrent_weights,
    shape_of,
    tensor_inputs,
)
from qconvert.qconfig import Isa
from qconvert.quantization.rules import (
    TWO_TERMS,
    interpolation_mode,
    is_depthwise,
    is_product,
    is_slow_depthwise,
)

_NOISE = 0.1
TABLE = Path(__file__).with_name("costs.json")
# How an operator can be computed; `_float` is a layer that returns float. A classic one reads float
# then, too: it quantizes by itself.
Way = Literal["float32", "classic", "classic_float", "direct", "direct_float", "dynamic"]
# Of a value: float to int8, int8 to float, and between the forms of the two families.
Crossing = Literal["quantize", "dequantize", "to_direct", "to_classic"]


class Work(NamedTuple):
    """What an operator does with one image: elements read (of recurrent layers: steps in time, of
    all layers and directions), elements written, multiply-accumulates."""

    read: int
    written: int
    macs: int


@dataclass(frozen=True)
class Costs:
    """Nanoseconds at one thread. `classes` holds the fitted numbers of each class of operators and
    way to compute it; `measured` what was timed for nodes of this model."""

    classes: Mapping[str, Mapping[str, tuple[float, float, float, float]]]
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def of(self, graph: GraphModule, node: Node, way: Way) -> int:
        """Of one operator on one image, in a network whose other layers have pushed its weights out
        of the processor's own cache."""
        timed = self.measured.get(node.name, {}).get(way)
        alone = self.by_table(graph, node, way) if timed is None else round(timed)
        weights = _weights(graph, node)
        if weights == 0:
            return alone
        width = "float32" if way == "float32" else "int8"
        return alone + self.estimate("weights", width, Work(weights, 0, 0))

    def by_table(self, graph: GraphModule, node: Node, way: Way) -> int:
        """Of one operator by itself."""
        if kind_of(graph, node) == TWO_TERMS:
            return self._two_terms(prod(shape_of(tensor_inputs(node)[0])), way)
        return self.estimate(class_of(graph, node, way), way, work_of(graph, node))

    def _two_terms(self, elements: int, way: Way) -> int:
        """Of what it is made of: each term is quantized, the first is taken back from its input,
        the second made larger, both joined."""
        single, both = Work(elements, elements, 0), Work(2 * elements, 2 * elements, 0)
        inside = 2 * self.crossing("quantize", elements) + self.crossing("dequantize", elements)
        inside += sum(self.estimate(name, "float32", single) for name in ("add", "mul"))
        return inside + self.estimate("cat", "float32" if way == "float32" else "classic", both)

    def estimate(self, name: str, way: str, work: Work) -> int:
        """Of an operator of this class, by the table; of an unknown class, that of `other`."""
        ways = self.classes.get(name, self.classes["other"])
        fixed, read, written, mac = ways[way] if way in ways else ways["float32"]
        return round(fixed + read * work.read + written * work.written + mac * work.macs)

    def activation(self, name: str, way: Way, elements: int) -> int:
        """What a layer costs more with an activation in its kernel."""
        return self.estimate(f"with {name}", way, Work(0, elements, 0))

    def crossing(self, name: Crossing, elements: int) -> int:
        """Of bringing a value from one form to another."""
        return self.estimate("crossing", name, Work(elements, 0, 0))


def work_of(graph: GraphModule, node: Node) -> Work:
    """The work of a node on its example."""
    meta = node.meta.get("tensor_meta")
    if kind_of(graph, node) in RECURRENT:
        matrices = len(recurrent_weights(module_of(graph, node))) // 2
        *tokens, _ = shape_of(tensor_inputs(node)[0])
        return Work(matrices * prod(tokens), 0, multiply_accumulates(graph, node))
    written = prod(shape_of(node)) if hasattr(meta, "shape") else 0
    read = sum(prod(shape_of(source)) for source in tensor_inputs(node))
    return Work(read, written, multiply_accumulates(graph, node))


def _weights(graph: GraphModule, node: Node) -> int:
    if node.op != "call_module":
        return 0
    return sum(p.numel() for p in module_of(graph, node).parameters())


def class_of(graph: GraphModule, node: Node, way: Way) -> str:
    """The row of the table that an operator belongs to."""
    kind = kind_of(graph, node)
    if kind in REARRANGING and kind != "channel_shuffle":
        return "rearranging"
    if kind == "interpolate":
        return f"{kind} {interpolation_mode(graph, node)}"
    if kind not in CONVOLUTIONS or node.op != "call_module":
        return kind
    return f"{kind} {_shape_of_convolution(module_of(graph, node), node, way)}"


def _shape_of_convolution(module: Any, node: Node, way: Way) -> str:
    if is_depthwise(module):
        return "depthwise cliff" if way == "classic" and is_slow_depthwise(module, way) else (
            "depthwise"
        )  # fmt: skip
    if module.groups > 1:
        return "grouped"
    if is_product(module, node):
        return "product"
    return "pointwise" if prod(module.kernel_size) == 1 else "dense"


def with_measured(
    costs: Costs, graph: GraphModule, nanoseconds: Mapping[str, Mapping[str, float]]
) -> Costs:
    """Costs with what was timed for nodes of this graph, where it differs from the table by more
    than a tenth: less is the noise of a stopwatch, and would make plans of chance."""
    kept: dict[str, dict[str, float]] = {}
    for node in graph.graph.nodes:
        for way, timed in nanoseconds.get(node.name, {}).items():
            by_table = costs.by_table(graph, node, way)  # type: ignore[arg-type]
            if abs(timed - by_table) > _NOISE * by_table:
                kept.setdefault(node.name, {})[way] = timed
    return replace(costs, measured=kept)


@cache
def table(isa: Isa) -> Costs:
    """The shipped costs for a class of CPUs; `portable` has those of the class that most have, for
    its files are right on all and fastest there."""
    tables = json.loads(TABLE.read_text())["classes"]
    chosen = tables["vnni" if isa == "portable" else isa]
    return Costs({name: {w: tuple(v) for w, v in ways.items()} for name, ways in chosen.items()})
