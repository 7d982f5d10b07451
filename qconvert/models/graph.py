"""Captures a model as a torch.fx graph in one normal form.

After `capture`, convolutions, linear layers and batch norms with constant weights are plain
`torch.nn` modules, however the user wrote them; nothing is computed in place; what does nothing
in eval mode (dropout, identity) is gone; every node has a shape and a name that people know.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from qconvert.errors import ModelInputError, UnsupportedError
from qconvert.images.preprocess import shapes_of
from qconvert.models.calls import copied
from qconvert.models.division import Others, Piece, Wishes, divide
from qconvert.models.merging import merged
from qconvert.models.normal_form import (
    REMOVED,
    all_outside,
    functions_to_modules,
    inputs_by_position,
    out_of_place,
    remove_assertions,
    remove_identities,
    stubs_to_marks,
    views_to_reshapes,
)
from qconvert.models.operators import NAME
from qconvert.models.pixel_folding import normalization_into_convolutions
from qconvert.models.pixels import known_path
from qconvert.models.regrouping import (
    attention_to_linears,
    channel_shuffles,
    chunks_to_narrows,
    paddings_into_convolutions,
)

# Whether a graph had stubs of eager-mode quantization, in its `meta`.
STUBS_FOUND = "stubs"


def capture(
    module: nn.Module,
    example: Sequence[Tensor],
    wishes: Wishes | None = None,
    others: Others = tuple,
) -> GraphModule:
    """Returns the normal form of an eval-mode module; of one that torch.fx does not trace whole,
    the parts that it does, as one graph (see `assembly`).

    The given module is not changed. `example` are the inputs of one image, `others` those of more,
    which may go another way through code that is not traced.

    Raises UntraceableError with the line of the user's code that stopped the trace, and
    ModelInputError when the model reads another number of inputs.
    """
    check_inputs(module, len(example))
    model = copied(module)
    divided = divide(model, example, wishes or Wishes(), others)
    divided.pieces = [replace(p, graph=_normalized(p)) for p in divided.pieces]
    if any(piece.graph.meta[STUBS_FOUND] for piece in divided.pieces):
        for piece in divided.pieces:
            if not piece.graph.meta[STUBS_FOUND]:
                all_outside(piece.graph)
    graph = merged(model, example, divided)
    _name_as_known(graph)
    return graph


def _normalized(piece: Piece) -> GraphModule:
    graph, example = piece.graph, piece.call.tensors
    remove_assertions(graph)
    _name_operators(graph)
    inputs_by_position(graph)
    functions_to_modules(graph)
    _number_names(graph)
    graph.meta[REMOVED] = remove_identities(graph)
    out_of_place(graph)
    views_to_reshapes(graph)
    _finish(graph, example)
    attention_to_linears(graph)
    chunks_to_narrows(graph)
    channel_shuffles(graph)
    paddings_into_convolutions(graph)
    normalization_into_convolutions(graph)
    graph.meta[STUBS_FOUND] = stubs_to_marks(graph)
    _number_names(graph)
    _finish(graph, example)
    return graph


def _name_as_known(graph: GraphModule) -> None:
    """Of a model that takes pixels: names without the place where its normalization has it."""
    for node in graph.graph.nodes:
        if NAME in node.meta:
            node.meta[NAME] = known_path(node.meta[NAME]) or node.meta[NAME]
    graph.meta[REMOVED] = tuple(map(known_path, graph.meta[REMOVED]))


def _finish(graph: GraphModule, example: Sequence[Tensor]) -> None:
    graph.graph.eliminate_dead_code()
    graph.recompile()
    propagate_shapes(graph, example)


def propagate_shapes(graph: GraphModule, example: Sequence[Tensor]) -> None:
    """Leaves shape and dtype of every value in `node.meta["tensor_meta"]`."""
    with torch.inference_mode():
        try:
            _Shapes(graph).run(*example)
        except Exception as error:
            shapes = shapes_of(example)
            raise UnsupportedError(
                f"the traced model fails on inputs of shape {shapes}, which the model itself "
                f"reads: {str(error).partition(chr(10) + chr(10) + 'While executing')[0]}",
                where="model.source",
                fix="report this with the model",
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


def check_inputs(module: nn.Module, given: int) -> None:
    """Raises ModelInputError when the model does not read as many inputs as the images give."""
    positional = _positional(module)
    required = required_inputs(module)
    if positional is not None and not len(required) <= given <= len(positional):
        raise ModelInputError(
            f"the model reads {len(required)} inputs ({', '.join(required)}), the images give "
            f"{given}",
            where="model.source",
            fix="return a tuple of all inputs from `data.transform`, or name a callable that wraps "
            "the model",
        )


def required_inputs(module: nn.Module) -> list[str]:
    """The names of the inputs that a model cannot do without."""
    return [p.name for p in _positional(module) or () if p.default is p.empty]


def _positional(module: nn.Module) -> list[inspect.Parameter] | None:
    """The inputs that are given by position; None for a model that reads any number of them."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p for p in parameters if p.kind in kinds]
