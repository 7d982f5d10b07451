"""What a model computes while it runs: every operator of torch with its values, at any depth of a
saved file's loops and branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qconvert import torchscript

_CONVOLUTIONS = (
    "aten::_convolution",
    "aten::_convolution_mode",
    *(f"aten::conv{n}d" for n in (1, 2, 3)),
)
_TRANSPOSED = tuple(f"aten::conv_transpose{n}d" for n in (1, 2, 3))
_PRODUCTS = ("aten::linear", "aten::matmul", "aten::mm", "aten::bmm")
_RECURRENT = ("aten::lstm", "aten::gru")
_TRANSFORMER = ("aten::_transformer_encoder_layer_fwd", "aten::_native_multi_head_attention")


class Executed(NamedTuple):
    """One operator that ran: its name, arguments, and its (first) result."""

    kind: str
    args: tuple[Any, ...]
    output: Tensor


class _Watching(TorchDispatchMode):
    def __init__(self, visit: Callable[[Executed], None]) -> None:
        super().__init__()
        self._visit = visit

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # TorchScript computes sizes in tensors, which arrive here as numbers.
        args = tuple(
            torch.tensor(value) if _lost_its_tensor(value, wanted) else value
            for value, wanted in zip(args, func._schema.arguments, strict=False)
        )
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(first, Tensor):
            self._visit(Executed(func._schema.name, args, first))
        return result


def _lost_its_tensor(value: Any, wanted: Any) -> bool:
    return isinstance(value, (bool, int, float)) and wanted.type.kind() == "TensorType"


def watch(
    model: Callable[..., Any], inputs: Sequence[Tensor], visit: Callable[[Executed], None]
) -> Any:
    """Runs a model and shows every operator that computes a tensor to `visit`; returns what the
    model does. Values are not kept."""
    # In inference mode operators are seen as they are written, not as what they are made of.
    with torchscript.unoptimized(), torch.inference_mode(), _Watching(visit):
        return model(*inputs)


def float_macs(executed: Executed) -> int:
    """Multiply-accumulates of one float operator, from its operands' shapes."""
    kind, args, result = executed.kind, executed.args, executed.output
    if kind in _CONVOLUTIONS:
        transposed = kind == "aten::_convolution" and bool(args[6])
        return (args[0] if transposed else result).numel() * args[1][0].numel()
    if kind in _TRANSPOSED:
        return args[0].numel() * args[1][0].numel()
    if kind in _PRODUCTS:
        return result.numel() * args[0].shape[-1]
    if kind == "aten::addmm":
        return result.numel() * args[1].shape[-1]
    if kind == "aten::scaled_dot_product_attention":
        keys = args[1].shape[-2]
        return args[0].numel() * keys + result.numel() * keys
    if kind == "aten::einsum":
        return _einsum_macs(args[0], args[1])
    if kind in _TRANSFORMER:
        # The projections, and the two products of attention (self-attention: keys are queries).
        x = args[0]
        matrices = [w for w in args[1:] if isinstance(w, Tensor) and w.dim() == 2]
        tokens = x.numel() // x.shape[-1]
        return tokens * sum(w.numel() for w in matrices) + 2 * x.numel() * x.shape[-2]
    if kind in _RECURRENT:
        x, weights = args[0], next(a for a in args[1:] if _is_weights(a))
        matrices = [weight for weight in weights if weight.dim() == 2]
        return x.numel() // x.shape[-1] * sum(weight.numel() for weight in matrices)
    return 0


def _einsum_macs(equation: str, operands: Sequence[Tensor]) -> int:
    """Of two operands: one for each combination of all their indices."""
    inputs = equation.partition("->")[0].replace(" ", "").split(",")
    if "." in equation or len(operands) != 2:
        return 0
    sizes: dict[str, int] = {}
    for indices, operand in zip(inputs, operands, strict=True):
        sizes |= dict(zip(indices, operand.shape, strict=True))
    return prod(sizes.values())


def _is_weights(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(
        isinstance(item, Tensor) and item.dim() == 2 for item in value
    )


def float_macs_in(
    model: nn.Module, inputs: Sequence[Tensor], counted: Mapping[nn.Module, bool]
) -> int:
    """Multiply-accumulates of a float model for these inputs in those of its modules that are
    `counted`, without the modules in them that are not."""
    total, inside = 0, [False]

    def visit(executed: Executed) -> None:
        nonlocal total
        total += float_macs(executed) if inside[-1] else 0

    hooks = []
    for module, wanted in counted.items():
        hooks.append(
            module.register_forward_pre_hook(lambda *_, wanted=wanted: inside.append(wanted))
        )
        hooks.append(module.register_forward_hook(lambda *_: inside.__delitem__(-1)))
    try:
        watch(model, inputs, visit)
    finally:
        for hook in hooks:
            hook.remove()
    return total
