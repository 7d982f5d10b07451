"""What a node of the graph computes, by one name for its module, function and method forms."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torchvision.ops import stochastic_depth

from qconvert.models.pixels import Normalization, PixelShares
from qconvert.models.two_terms import TwoTerms

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
WEIGHTED = (*CONVOLUTIONS, *TRANSPOSED, "linear")
RECURRENT = ("lstm", "gru")
_LAYERS = (*CONVOLUTIONS, "linear")
# Activations that a kernel computes with the layer before them, and with which layers.
ACTIVATIONS: Mapping[str, tuple[str, ...]] = {
    "relu": (*_LAYERS, "add", "mul", "batch_norm"),
    "clip": (*_LAYERS, "add", "mul", "batch_norm"),
    "hardswish": _LAYERS,
    "silu": _LAYERS,
    "gelu": ("linear",),
    "tanh": ("linear",),
    "leaky_relu": ("linear",),
}
# Their result is a part of their input, or the same values at other places.
REARRANGING = (
    "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "chunk",
    "split", "narrow", "unflatten", "channel_shuffle", "contiguous", "pixel_shuffle",
)  # fmt: skip
# Where a captured graph holds the operator's name in `node.meta`.
NAME = "operator_name"

_MODULES: Mapping[type[nn.Module], str] = {
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.SyncBatchNorm: "batch_norm",
    nn.ReLU: "relu",
    nn.ReLU6: "clip",
    nn.Hardtanh: "clip",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.ELU: "elu",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.Softmax: "softmax",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.LSTM: "lstm",
    nn.GRU: "gru",
    nn.MultiheadAttention: "multi_head_attention",
    nn.MaxPool1d: "max_pool1d",
    nn.MaxPool2d: "max_pool2d",
    nn.MaxPool3d: "max_pool3d",
    nn.AvgPool1d: "avg_pool1d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AvgPool3d: "avg_pool3d",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveAvgPool3d: "adaptive_avg_pool3d",
    nn.Upsample: "interpolate",
    nn.ZeroPad2d: "pad",
    nn.ConstantPad2d: "pad",
    nn.ReflectionPad2d: "pad",
    nn.ReplicationPad2d: "pad",
    nn.PixelShuffle: "pixel_shuffle",
    nn.ChannelShuffle: "channel_shuffle",
    nn.Flatten: "flatten",
    Normalization: "normalization",
    PixelShares: "pixels",
    TwoTerms: "two_terms",
    nn.Identity: "identity",
    nn.Dropout: "identity",
    nn.Dropout1d: "identity",
    nn.Dropout2d: "identity",
    nn.Dropout3d: "identity",
    nn.AlphaDropout: "identity",
}

_FUNCTIONS: Mapping[Callable[..., Any], str] = {
    operator.add: "add",
    torch.add: "add",
    operator.mul: "mul",
    torch.mul: "mul",
    torch.cat: "cat",
    torch.relu: "relu",
    F.relu: "relu",
    F.relu6: "clip",
    F.hardtanh: "clip",
    torch.clamp: "clip",
    F.leaky_relu: "leaky_relu",
    F.prelu: "prelu",
    torch.prelu: "prelu",
    F.elu: "elu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    F.silu: "silu",
    F.gelu: "gelu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.softmax: "softmax",
    torch.softmax: "softmax",
    F.layer_norm: "layer_norm",
    F.group_norm: "group_norm",
    F.scaled_dot_product_attention: "attention",
    F.max_pool1d: "max_pool1d",
    F.max_pool2d: "max_pool2d",
    F.max_pool3d: "max_pool3d",
    F.avg_pool1d: "avg_pool1d",
    F.avg_pool2d: "avg_pool2d",
    F.avg_pool3d: "avg_pool3d",
    F.adaptive_avg_pool1d: "adaptive_avg_pool1d",
    F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
    F.adaptive_avg_pool3d: "adaptive_avg_pool3d",
    F.interpolate: "interpolate",
    F.pad: "pad",
    F.pixel_shuffle: "pixel_shuffle",
    F.channel_shuffle: "channel_shuffle",
    torch.mean: "mean",
    torch.flatten: "flatten",
    torch.reshape: "reshape",
    torch.permute: "permute",
    torch.transpose: "transpose",
    torch.squeeze: "squeeze",
    torch.unsqueeze: "unsqueeze",
    torch.narrow: "narrow",
    torch.chunk: "chunk",
    torch.split: "split",
    getattr: "getattr",
    operator.getitem: "getitem",
}

# They drop also in eval mode unless told otherwise. With the place of `training`.
_DROPOUTS: Mapping[Any, int] = {
    F.dropout: 2,
    F.dropout1d: 2,
    F.dropout2d: 2,
    F.dropout3d: 2,
    F.alpha_dropout: 2,
    stochastic_depth: 3,
}

_METHODS: Mapping[str, str] = {
    "add": "add",
    "mul": "mul",
    "relu": "relu",
    "clamp": "clip",
    "clip": "clip",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "softmax": "softmax",
    "mean": "mean",
    "flatten": "flatten",
    "reshape": "reshape",
    "view": "reshape",
    "permute": "permute",
    "transpose": "transpose",
    "squeeze": "squeeze",
    "unsqueeze": "unsqueeze",
    "chunk": "chunk",
    "split": "split",
    "narrow": "narrow",
    "unflatten": "unflatten",
    "contiguous": "contiguous",
    "size": "size",
}


def quantizable(module: nn.Module) -> bool:
    """Whether it has a layer that multiplies and accumulates."""
    kinds = (*WEIGHTED, *RECURRENT, "multi_head_attention")
    layers = tuple(kind for kind, name in _MODULES.items() if name in kinds)
    return any(isinstance(part, layers) for part in module.modules())


def operator_name(node: Node) -> str:
    """The name that people know: the module's path, or its owner's path and the function."""
    return str(node.meta.get(NAME, node.name))


def module_of(graph: GraphModule, node: Node) -> Any:
    """The module that a `call_module` node calls. Any: its attributes depend on its class."""
    return graph.get_submodule(str(node.target))


def kind_of(graph: GraphModule, node: Node) -> str:
    """The operator's name, such as `conv2d` or `add`; for one that is not in the tables above,
    the name of its class or function."""
    if node.op == "call_module":
        module = module_of(graph, node)
        for base in type(module).__mro__:
            if base in _MODULES:
                return _MODULES[base]
        return type(module).__name__
    if node.op == "call_function":
        function = node.target
        place = _DROPOUTS.get(function)
        if place is not None and argument(node, place, "training", True) is False:
            return "identity"
        name = _FUNCTIONS.get(function) if callable(function) else None
        return name or str(getattr(function, "__name__", function))
    if node.op == "call_method":
        return _METHODS.get(str(node.target), str(node.target))
    return node.op


def tensor_inputs(node: Node) -> list[Node]:
    """The nodes that this one reads tensors from, in order, as often as it reads them."""
    found: list[Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return [source for source in found if is_tensor(source)]


def is_tensor(node: Node) -> bool:
    """Whether the node's value is one floating-point tensor (known after shape propagation)."""
    meta: Any = node.meta.get("tensor_meta")
    return hasattr(meta, "dtype") and bool(meta.dtype.is_floating_point)


def computes_tensors(node: Node) -> bool:
    """Whether the node is an operator on tensors (a recurrent layer's tuple counts), not one that
    computes a size."""
    found: list[Any] = []

    def look(meta: Any) -> None:
        if hasattr(meta, "dtype"):
            found.append(meta)
        elif isinstance(meta, (tuple, list)):
            for item in meta:
                look(item)

    look(node.meta.get("tensor_meta"))
    return node.op.startswith("call_") and bool(found)


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape that the node's value had for the example input."""
    return tuple(node.meta["tensor_meta"].shape)


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a function or method node, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def setting(graph: GraphModule, node: Node, position: int, name: str, default: Any) -> Any:
    """A setting of a module, or of the function that it stands for."""
    if node.op == "call_module":
        return getattr(module_of(graph, node), name, default)
    return argument(node, position, name, default)


def clip_bounds(graph: GraphModule, node: Node) -> tuple[float, float] | None:
    """The constant bounds of a `clip` node, or None when it has none."""
    low: Any
    high: Any
    if node.op == "call_module":
        module = module_of(graph, node)
        low, high = module.min_val, module.max_val  # nn.ReLU6 is a Hardtanh
    elif node.target is F.relu6:
        low, high = 0.0, 6.0
    else:
        names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
        defaults = (-1.0, 1.0) if node.target is F.hardtanh else (None, None)
        low, high = (argument(node, i + 1, names[i], defaults[i]) for i in range(2))
    numbers = all(isinstance(bound, (int, float)) for bound in (low, high))
    return (float(low), float(high)) if numbers else None


def recurrent_weights(module: nn.LSTM | nn.GRU) -> dict[str, torch.Tensor]:
    """The matrices by name (`weight_ih_l0`, `weight_hh_l0`, `weight_ih_l0_reverse`, ...); axis 0
    holds the gates' output channels."""
    return {n: w.detach() for n, w in module.named_parameters() if n.startswith("weight_")}


def is_constant(node: Node) -> bool:
    """Whether the node's value does not depend on the model's input: it is computed once, when the
    model is saved."""
    seen: set[Node] = set()
    waiting = [node]  # no recursion: deep networks have thousands of operators in a row
    while waiting:
        found = waiting.pop()
        if found in seen or found.op == "get_attr":
            continue
        seen.add(found)
        if not found.op.startswith("call_") or not found.all_input_nodes:
            return False
        waiting += found.all_input_nodes
    return True


def multiply_accumulates(graph: GraphModule, node: Node) -> int:
    """Multiply-accumulates of one call of a convolution, linear or recurrent node for one image; 0
    for others."""
    kind = kind_of(graph, node)
    if node.op != "call_module" or is_constant(node):
        return 0
    if kind in RECURRENT:
        weights = sum(w.numel() for w in recurrent_weights(module_of(graph, node)).values())
        *tokens, _ = shape_of(tensor_inputs(node)[0])
        return weights * prod(tokens)
    if kind not in WEIGHTED:
        return 0
    weight = module_of(graph, node).weight
    counted = tensor_inputs(node)[0] if kind in TRANSPOSED else node
    channels_axis = 1 if kind != "linear" else -1
    # Axis 0 too: of one image there may be several windows or boxes.
    return prod(shape_of(counted)) * weight.numel() // shape_of(counted)[channels_axis]
