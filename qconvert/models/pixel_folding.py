"""Puts the normalization of pixels into the convolutions that read it, so that int8 kernels take
the pixels as they are: uint8 is an int8 tensor with scale 1/255, and nothing is rounded. Its zero
point is a pixel in the middle of the means.

The weight is divided by the deviation of its input channel, the bias takes what is left of the
mean. Zeros around normalized pixels are the mean around pixels, so the image is padded with it
before, and the convolution no more: zeros there would be another colour, and wrong at the borders.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qconvert.models.operators import (
    NAME,
    argument,
    computes_tensors,
    kind_of,
    module_of,
    operator_name,
    shape_of,
)
from qconvert.models.pixels import Normalization, PixelShares, known_path
from qconvert.models.regrouping import constant_padding

# Where a normalization holds why it is computed in float.
WHY_FLOAT = "why normalized in float"
# Left, right, top, bottom.
Widths = tuple[int, ...]
# Of a share of 255, far below a pixel's step.
_EXACT = 1e-6
_NO_PADDING: Widths = (0, 0, 0, 0)


def normalization_into_convolutions(graph: GraphModule) -> None:
    """Where all that reads normalized pixels are convolutions, or paddings with zeros before them.
    Otherwise the normalization holds why not, and stays."""
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(module_of(graph, node), Normalization):
            continue
        _read_sizes_of_pixels(graph, node)
        found = _layers(graph, node)
        if isinstance(found, str):
            node.meta[WHY_FLOAT] = found
        else:
            _fold(graph, node, found)


def _read_sizes_of_pixels(graph: GraphModule, node: Node) -> None:
    """Who asks for the size of normalized pixels gets that of the pixels, which is the same."""
    for user in list(node.users):
        kind = kind_of(graph, user)
        shape = kind == "getattr" and argument(user, 1, "name") == "shape"
        if (shape or kind in ("size", "dim")) and not computes_tensors(user):
            user.replace_input_with(node, argument(node, 0, "pixels"))


def _layers(graph: GraphModule, node: Node) -> dict[Node, tuple[Node, Widths]] | str:
    """The convolutions with what they read and the padding between it and the pixels; or why the
    normalization stays."""
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    found: dict[Node, tuple[Node, Widths]] = {}
    for user in node.users:
        widths = constant_padding(graph, user)
        readers = [user] if widths is None else list(user.users)
        source = node if widths is None else user
        for layer in readers:
            reason = _why_not(graph, layer, calls)
            if reason is not None:
                name = known_path(operator_name(layer))
                return f"{name} reads normalized pixels, and {reason}"
            around = _padding(module_of(graph, layer))
            found[layer] = source, tuple(map(sum, zip(widths or _NO_PADDING, around, strict=True)))
    mean = module_of(graph, node).mean
    if any(any(widths) for _, widths in found.values()) and not bool(
        ((mean >= 0) & (mean <= 1)).all()
    ):
        return "the mean is no pixel (data.preprocess.mean), and convolutions pad with it"
    return found or "nothing reads it"


def _why_not(graph: GraphModule, node: Node, calls: Counter[str]) -> str | None:
    """Why a reader of normalized pixels cannot read pixels."""
    if node.op != "call_module" or kind_of(graph, node) != "conv2d":
        return "is no convolution"
    module = module_of(graph, node)
    if module.padding_mode != "zeros":
        return f"has {module.padding_mode} padding"
    if calls[str(node.target)] != 1:
        return "is called for something else, too"
    return None if len(shape_of(node)) == 4 else "its input has no batch axis"


def _padding(module: Any) -> Widths:
    """Left, right, top, bottom; also of `same`, which may differ from side to side."""
    return tuple(module._reversed_padding_repeated_twice)


def _fold(graph: GraphModule, node: Node, layers: dict[Node, tuple[Node, Widths]]) -> None:
    shares: dict[Widths, Node] = {}
    normalization = module_of(graph, node)
    for layer, (source, widths) in layers.items():
        module = module_of(graph, layer)
        mean, std = (_of_channels(x, module) for x in (normalization.mean, normalization.std))
        # Where every mean is the pixel that is zero, the convolution pads with it by itself.
        own_padding = source is node and _is_zero(PixelShares(mean).around)
        outside = _NO_PADDING if own_padding else widths
        if outside not in shares:
            shares[outside] = _pixel_shares(graph, node, PixelShares(mean, outside), len(shares))
        folded = _folded(module, PixelShares(mean).around, std, own_padding)
        graph.set_submodule(str(layer.target), folded)
        layer.replace_input_with(source, shares[outside])


def _is_zero(around: Tensor) -> bool:
    """But for what float32 makes of an integer's share."""
    return float(around.abs().max()) < _EXACT


def _of_channels(value: Tensor, module: Any) -> Tensor:
    return value.reshape(-1).expand(module.in_channels).contiguous()


def _pixel_shares(graph: GraphModule, node: Node, module: PixelShares, number: int) -> Node:
    path = f"pixels{number or ''}"
    while hasattr(graph, path):
        path += "_"
    graph.add_submodule(path, module.eval())
    with graph.graph.inserting_before(node):
        new = graph.graph.call_module(path, (argument(node, 0, "pixels"),))
    new.meta[NAME] = "pixels"
    return new


def _folded(module: Any, around: Tensor, std: Tensor, own_padding: bool) -> nn.Conv2d:
    """A convolution of `PixelShares` for one of normalized pixels; computed in float64."""
    around, std = around.double().view(-1), std.double()
    weight = module.weight.detach().double()
    of_group = module.in_channels // module.groups
    # The input channels of each filter.
    channels = torch.arange(module.in_channels).view(module.groups, of_group)
    channels = channels.repeat_interleave(module.out_channels // module.groups, dim=0)
    weight = weight / std[channels][:, :, None, None]
    shift = (weight.sum((2, 3)) * around[channels]).sum(1)
    bias = -shift if module.bias is None else module.bias.detach().double() - shift
    new = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        module.padding if own_padding else 0,
        module.dilation,
        module.groups,
    )
    new.weight = nn.Parameter(weight.float(), requires_grad=False)
    new.bias = nn.Parameter(bias.float(), requires_grad=False)
    return new.eval()
