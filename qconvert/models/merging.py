"""The graphs of a model's parts as one graph, which is worked on as that of a whole model; and the
parts of what was made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qconvert.models.assembly import AS_WRITTEN, ASSEMBLY, CALLS, Assembly, Part
from qconvert.models.division import Divided, Piece
from qconvert.models.normal_form import REMOVED
from qconvert.models.operators import NAME
from qconvert.models.tracing import ALONE


def merged(model: nn.Module, example: Sequence[Tensor], divided: Divided) -> GraphModule:
    """The graphs of all parts as one, which returns the tuple of what they return; with one part,
    its own graph. The assembly is in its `meta`."""
    pieces = divided.pieces
    if len(pieces) == 1:
        (piece,) = pieces
        graph, targets = piece.graph, [{_within(piece, path): path for path in piece.kept}]
        names = [tuple(n.name for n in graph.graph.nodes if n.op == "placeholder")]
    else:
        graph, names = _united(pieces)
        graph.meta[REMOVED] = tuple(
            f"{piece.path}.{name}".lstrip(".")
            for piece in pieces
            for name in piece.graph.meta[REMOVED]
        )
        targets = [
            {f"part{i}.{_within(piece, path)}": path for path in piece.kept}
            for i, piece in enumerate(pieces)
        ]
    reasons = {kept.path: kept.reason for kept in divided.kept}
    for piece in pieces:
        _mark(piece, reasons)
    parts = tuple(
        Part(piece.path, piece.call, piece.calls, names[i], targets[i])
        for i, piece in enumerate(pieces)
    )
    graph.meta[ASSEMBLY] = Assembly(
        model, parts, tuple(example), tuple(divided.kept), tuple(divided.sized)
    )
    return graph


def _within(piece: Piece, path: str) -> str:
    return path.removeprefix(piece.path).lstrip(".")


def _mark(piece: Piece, reasons: Mapping[str, str]) -> None:
    """The operators' names are those of the whole model; kept modules have their reasons."""
    within = {_within(piece, path): path for path in piece.kept}
    for node in piece.graph.graph.nodes:
        node.meta[CALLS] = piece.calls
        if node.op == "call_module" and str(node.target) in within:
            node.meta[AS_WRITTEN] = reasons[within[str(node.target)]]
        if NAME in node.meta and piece.path:
            # A layer that is a part by itself is traced as the module of something.
            inner = "" if node.meta[NAME] == ALONE else node.meta[NAME]
            node.meta[NAME] = f"{piece.path}.{inner}".rstrip(".")


def _united(pieces: Sequence[Piece]) -> tuple[GraphModule, list[tuple[str, ...]]]:
    root, graph = nn.Module(), Graph()
    results, names = [], []
    for i, piece in enumerate(pieces):
        root.add_module(f"part{i}", piece.graph)
        values: dict[Node, Node] = {}
        inputs = []
        for node in piece.graph.graph.nodes:
            if node.op == "output":
                results.append(torch.fx.node.map_arg(node.args[0], values.__getitem__))
                continue
            new = values[node] = graph.node_copy(node, values.__getitem__)
            new.meta = node.meta
            if node.op in ("call_module", "get_attr"):
                new.target = f"part{i}.{node.target}"
            elif node.op == "placeholder":
                new.target = new.name
                inputs.append(new.name)
        names.append(tuple(inputs))
    graph.output(tuple(results))
    return GraphModule(root, graph, "Parts").eval(), names
