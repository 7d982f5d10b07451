"""Where the channels of a graph's values are."""

from __future__ import annotations

from torch.fx import GraphModule

from qconvert.models.operators import (
    CONVOLUTIONS,
    RECURRENT,
    TRANSPOSED,
    is_tensor,
    kind_of,
    shape_of,
    tensor_inputs,
)

_FIRST = (*CONVOLUTIONS, *TRANSPOSED, "batch_norm", "pixels")
_LAST = ("linear", "layer_norm", *RECURRENT)
_MOVING = ("permute", "transpose", "reshape", "flatten", "unflatten")


def channel_axes(graph: GraphModule) -> dict[str, int]:
    """The axis of the channels of each tensor, by the name of its node: axis 1 after a convolution,
    the last after a linear layer, and after other operators where it was in what they read. Where
    nothing tells: the last of three axes (tokens), else axis 1. Values of one axis have none."""
    found: dict[str, int] = {}
    for node in graph.graph.nodes:
        if not is_tensor(node) or len(shape_of(node)) < 2:
            continue
        dimensions = len(shape_of(node))
        usual = dimensions - 1 if dimensions == 3 else 1
        kind = kind_of(graph, node)
        sources = tensor_inputs(node) if node.op != "placeholder" else []
        if kind in _FIRST:
            usual = 1
        elif kind in _LAST:
            usual = dimensions - 1
        elif sources and kind not in _MOVING and len(shape_of(sources[0])) == dimensions:
            usual = found[sources[0].name]
        found[node.name] = usual
    return found
