"""What the int8 kernels of torch can do, and where they are slower than float.

Measured facts, each with its source, so that the same model gets the same plan on any machine.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from qconvert.models.operators import (
    CONVOLUTIONS,
    TRANSPOSED,
    clip_bounds,
    is_constant,
    module_of,
    shape_of,
    tensor_inputs,
)

INT8_WEIGHTED = (*CONVOLUTIONS, "linear")
# Their result is held with the scale and zero point of their input.
SAME_RANGE = (
    "relu", "clip", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "flatten", "reshape",
)  # fmt: skip
# Their result has a range of its own; all inputs must be in int8.
COMBINING = ("add", "cat")
# Above so many channels the x86 engine hands depthwise convolutions to fbgemm.
_FBGEMM_DEPTHWISE = 100
_DIMENSIONS = {"conv1d": 3, "conv2d": 4, "conv3d": 5}


def why_impossible(graph: GraphModule, node: Node, kind: str) -> str | None:
    """Why this version has no int8 operator for a node, or None when it has one."""
    if is_constant(node):
        return "its input is constant: it is computed once, when the model is saved"
    if kind in TRANSPOSED:
        # torch refuses per-channel weights for them on x86 ("Per Channel Quantization is
        # currently disabled for transposed conv"); per tensor they lose accuracy.
        return "torch's int8 transposed convolutions take no per-channel weights"
    if kind in INT8_WEIGHTED:
        if node.op != "call_module":
            return "its weight is not constant"
        return _why_not_convolution(module_of(graph, node), node, kind)
    if isinstance(node.target, type) and issubclass(node.target, tuple):
        return "it holds the model's outputs"  # a named tuple
    if kind == "add":
        terms = tensor_inputs(node)
        if len(terms) != 2 or "alpha" in node.kwargs or len(node.args) > 2:
            return "it adds something else than two tensors"
        if shape_of(terms[0]) != shape_of(terms[1]):
            return "its inputs differ in shape"
    if kind == "clip" and clip_bounds(graph, node) is None:
        return "its bounds are not two constants"
    if kind == "mean" or (kind == "adaptive_avg_pool2d" and set(shape_of(node)[-2:]) == {1}):
        return "an average over many 8-bit values has more than 8 bits"
    if kind in SAME_RANGE or kind in COMBINING:
        return None
    return f"this version has no int8 {kind}"


def why_slow(graph: GraphModule, node: Node, kind: str) -> str | None:
    """Why int8 would be slower than float for a node, or None.

    fbgemm's depthwise kernels take 10 to 170 times as long when the channels are not a multiple
    of 8 or the dilation is not 1 (measured at one thread: 116 channels, 14x14: 1,898 against 36
    microseconds in float; 960 channels, dilation 2: 15,488 against 88).
    """
    if kind not in CONVOLUTIONS:
        return None
    module = module_of(graph, node)
    if not _is_depthwise(module) or module.in_channels <= _FBGEMM_DEPTHWISE:
        return None
    if module.in_channels % 8:
        return f"int8 depthwise kernels are slow with {module.in_channels} channels (not 8 n)"
    if any(d != 1 for d in module.dilation):
        return "int8 depthwise kernels are slow with a dilation"
    return None


def overflows_with_vnni(module: Any, scheme: str) -> bool:
    """Whether torch computes a layer with sums of 16 bits even on CPUs with VNNI.

    fbgemm's depthwise kernels do. The x86 engine takes them for more than 100 channels, and for
    weights with zero points. Measured: random 8-bit operands, 104 to 192 channels: off by 24 to 81
    output steps; 96 channels: exact; with weights from -64 to 64: exact.
    """
    return _is_depthwise(module) and (module.in_channels > _FBGEMM_DEPTHWISE or scheme == "affine")


def padding(module: Any) -> list[int] | None:
    """A convolution's padding of each axis, the same on both sides; None when it differs."""
    if module.padding == "valid":
        return [0] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
    return list(module.padding)


def _is_depthwise(module: Any) -> bool:
    groups: int = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels


def _why_not_convolution(module: Any, node: Node, kind: str) -> str | None:
    if kind == "linear":
        return None
    if module.padding_mode != "zeros":
        return f"torch's int8 convolutions have no {module.padding_mode} padding"
    if padding(module) is None:
        return "torch's int8 convolutions pad both sides alike"
    if len(shape_of(node)) != _DIMENSIONS[kind]:
        return "its input has no batch axis"
    return None
