"""Counts what a saved file computes in int8, by reading its graph; the plan is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qconvert import torchscript
from qconvert.errors import ConversionError
from qconvert.quantization.plan import Frozen, Plan

_INT8_CONVOLUTIONS = tuple(
    f"quantized::conv{n}d{relu}" for n in (1, 2, 3) for relu in ("", "_relu")
)
_INT8_LINEAR = (
    "quantized::linear",
    "quantized::linear_relu",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
)
_FLOAT_CONVOLUTIONS = ("aten::_convolution", *(f"aten::conv{n}d" for n in (1, 2, 3)))
_FLOAT_PRODUCTS = ("aten::linear", "aten::addmm", "aten::matmul", "aten::bmm")
_COUNTED = (*_INT8_CONVOLUTIONS, *_INT8_LINEAR, *_FLOAT_CONVOLUTIONS, *_FLOAT_PRODUCTS)


class Coverage(Frozen):
    """What a file computes in int8. Multiply-accumulates are of one image."""

    int8_operators: int
    float_operators: int
    boundaries: int
    int8_macs: int
    macs: int
    operators: dict[str, int]

    @property
    def int8_macs_share(self) -> float:
        """Between 0 and 1."""
        return self.int8_macs / self.macs if self.macs else 0.0


def count(module: torch.jit.ScriptModule, example: Tensor) -> Coverage:
    """Counts the operators of a frozen module and their work on one image.

    A boundary is a conversion between float and int8.
    """
    kinds = Counter(
        node.kind() for node in module.graph.nodes() if not node.kind().startswith("prim::")
    )
    boundaries = sum(kinds[kind] for kind in ("aten::quantize_per_tensor", "aten::dequantize"))
    int8 = {kind: n for kind, n in kinds.items() if kind.startswith("quantized::")}
    macs: Counter[bool] = Counter()
    for node, x, result in torchscript.graph_values(module, _COUNTED, example):
        macs[node.kind().startswith("quantized::")] += _macs(node, x, result)
    return Coverage(
        int8_operators=sum(int8.values()),
        float_operators=sum(kinds.values()) - sum(int8.values()) - boundaries,
        boundaries=boundaries,
        int8_macs=macs[True],
        macs=macs.total(),
        operators=dict(sorted(kinds.items())),
    )


def check_against_plan(found: Coverage, plan: Plan) -> None:
    """Raises ConversionError when the file's multiply-accumulates are not those of the plan."""
    planned = {
        precision: sum(o.macs for o in plan.operators if o.precision == precision)
        for precision in ("int8", "float32")
    }
    have = {"int8": found.int8_macs, "float32": found.macs - found.int8_macs}
    # Products of two computed tensors (attention) have no constant weight: only the file has them.
    facts = [] if have["int8"] == planned["int8"] else [
        f"the file computes {have['int8']:,} multiply-accumulates in int8, "
        f"the plan says {planned['int8']:,}"
    ]  # fmt: skip
    if have["float32"] < planned["float32"]:
        facts.append("the file computes less in float than the plan says")
    if facts:
        raise ConversionError(
            facts, where="model.int8.pt", fix="this is a bug of qconvert: report it"
        )


def _macs(node: torch._C.Node, x: Tensor, result: Tensor) -> int:
    """Multiply-accumulates of one node, given its first input and its result."""
    if node.kind() in _INT8_CONVOLUTIONS:
        unpacked, _ = _unpack_convolution(node.kind())(node.inputsAt(1).toIValue())
        return result.numel() * unpacked[0].numel()
    weight: Any
    if node.kind() in _FLOAT_CONVOLUTIONS:
        weight = node.inputsAt(1).toIValue()
        if weight is None:
            return 0
        transposed = node.kind() == "aten::_convolution" and bool(node.inputsAt(6).toIValue())
        return x.numel() * weight[0].numel() if transposed else result.numel() * weight[0].numel()
    if node.kind() == "aten::addmm":
        weight = node.inputsAt(2).toIValue()
        return 0 if weight is None else result.numel() * weight.shape[0]
    return result.numel() * x.shape[-1]


def _unpack_convolution(kind: str) -> Callable[[Any], tuple[Tensor, Tensor]]:
    name = kind.removeprefix("quantized::").removesuffix("_relu")
    return getattr(torch.ops.quantized, f"{name}_unpack")
