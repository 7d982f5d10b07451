"""Captures a model as a torch.fx graph in one normal form.

After `capture`, convolutions, linear layers and batch norms with constant weights are plain
`torch.nn` modules, however the user wrote them; nothing is computed in place; what does nothing
in eval mode (dropout, identity) is gone; every node has a shape and a name that people know.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from qconvert.errors import ConversionError
from qconvert.models.normal_form import (
    functions_to_modules,
    inputs_by_position,
    out_of_place,
    remove_identities,
    views_to_reshapes,
)
from qconvert.models.operators import NAME
from qconvert.models.tracing import copied, traced

# Where the removed names are in `graph.meta`.
REMOVED = "removed"


def capture(module: nn.Module, example: Tensor) -> GraphModule:
    """Returns the normal form of an eval-mode module that maps one tensor to one tensor.

    The given module is not changed. `example` is one input, float32.

    Raises ConversionError with the line of the user's code that stopped the trace.
    """
    graph = traced(copied(module))
    _check_inputs(graph)
    _name_operators(graph)
    inputs_by_position(graph)
    functions_to_modules(graph)
    _number_names(graph)
    graph.meta[REMOVED] = remove_identities(graph)
    out_of_place(graph)
    views_to_reshapes(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    propagate_shapes(graph, example)
    _check_output(graph)
    return graph


def propagate_shapes(graph: GraphModule, example: Tensor) -> None:
    """Leaves shape and dtype of every value in `node.meta["tensor_meta"]`."""
    with torch.inference_mode():
        try:
            _Shapes(graph).run(example)
        except Exception as error:
            raise ConversionError(
                f"the model fails on an input of shape {list(example.shape)}: "
                f"{str(error).partition(chr(10) + chr(10) + 'While executing')[0]}",
                where="model.source",
                fix="correct `data.preprocess` (channels, resize, crop) or the model",
            ) from error


class _Shapes(Interpreter):
    """Runs the graph and keeps what is known of every tensor, also of those in tuples."""

    def run_node(self, node: Node) -> Any:
        result = super().run_node(node)
        node.meta["tensor_meta"] = torch.fx.node.map_aggregate(
            result,
            lambda value: _extract_tensor_metadata(value) if isinstance(value, Tensor) else None,
        )
        return result


def _name_operators(graph: GraphModule) -> None:
    """`layer1.0.conv1` for a module, `layer1.0.add` for a function in it."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            node.meta[NAME] = str(node.target)
        elif node.op in ("call_function", "call_method"):
            stack = node.meta.get("nn_module_stack") or {}
            owner = list(stack.values())[-1][0] if stack else ""
            function = node.target if isinstance(node.target, str) else node.target.__name__
            node.meta[NAME] = f"{owner}.{function}" if owner else function


def _number_names(graph: GraphModule) -> None:
    """`layer1.0.relu:2` for the second operator of a name."""
    seen: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if NAME in node.meta:
            name = node.meta[NAME]
            seen[name] += 1
            node.meta[NAME] = name if seen[name] == 1 else f"{name}:{seen[name]}"


def _check_inputs(graph: GraphModule) -> None:
    """One input; further ones may have a default."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise ConversionError(
            f"the model reads {len(inputs)} inputs ({names}); this version converts models of one",
            where="model.source",
            fix="name a callable that wraps the model",
        )


def _check_output(graph: GraphModule) -> None:
    """One tensor."""
    output = next(node for node in graph.graph.nodes if node.op == "output")
    result = output.args[0]
    if not isinstance(result, Node) or not hasattr(result.meta.get("tensor_meta"), "shape"):
        raise ConversionError(
            "the model returns several values; this version converts models that return one tensor",
            where="model.source",
            fix="name a callable whose model returns the tensor to be measured",
        )
