"""Counts what a saved file computes in int8, by reading its graph; the plan is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qconvert import torchscript
from qconvert.errors import VerificationError
from qconvert.quantization.plan import Plan
from qconvert.records import Record

_INT8_CONVOLUTIONS = tuple(
    f"quantized::conv{n}d{relu}" for n in (1, 2, 3) for relu in ("", "_relu")
)
_LINEAR = (
    "quantized::linear",
    "quantized::linear_relu",
    "quantized::linear_with_input_q_dq_qweight_dq_output_fp32",
    "aten::linear",
    "aten::matmul",
    "aten::mm",
    "aten::bmm",
)
_FLOAT_CONVOLUTIONS = (
    "aten::_convolution",
    "aten::_convolution_mode",
    *(f"aten::conv{n}d" for n in (1, 2, 3)),
)
_RECURRENT = ("aten::lstm", "aten::gru")
_TRANSFORMER = ("aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention")
_BOUNDARIES = ("aten::quantize_per_tensor", "aten::dequantize")
# They change the layout or bound the integers; they compute nothing.
_UNCOUNTED = (*_BOUNDARIES, "aten::contiguous", "aten::clamp")


class Coverage(Record):
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


def count(module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> Coverage:
    """Counts the operators of a frozen module and their work on one image.

    A boundary is a conversion between float and int8.
    """
    kinds: Counter[str] = Counter()
    int8: Counter[bool] = Counter()
    macs: Counter[bool] = Counter()
    for executed in torchscript.graph_values(module, example):
        kind = executed.node.kind()
        kinds[kind] += 1
        in_int8 = kind.startswith("quantized::") or executed.output.is_quantized
        macs[in_int8] += _macs(executed)
        if kind not in _UNCOUNTED:
            int8[in_int8] += 1
    return Coverage(
        int8_operators=int8[True],
        float_operators=int8[False],
        boundaries=sum(kinds[kind] for kind in _BOUNDARIES),
        int8_macs=macs[True],
        macs=macs.total(),
        operators=dict(sorted(kinds.items())),
    )


def check_against_plan(found: Coverage, plan: Plan) -> None:
    """Raises VerificationError when the file's multiply-accumulates are not those of the plan."""
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
        raise VerificationError(
            facts, where="model.int8.pt", fix="this is a bug of qconvert: report it"
        )


def _macs(executed: torchscript.Executed) -> int:
    """Multiply-accumulates of one node, from its constant weight or its operands' shapes."""
    node, kind = executed.node, executed.node.kind()
    x, result = executed.inputs.get(0), executed.output
    if kind in _INT8_CONVOLUTIONS:
        weight, _ = _unpack_convolution(kind)(node.inputsAt(1).toIValue())
        return result.numel() * weight[0].numel()
    if kind in _FLOAT_CONVOLUTIONS and x is not None:
        weight = executed.inputs[1]
        transposed = kind == "aten::_convolution" and bool(node.inputsAt(6).toIValue())
        return (x if transposed else result).numel() * weight[0].numel()
    if kind in _LINEAR and x is not None:
        return result.numel() * x.shape[-1]
    if kind == "aten::addmm":
        return result.numel() * executed.inputs[1].shape[-1]
    if kind == "aten::scaled_dot_product_attention" and x is not None:
        keys = executed.inputs[1].shape[-2]
        return x.numel() * keys + result.numel() * keys
    if kind in _TRANSFORMER and x is not None:
        # The projections, and the two products of attention (self-attention: keys are queries).
        matrices = [w for i, w in executed.inputs.items() if i and w.dim() == 2]
        tokens, length = x.numel() // x.shape[-1], x.shape[-2]
        return tokens * sum(w.numel() for w in matrices) + 2 * x.numel() * length
    if kind in _RECURRENT and x is not None:
        matrices = [weight for weight in _constants(node.inputsAt(2)) if weight.dim() == 2]
        return x.numel() // x.shape[-1] * sum(weight.numel() for weight in matrices)
    return 0


def _constants(value: torch._C.Value) -> list[Tensor]:
    """The tensors of a list in a frozen graph."""
    items: Any = [item.toIValue() for item in value.node().inputs()] or value.toIValue() or ()
    return [item for item in items if isinstance(item, Tensor)]


def _unpack_convolution(kind: str) -> Callable[[Any], tuple[Tensor, Tensor]]:
    name = kind.removeprefix("quantized::").removesuffix("_relu")
    return getattr(torch.ops.quantized, f"{name}_unpack")
