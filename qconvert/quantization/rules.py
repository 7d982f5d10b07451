"""What the int8 kernels of torch can do.

Measured facts, each with its source, so that the same model gets the same plan on any machine.
What they cost is in `costs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.utils.rnn import PackedSequence

from qconvert.models.operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    REARRANGING,
    RECURRENT,
    TRANSPOSED,
    argument,
    clip_bounds,
    is_constant,
    kind_of,
    module_of,
    setting,
    shape_of,
    tensor_inputs,
)
from qconvert.models.pixel_folding import WHY_FLOAT
from qconvert.qconfig import WeightScheme
from qconvert.quantization.plan import Activation, Lowering

INT8_WEIGHTED = (*CONVOLUTIONS, "linear")
DYNAMIC = ("linear", *RECURRENT)
_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")
_AVERAGES = (
    "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
)  # fmt: skip
# Their result is made of their input's integers: no rounding.
UNROUNDED = ("relu", "clip", "pad", *_POOLS, *REARRANGING)
# Their result is held with the scale and zero point of their input.
SAME_RANGE = (*UNROUNDED, *_AVERAGES, "interpolate")
# Activations that have an int8 kernel of their own, a third faster than float between boundaries
# (docs/operators.md). The others are no faster, or a part of what is in float anyway. Hardswish is,
# too, but made a whole MobileNetV3 1 % faster and cost 0.8 dB, for its input is then rounded.
ALONE = ("leaky_relu",)
# Their result has a range of its own; all inputs must be in int8.
COMBINING = ("add", "mul", "cat", *ALONE)
# The model's input as it is: 8 bits that nobody chose a range for.
PIXELS = "pixels"
# Reads float, and makes of it integers whose scale it has by itself.
TWO_TERMS = "two_terms"
# Their result is held as it must be, whatever was seen of it.
HELD_AS_THEY_ARE = (PIXELS, TWO_TERMS)
# Above so many channels the x86 engine hands depthwise convolutions to fbgemm.
_FBGEMM_DEPTHWISE = 100
_DIMENSIONS = {"conv1d": 3, "conv2d": 4, "conv3d": 5}
_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu", "clip": "saturation", "hardswish": "hardswish", "silu": "silu",
    "tanh": "tanh", "leaky_relu": "leaky_relu",
}  # fmt: skip
# What each family computes with a layer in one kernel. oneDNN's convolutions refuse the others
# ("Unsupported post op"), the classic operators know ReLU and their own saturation only.
_CLASSIC_POST = ("relu", "saturation")
_DIRECT_POST: Mapping[str, tuple[Activation, ...]] = {
    "conv1d": ("relu", "saturation"),
    "conv2d": ("relu", "saturation", "hardswish", "silu"),
    "conv3d": (),
    "linear": (
        "relu", "saturation", "hardswish", "silu", "gelu", "gelu_tanh", "tanh", "leaky_relu",
    ),
}  # fmt: skip


def activation_of(graph: GraphModule, node: Node) -> Activation:
    """What a node of `operators.ACTIVATIONS` computes."""
    kind = kind_of(graph, node)
    if kind != "gelu":
        return _ACTIVATIONS[kind]
    module = module_of(graph, node) if node.op == "call_module" else None
    given = node.kwargs.get("approximate", "none")
    return "gelu_tanh" if getattr(module, "approximate", given) == "tanh" else "gelu"


def computes_with(kind: str, lowering: Lowering, activation: Activation) -> bool:
    """Whether a family's kernel for a layer computes this activation with it."""
    if lowering == "classic" or kind not in INT8_WEIGHTED:
        return activation in _CLASSIC_POST
    return activation in _DIRECT_POST[kind]


def returns_float(kind: str, lowering: Lowering, activation: Activation | None) -> bool:
    """Whether a layer's kernel can return its 32-bit sums as float."""
    if lowering == "classic":
        return kind == "linear" and activation is None
    # oneDNN's convolutions of one axis know no upper bound but that of uint8.
    return kind in INT8_WEIGHTED and not (kind == "conv1d" and activation == "saturation")


def why_impossible(
    graph: GraphModule, node: Node, kind: str, lowering: Lowering, weights: WeightScheme
) -> str | None:
    """Why a family has no int8 operator for a node, or None when it has one."""
    if is_constant(node):
        return "its input is constant: it is computed once, when the model is saved"
    if isinstance(node.target, type) and issubclass(node.target, tuple):
        return "it holds the model's outputs"  # a named tuple
    if kind in INT8_WEIGHTED:
        if node.op != "call_module":
            return "its weight is not constant"
        if kind == "linear" and len(shape_of(node)) < 2:
            return "int8 linear layers take a row for each image, this one is given one axis"
        reason = _why_not_convolution(module_of(graph, node), node, kind)
        if reason is None and lowering == "direct" and weights.scheme != "symmetric":
            reason = "oneDNN's operators take symmetric weights only"
        return reason
    if kind in TRANSPOSED:
        # torch refuses per-channel weights for them on x86 ("Per Channel Quantization is
        # currently disabled for transposed conv"); per tensor they lose accuracy.
        return "torch's int8 transposed convolutions take no per-channel weights"
    if kind in COMBINING:
        return _why_not_combining(node, kind, lowering)
    if kind in HELD_AS_THEY_ARE:
        return None
    if kind == "normalization":
        return str(node.meta.get(WHY_FLOAT))
    if kind == "batch_norm":
        if lowering == "direct" or len(shape_of(node)) not in (4, 5):
            return "int8 batch norm is for images, in torch's classic operators"
        return None if node.op == "call_module" else "its statistics are not constant"
    if kind == "clip" and clip_bounds(graph, node) is None:
        return "its bounds are not two constants"
    averages_all = kind.startswith("adaptive") and set(shape_of(node)[2:]) == {1}
    if kind == "mean" or averages_all:
        return "an average over many 8-bit values has more than 8 bits"
    if kind in SAME_RANGE:
        return _why_not_same_range(graph, node, kind, lowering)
    if kind in ACTIVATIONS:
        return "int8 kernels compute it only with the layer before it, where that is faster"
    return f"this version has no int8 {kind}"


def _why_not_combining(node: Node, kind: str, lowering: Lowering) -> str | None:
    terms = tensor_inputs(node)
    if kind in ALONE:
        return None if lowering == "classic" else "oneDNN computes it with a layer only"
    if kind == "cat":
        if len(terms) < 2:
            return "it joins something else than tensors"
        return None
    if len(terms) != 2 or "alpha" in node.kwargs or len(node.args) > 2:
        return f"it {kind}s something else than two tensors"
    if shape_of(terms[0]) != shape_of(terms[1]):
        return "its inputs differ in shape, for which int8 is up to eight times slower than float"
    return None


def _why_not_same_range(
    graph: GraphModule, node: Node, kind: str, lowering: Lowering
) -> str | None:
    sources = tensor_inputs(node)
    if len(sources) != 1:
        return "it reads no float tensor" if not sources else "it reads several tensors"
    if kind in ("chunk", "split"):
        return "it returns a tuple"
    if kind == "pad":
        mode, value = _padding_mode(graph, node)
        if mode != "constant" or value not in (None, 0):
            return "int8 kernels pad with zeros only"
    if kind == "interpolate":
        mode = interpolation_mode(graph, node)
        if mode not in ("nearest", "bilinear") or len(shape_of(node)) != 4:
            return f"there is no int8 interpolation in mode {mode}"
        if setting(graph, node, 6, "antialias", False):
            return "there is no int8 interpolation with antialias"
    if lowering == "direct":
        if kind in _AVERAGES or kind == "interpolate":
            return f"there is no {kind} of plain uint8 tensors"
        module = module_of(graph, node) if node.op == "call_module" else None
        if kind in _POOLS and (
            kind != "max_pool2d" or max_pool_settings(module, node.args, node.kwargs) is None
        ):
            return "there is no such pooling of plain uint8 tensors"
    return None


def interpolation_mode(graph: GraphModule, node: Node) -> str:
    """`nearest`, `bilinear`, …"""
    return str(setting(graph, node, 3, "mode", "nearest"))


def _padding_mode(graph: GraphModule, node: Node) -> tuple[str, Any]:
    if node.op == "call_module":
        module = module_of(graph, node)
        name = type(module).__name__
        mode = "constant" if name.startswith(("Zero", "Constant")) else name
        return mode, getattr(module, "value", 0)
    return argument(node, 2, "mode", "constant"), argument(node, 3, "value")


def max_pool_settings(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[int], list[int], list[int]] | None:
    """Kernel, stride and padding (two integers each) of a 2d max pooling that maxima of slices can
    compute; None for others. `args` and `kwargs` are those of the function, without a module."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    defaults = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False}
    given = {**defaults, **dict(zip(names, args[1:], strict=False)), **kwargs}
    if module is not None:
        given = {name: getattr(module, name) for name in names}
    sizes = [given["kernel_size"], given["stride"] or given["kernel_size"], given["padding"]]
    pairs = [[v, v] if isinstance(v, int) else list(v) for v in sizes]
    plain = given["dilation"] in (1, (1, 1), [1, 1]) and given["ceil_mode"] is False
    # A single slice would be no maximum but a view of its input.
    if not plain or pairs[0] == [1, 1]:
        return None
    return pairs[0], pairs[1], pairs[2]


def why_not_dynamic(module: nn.Module, args: Sequence[Any] = ()) -> str | None:
    """Why a layer, called with these arguments, has no dynamic int8 form here; None when it has.

    `args` are values or the nodes of a graph. Nothing is run.
    """
    layer = next((t for t in (nn.Linear, nn.LSTM, nn.GRU) if isinstance(module, t)), None)
    if layer is None:
        return f"torch has no dynamic int8 operator for {type(module).__name__}"
    if type(module).forward is not layer.forward:
        return f"{type(module).__name__} computes something else than torch.nn.{layer.__name__}"
    if any(parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "its weights are not float32"
    if getattr(module, "proj_size", 0):
        return "torch's int8 LSTM has no projections (proj_size)"
    if any(isinstance(value, PackedSequence) for value in args):
        return "its input is a PackedSequence"
    return None


def is_slow_depthwise(module: Any, lowering: Lowering) -> bool:
    """Whether a depthwise layer falls off fbgemm's cliff.

    fbgemm's depthwise kernels are fast for square filters of 3, 5 or 7 that keep the size, with
    stride 1 or 2 and channels in eights. All others take 10 to 250 times as long (measured at one
    thread: 116 channels, 14x14: 1,898 against 36 microseconds in float; 960 channels, dilation 2:
    15,488 against 88; 672 channels, 5x5, without padding: 30,850 against 159).
    """
    if lowering != "classic" or not is_depthwise(module) or module.in_channels <= _FBGEMM_DEPTHWISE:
        return False
    side = module.kernel_size[0]
    fast = (
        module.in_channels % 8 == 0
        and module.out_channels == module.in_channels
        and side in (3, 5, 7)
        and set(module.kernel_size) == {side}
        and set(padding(module) or ()) == {side // 2}
        and set(module.stride) <= {1, 2}
        and set(module.dilation) == {1}
    )
    return not fast


def overflows_with_vnni(module: Any, lowering: Lowering, scheme: str) -> bool:
    """Whether torch computes a layer with sums of 16 bits even on CPUs with VNNI.

    fbgemm's depthwise kernels do. The x86 engine takes them for more than 100 channels, and for
    weights with zero points. Measured: random 8-bit operands, 104 to 192 channels: off by 24 to 81
    output steps; 96 channels: exact; with weights from -64 to 64: exact.
    """
    fbgemm = lowering == "classic" and is_depthwise(module)
    return fbgemm and (module.in_channels > _FBGEMM_DEPTHWISE or scheme == "affine")


def padding(module: Any) -> list[int] | None:
    """A convolution's padding of each axis, the same on both sides; None when it differs."""
    if module.padding == "valid":
        return [0] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return None if any(total % 2 for total in totals) else [total // 2 for total in totals]
    return list(module.padding)


def is_depthwise(module: Any) -> bool:
    """Whether each input channel has filters of its own."""
    groups: int = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels


def is_product(module: Any, node: Node) -> bool:
    """Whether a convolution is the product of a matrix and a vector, as in squeeze-and-excitation:
    1x1, of an image that is one place large.

    torch's int8 linear layers compute it faster than its int8 convolutions (960 to 240 channels,
    weights from memory: 28 against 44 microseconds). They are right for any other size.
    """
    return (
        isinstance(module, nn.Conv2d)
        and shape_of(node)[2:] == (1, 1)
        and set(module.kernel_size) == set(module.stride) == {1}
        and module.groups == 1
        and padding(module) == [0, 0]
    )


def sums_with(graph: GraphModule, layer: Node, addition: Node) -> bool:
    """Whether oneDNN's kernel for a layer can add another tensor to its result."""
    return kind_of(graph, layer) == "conv2d" and kind_of(graph, addition) == "add"


def _why_not_convolution(module: Any, node: Node, kind: str) -> str | None:
    if kind == "linear":
        return None
    if module.padding_mode != "zeros":
        return f"torch's int8 convolutions have no {module.padding_mode} padding"
    around = padding(module)
    if around is None:
        return "torch's int8 convolutions pad both sides alike"
    spans = zip(around, module.dilation, module.kernel_size, strict=True)
    if any(pad > dilation * (size - 1) > 0 for pad, dilation, size in spans):
        # oneDNN 3.9: off by 100 steps, otherwise at each call, in one of 300 such layers.
        return "int8 kernels are wrong where all that a filter sees is padding"
    if len(shape_of(node)) != _DIMENSIONS[kind]:
        return "its input has no batch axis"
    return None
