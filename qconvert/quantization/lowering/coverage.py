"""Counts what a saved file computes in int8, by reading its graph; the plan is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from qconvert import torchscript
from qconvert.errors import VerificationError
from qconvert.quantization.kernels import DIRECT, DYNAMIC, FLOAT_LINEAR, UNWEIGHTED
from qconvert.quantization.lowering.dynamic import RECURRENT as DYNAMIC_RECURRENT
from qconvert.quantization.lowering.dynamic import recurrent_macs
from qconvert.quantization.plan import Plan
from qconvert.records import Record

_CLASSIC_CONVOLUTIONS = tuple(
    f"quantized::conv{n}d{relu}" for n in (1, 2, 3) for relu in ("", "_relu")
)
_DIRECT = tuple(DIRECT.values())
_DYNAMIC_LINEAR = (DYNAMIC["linear"], "quantized::linear_relu_dynamic")
_DYNAMIC = (*_DYNAMIC_LINEAR, *DYNAMIC_RECURRENT)
_LINEAR = (
    "quantized::linear",
    "quantized::linear_relu",
    FLOAT_LINEAR,
    *_DYNAMIC_LINEAR,
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
_QUANTIZE, _DEQUANTIZE = "aten::quantize_per_tensor", "aten::dequantize"
# Kernels that a plan names, but for those of layers.
_KERNELS = frozenset(UNWEIGHTED)
# From one int8 form to the other.
_CONVERSIONS = ("aten::int_repr", "aten::_make_per_tensor_quantized_tensor")
# They change the layout or bound the integers; they compute nothing.
_UNCOUNTED = (*_CONVERSIONS, "aten::contiguous", "aten::clamp", "aten::new_zeros")
_WHERE = "model.int8.pt"

Precision = Literal["int8", "dynamic", "float32"]


class Counted(NamedTuple):
    """An operator of the file that multiplies and accumulates, or is an int8 kernel of torch."""

    precision: Precision
    kernel: str
    macs: int


class Coverage(Record):
    """What a file computes in int8. Multiply-accumulates are of one image; `dynamic_macs` are
    those with int8 weights whose inputs' ranges are found as the model runs, and a part of
    `int8_macs`. A boundary is a conversion between float and int8, a conversion one between the
    two forms of int8 tensors."""

    int8_operators: int
    float_operators: int
    boundaries: int
    conversions: int
    int8_macs: int
    dynamic_macs: int
    macs: int
    operators: dict[str, int]
    counted: tuple[Counted, ...]

    @property
    def int8_macs_share(self) -> float:
        """Between 0 and 1."""
        return self.int8_macs / self.macs if self.macs else 0.0


def count(module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> Coverage:
    """Counts the operators of a frozen module and their work on one image."""
    kinds: Counter[str] = Counter()
    operators: Counter[bool] = Counter()
    counted: list[Counted] = []
    boundaries = 0
    for executed in torchscript.graph_values(module, example):
        kind = executed.node.kind()
        kinds[kind] += 1
        boundary = _is_boundary(executed)
        boundaries += boundary
        found = Counted(_precision(executed), kind, _macs(executed))
        if found.macs or kind in _KERNELS:
            counted.append(found)
        if kind not in _UNCOUNTED and not boundary:
            operators[found.precision != "float32"] += 1
    macs = Counter[str]()
    for found in counted:
        macs[found.precision] += found.macs
    return Coverage(
        int8_operators=operators[True],
        float_operators=operators[False],
        boundaries=boundaries,
        conversions=sum(kinds[kind] for kind in _CONVERSIONS),
        int8_macs=macs["int8"] + macs["dynamic"],
        dynamic_macs=macs["dynamic"],
        macs=macs.total(),
        operators=dict(sorted(kinds.items())),
        counted=tuple(counted),
    )


def check_against_plan(
    found: Coverage, plan: Plan, manifest: Sequence[Sequence[str | None]] | None = None
) -> None:
    """Raises VerificationError when the file's operators are not those of the plan, or the
    manifest in it has others.

    Every int8 kernel of the plan must be in the file with its multiply-accumulates, and no other;
    and so must every float operator that has any. Products of two computed tensors (attention) have
    no constant weight: only the file has them.
    """
    planned: Counter[Counted] = Counter()
    names: dict[Counted, list[str]] = {}
    for o in plan.operators:
        if o.kernel is not None or o.macs:
            expected = Counted(o.precision, o.kernel or "", o.macs)
            planned[expected] += 1
            names.setdefault(expected, []).append(o.name)
    have = Counter(c if c.precision != "float32" else c._replace(kernel="") for c in found.counted)
    facts = [
        f"the plan has {planned[missing]} x {_described(missing)} "
        f"({', '.join(names[missing])}), the file {planned[missing] - number}"
        for missing, number in (planned - have).items()
    ]
    facts += [
        f"the file has {have[more]} x {_described(more)}, the plan {have[more] - number}"
        for more, number in (have - planned).items()
        if more.precision != "float32"
    ]
    lines = plan.manifest_lines()
    if manifest is not None and [list(line) for line in manifest] != lines:
        facts.append("the manifest has other operators than the plan")
    if facts:
        raise VerificationError(facts, where=_WHERE, fix="this is a bug of qconvert: report it")


def _described(counted: Counted) -> str:
    kernel = counted.kernel or "an operator"
    return f"{kernel} in {counted.precision} with {counted.macs:,} multiply-accumulates"


def _precision(executed: torchscript.Executed) -> Precision:
    kind, result = executed.node.kind(), executed.output
    if kind in _DYNAMIC:
        return "dynamic"
    int8 = kind.startswith("quantized::") or kind in _DIRECT or _is_int8(result)
    return "int8" if int8 else "float32"


def _is_int8(x: Tensor) -> bool:
    return x.is_quantized or x.dtype == torch.uint8


def _is_boundary(executed: torchscript.Executed) -> bool:
    """Whether a node makes int8 of float or float of int8, and does nothing else."""
    kind = executed.node.kind()
    if kind in (_QUANTIZE, _DEQUANTIZE):
        return True
    x = executed.inputs.get(0)
    return kind == "aten::to" and x is not None and _is_int8(x) != _is_int8(executed.output)


def _macs(executed: torchscript.Executed) -> int:
    """Multiply-accumulates of one node, from its constant weight or its operands' shapes."""
    node, kind = executed.node, executed.node.kind()
    x, result = executed.inputs.get(0), executed.output
    if kind in _DIRECT:
        channels = 1 if "conv" in kind else -1
        return result.numel() * executed.inputs[3].numel() // result.shape[channels]
    if kind in DYNAMIC_RECURRENT and x is not None:
        return recurrent_macs(node, x)
    if kind in _CLASSIC_CONVOLUTIONS:
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
