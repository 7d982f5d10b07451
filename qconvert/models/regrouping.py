"""Rewrites of a graph in normal form that put several nodes' work into others: attention into its
linear layers, slices and channel shuffles into one node each. They need shapes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from qconvert.models.operators import (
    ACTIVATIONS,
    CONVOLUTIONS,
    NAME,
    argument,
    kind_of,
    module_of,
    operator_name,
    setting,
    shape_of,
)

_CHANNELS = 1
# They keep the axes of their first input.
_KEEPING = (
    *ACTIVATIONS, "sigmoid", "hardsigmoid", "elu", "prelu", "batch_norm", "group_norm", "add",
    "mul", "narrow", "channel_shuffle", "contiguous", "interpolate", "pad",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d",
)  # fmt: skip


def attention_to_linears(graph: GraphModule) -> None:
    """`nn.MultiheadAttention` is two linear layers with the product of attention between them: as
    such its weights can be int8. Masks, and attention weights that are read, keep it whole."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and type(module_of(graph, node)) is nn.MultiheadAttention:
            _attention(graph, node)


def _attention(graph: GraphModule, node: Node) -> None:
    module, path = module_of(graph, node), str(node.target)
    inputs = [argument(node, i, name) for i, name in enumerate(("query", "key", "value"))]
    masks = [argument(node, 3, "key_padding_mask"), argument(node, 5, "attn_mask")]
    reads = [user.args[1] if user.args[1:] else None for user in node.users]
    if (
        any(mask is not None for mask in masks)
        or argument(node, 7, "is_causal", False) is not False
        or any(user.op == "output" or kind_of(graph, user) != "getitem" for user in node.users)
        or any(read != 0 for read in reads)
        or not module._qkv_same_embed_dim
        or module.bias_k is not None
        or module.add_zero_attn
        or len(shape_of(inputs[0])) != 3
    ):
        return
    names = ("query", "key", "value")
    weights, biases = module.in_proj_weight, module.in_proj_bias
    heads = module.num_heads

    def call(target: Any, *args: Any, name: str, **kwargs: Any) -> Node:
        make = graph.graph.call_method if isinstance(target, str) else graph.graph.call_function
        return _named(make(target, args, kwargs), f"{path}.{name}")

    def linear(weight: torch.Tensor, bias: torch.Tensor | None, x: Node, name: str) -> Node:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        graph.add_submodule(f"{path}.{name}", layer.eval())
        return _named(graph.graph.call_module(f"{path}.{name}", (x,)), f"{path}.{name}")

    with graph.graph.inserting_before(node):
        if not module.batch_first:
            turned = {x: call("transpose", x, 0, 1, name="transpose") for x in inputs}
            inputs = [turned[x] for x in inputs]
        if inputs[0] is inputs[1] is inputs[2]:
            joined = linear(weights, biases, inputs[0], "in_proj")
            width = module.embed_dim
            parts = [call(torch.narrow, joined, -1, i * width, width, name=names[i])
                     for i in range(3)]  # fmt: skip
        else:
            split_biases = biases.chunk(3) if biases is not None else (None,) * 3
            parts = [linear(*values) for values in
                     zip(weights.chunk(3), split_biases, inputs, names, strict=True)]  # fmt: skip
        by_head = [
            call("transpose", call("unflatten", part, -1, (heads, -1), name="heads"), 1, 2,
                 name="heads")
            for part in parts
        ]  # fmt: skip
        product = call(F.scaled_dot_product_attention, *by_head, name="attention")
        merged = call("flatten", call("transpose", product, 1, 2, name="heads"), 2, name="heads")
        result = _named(graph.graph.call_module(f"{path}.out_proj", (merged,)), f"{path}.out_proj")
        if not module.batch_first:
            result = call("transpose", result, 0, 1, name="transpose")
    for user in list(node.users):
        # Attention that reads this one asks for its shape.
        result.meta["tensor_meta"] = user.meta["tensor_meta"]
        user.replace_all_uses_with(result)
        graph.graph.erase_node(user)
    graph.graph.erase_node(node)


def chunks_to_narrows(graph: GraphModule) -> None:
    """`chunk` and `split` of the channels return tuples; each part becomes a slice of its own."""
    for node in list(graph.graph.nodes):
        if node.op not in ("call_function", "call_method"):
            continue
        x = argument(node, 0, "input")
        parts: Any = node.meta.get("tensor_meta")
        axis = argument(node, 2, "dim", 0)
        if (
            kind_of(graph, node) not in ("chunk", "split")
            or not isinstance(x, Node)
            or not isinstance(axis, int)
            or axis % len(shape_of(x)) != _CHANNELS
            or not _has_channels(graph, x)
            or not all(_reads_one(graph, user) for user in node.users)
        ):
            continue
        lengths = [part.shape[_CHANNELS] for part in parts]
        for user in list(node.users):
            i = int(user.args[1]) % len(lengths)
            with graph.graph.inserting_before(user):
                new = graph.graph.call_function(
                    torch.narrow, (x, _CHANNELS, sum(lengths[:i]), lengths[i])
                )
            _named(new, operator_name(node))
            user.replace_all_uses_with(new)
            graph.graph.erase_node(user)
        graph.graph.erase_node(node)


def _has_channels(graph: GraphModule, node: Node) -> bool:
    """Whether axis 1 has the same length for any size of image: that of a layer or an input, and
    of what keeps its axes. After a permutation it may be the image's height."""
    while node.op.startswith("call_"):
        kind = kind_of(graph, node)
        if kind in CONVOLUTIONS:
            return True
        if kind not in _KEEPING or not isinstance(node.args[0], Node):
            parts: Any = node.args[0] if node.args else None
            if kind != "cat" or not isinstance(parts, (list, tuple)):
                return False
            return all(_has_channels(graph, part) for part in parts)
        node = node.args[0]
    return node.op == "placeholder"


def _reads_one(graph: GraphModule, user: Node) -> bool:
    return kind_of(graph, user) == "getitem" and isinstance(user.args[1], int)


def paddings_into_convolutions(graph: GraphModule) -> None:
    """A padding with zeros, the same on both sides, before a convolution without one is that
    convolution's: models that pad by themselves (`ZeroPad2d`, "same" padding) lose an operator, and
    depthwise kernels are fast only with a padding of their own."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    for node in list(graph.graph.nodes):
        if kind_of(graph, node) != "pad" or not node.users:
            continue
        around = _equal_sides(graph, node)
        if around is None:
            continue
        layers = [user for user in node.users if _takes_padding(graph, user, calls, around)]
        if len(layers) != len(node.users):
            continue
        for layer in layers:
            module = copy.copy(module_of(graph, layer))
            module.padding = around
            module._reversed_padding_repeated_twice = [p for p in reversed(around) for _ in (0, 1)]
            graph.set_submodule(str(layer.target), module)
        node.replace_all_uses_with(argument(node, 0, "input"))
        graph.graph.erase_node(node)


def constant_padding(graph: GraphModule, node: Node) -> tuple[int, ...] | None:
    """Left, right, top and bottom of a padding of images with zeros, which adds everywhere what is
    known; None for any other node."""
    if node.op not in ("call_function", "call_module") or kind_of(graph, node) != "pad":
        return None
    plain = node.op == "call_function" or type(module_of(graph, node)) is nn.ZeroPad2d
    widths = setting(graph, node, 1, "padding" if node.op == "call_module" else "pad", None)
    mode = "constant" if node.op == "call_module" else argument(node, 2, "mode", "constant")
    value = None if node.op == "call_module" else argument(node, 3, "value")
    if not plain or mode != "constant" or value not in (None, 0):
        return None
    if not isinstance(widths, (tuple, list)) or len(widths) != 4:
        return None
    known = all(isinstance(width, int) and width >= 0 for width in widths)
    return tuple(widths) if known else None


def _equal_sides(graph: GraphModule, node: Node) -> tuple[int, int] | None:
    """Height and width of a padding of images with zeros on both sides alike."""
    widths = constant_padding(graph, node)
    if widths is None:
        return None
    left, right, top, bottom = widths
    return (top, left) if left == right and top == bottom else None


def _takes_padding(
    graph: GraphModule, node: Node, calls: Mapping[str, int], around: tuple[int, int]
) -> bool:
    if kind_of(graph, node) != "conv2d" or node.op != "call_module":
        return False
    module = module_of(graph, node)
    none = module.padding in ((0, 0), "valid") and module.padding_mode == "zeros"
    if not none or calls[str(node.target)] != 1 or len(shape_of(node)) != 4:
        return False
    # Not where a filter would see nothing but padding.
    spans = zip(around, module.dilation, module.kernel_size, strict=True)
    return all(pad <= dilation * (size - 1) for pad, dilation, size in spans)


def channel_shuffles(graph: GraphModule) -> None:
    """Reshape to groups, transpose, reshape back (Zhang et al. 2017, arXiv:1707.01083) becomes
    torch's own channel shuffle, which keeps channels-last memory and is 4 to 20 times as fast."""
    for node in list(graph.graph.nodes):
        if kind_of(graph, node) != "reshape" or not isinstance(node.args[0], Node):
            continue
        swapped: Any = node.args[0]
        if kind_of(graph, swapped) == "contiguous":
            swapped = swapped.args[0]
        if not isinstance(swapped, Node) or kind_of(graph, swapped) != "transpose":
            continue
        grouped = swapped.args[0]
        if not isinstance(grouped, Node) or kind_of(graph, grouped) != "reshape":
            continue
        x = grouped.args[0]
        if not isinstance(x, Node) or len(shape_of(x)) != 4 or set(swapped.args[1:]) != {1, 2}:
            continue
        batch, channels, *size = shape_of(x)
        groups = shape_of(grouped)[1]
        if (
            shape_of(node) != shape_of(x)
            or shape_of(grouped) != (batch, groups, channels // groups, *size)
            or len(grouped.users) != 1
            or len(swapped.users) != 1
        ):
            continue
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(F.channel_shuffle, (x, groups))
        _named(new, operator_name(node).rpartition(".")[0] + ".channel_shuffle")
        node.replace_all_uses_with(new)


def _named(node: Node, name: str) -> Node:
    node.meta[NAME] = name.strip(".")
    return node
