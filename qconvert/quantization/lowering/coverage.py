"""Counts what a saved file computes in int8, by watching it run; the plan is not asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qconvert.errors import VerificationError
from qconvert.models.execution import Executed, float_macs, watch
from qconvert.quantization.kernels import DIRECT, DYNAMIC, FLOAT_LINEAR, UNWEIGHTED
from qconvert.quantization.lowering.dynamic import RECURRENT as DYNAMIC_RECURRENT
from qconvert.quantization.lowering.dynamic import recurrent_macs
from qconvert.quantization.plan import Plan, PlannedOperator, Precision
from qconvert.records import Record

_CLASSIC_CONVOLUTIONS = tuple(
    f"quantized::conv{n}d{relu}" for n in (1, 2, 3) for relu in ("", "_relu")
)
_DIRECT = tuple(DIRECT.values())
_DYNAMIC_LINEAR = (DYNAMIC["linear"], "quantized::linear_relu_dynamic")
_DYNAMIC = (*_DYNAMIC_LINEAR, *DYNAMIC_RECURRENT)
_LINEAR = ("quantized::linear", "quantized::linear_relu", FLOAT_LINEAR, *_DYNAMIC_LINEAR)
_QUANTIZE, _DEQUANTIZE = "aten::quantize_per_tensor", "aten::dequantize"
# Kernels that a plan names, but for those of layers.
_KERNELS = frozenset(UNWEIGHTED)
# From one int8 form to the other.
_CONVERSIONS = ("aten::set_",)
# They change the layout or bound the integers; they compute nothing.
_UNCOUNTED = (
    *_CONVERSIONS,
    "aten::as_strided",
    "aten::empty",
    "aten::_empty_affine_quantized",
    "aten::contiguous",
    "aten::clamp",
    "aten::new_zeros",
)
_WHERE = "model.int8.pt"


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


def count(module: Callable[..., Any], example: Sequence[Tensor]) -> Coverage:
    """Counts the operators that a model runs on one image, and their work."""
    kinds: Counter[str] = Counter()
    operators: Counter[bool] = Counter()
    counted: list[Counted] = []
    boundaries = 0

    def visit(executed: Executed) -> None:
        nonlocal boundaries
        kind = executed.kind
        kinds[kind] += 1
        boundary = _is_boundary(executed)
        boundaries += boundary
        found = Counted(_precision(executed), kind, _macs(executed))
        if found.macs or kind in _KERNELS:
            counted.append(found)
        if kind not in _UNCOUNTED and not boundary:
            operators[found.precision != "float32"] += 1

    watch(module, example, visit)
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
    found: Coverage,
    plan: Plan,
    manifest: Sequence[Sequence[str | None]] | None = None,
    given: Coverage | None = None,
) -> None:
    """Raises VerificationError when the file's operators are not those of the plan, or the
    manifest in it has others.

    Every int8 kernel of the plan must have run with its multiply-accumulates, and no other but
    those that the source has by itself (`given`); and so must every float operator that has any.
    Products of two computed tensors (attention) have no constant weight: only the file has them.
    Where code is kept as it is written, it alone knows how many boxes it chooses: there the int8
    kernels are compared, and how often they run.
    """
    expected: Counter[Counted] = Counter()
    names: dict[Counted, list[str]] = {}
    for o in plan.operators:
        if o.kernel is not None or (o.macs and not plan.kept):
            line = _planned(o, plan)
            expected[line] += o.calls
            names.setdefault(line, []).append(o.name)
    for counted in given.counted if given else ():
        if counted.precision != "float32":
            expected[_comparable(counted, plan)] += 1
    have = Counter(_comparable(counted, plan) for counted in found.counted)
    twins = _twins(plan)
    facts = [
        f"the plan has {expected[missing]} x {_described(missing, plan)} "
        f"({', '.join(names.get(missing, ['the source']))}), the file {expected[missing] - number}"
        for missing, number in (expected - have).items()
        if number > twins[missing]
    ]
    facts += [
        f"the file has {have[more]} x {_described(more, plan)}, the plan {have[more] - number}"
        for more, number in (have - expected).items()
        if more.precision != "float32"
    ]
    lines = plan.manifest_lines()
    if manifest is not None and [list(line) for line in manifest] != lines:
        facts.append("the manifest has other operators than the plan")
    if facts:
        raise VerificationError(facts, where=_WHERE, fix="this is a bug of qconvert: report it")


def _twins(plan: Plan) -> Counter[Counted]:
    """How many operators TorchScript may have left out when it froze the file: they read what
    another reads and are held as its result is (a layer that is called twice with the same value,
    batch norms of a network that was never trained)."""
    groups: Counter[tuple[Any, ...]] = Counter()
    for o in plan.operators:
        own = None if o.kernel in _KERNELS else o.name.partition(":")[0]
        line = _planned(o, plan)
        groups[line, o.inputs, own, plan.tensors.get(o.value)] += 1
    found: Counter[Counted] = Counter()
    for (line, *_), number in groups.items():
        found[line] += number - 1
    return found


def _planned(o: PlannedOperator, plan: Plan) -> Counted:
    """One run of a planned operator, as it is compared."""
    return _comparable(Counted(o.precision, o.kernel or "", o.macs // max(o.calls, 1)), plan)


def _comparable(counted: Counted, plan: Plan) -> Counted:
    if counted.precision == "float32":
        counted = counted._replace(kernel="")
    return counted._replace(macs=0) if plan.kept else counted


def _described(counted: Counted, plan: Plan) -> str:
    kernel = counted.kernel or "an operator"
    macs = "" if plan.kept else f" with {counted.macs:,} multiply-accumulates"
    return f"{kernel} in {counted.precision}{macs}"


def _precision(executed: Executed) -> Precision:
    kind = executed.kind
    if kind in _DYNAMIC:
        return "dynamic"
    int8 = kind.startswith("quantized::") or kind in _DIRECT or _is_int8(executed.output)
    return "int8" if int8 else "float32"


def _is_int8(x: Tensor) -> bool:
    return x.is_quantized or x.dtype == torch.uint8


def _is_boundary(executed: Executed) -> bool:
    """Whether an operator makes int8 of float or float of int8, and does nothing else."""
    if executed.kind in (_QUANTIZE, _DEQUANTIZE):
        return True
    return executed.kind == "aten::to" and _is_int8(executed.args[0]) != _is_int8(executed.output)


def _macs(executed: Executed) -> int:
    """Multiply-accumulates of one operator, from its constant weight or its operands' shapes."""
    kind, args, result = executed.kind, executed.args, executed.output
    if kind in _DIRECT:
        channels = 1 if "conv" in kind else -1
        return result.numel() * args[3].numel() // result.shape[channels]
    if kind in DYNAMIC_RECURRENT:
        return recurrent_macs(args[0], next(a for a in args if _is_cells(a)))
    if kind in _CLASSIC_CONVOLUTIONS:
        weight, _ = _unpack_convolution(kind)(args[1])
        return result.numel() * weight[0].numel()
    if kind in _LINEAR:
        return result.numel() * args[0].shape[-1]
    return float_macs(executed)


def _is_cells(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and isinstance(value[0], torch.ScriptObject)


def _unpack_convolution(kind: str) -> Callable[[Any], tuple[Tensor, Tensor]]:
    name = kind.removeprefix("quantized::").removesuffix("_relu")
    return getattr(torch.ops.quantized, f"{name}_unpack")
