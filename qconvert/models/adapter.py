"""Calls a traced part from TorchScript as the user's code calls the module in its place."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from qconvert.models.calls import Call


def adapter(call: Call, body: torch.jit.ScriptModule) -> GraphModule:
    """A module for TorchScript that is called as the part was, and gives the tensors to `body`."""
    graph = Graph()
    tensors: list[Node] = []
    placeholders = [
        (graph.placeholder(name, type_expr=_annotation(value)), value)
        for name, value in call.named.items()
    ]
    for node, value in placeholders:
        _take(graph, node, value, tensors)
        if value is None or isinstance(value, (bool, int, float, str)):
            test = graph.call_function(*((_is_none, (node,)) if value is None else
                                         (operator.eq, (node, value))))  # fmt: skip
            graph.call_function(torch._assert, (test, f"the part was made for {value!r}"))
    graph.output(graph.call_module("body", tuple(tensors)))
    root = nn.Module()
    root.add_module("body", body)
    made = GraphModule(root, graph, "Part")
    made.training = False  # its body may have been compiled for evaluation alone
    return made


def _take(graph: Graph, node: Node, value: Any, tensors: list[Node]) -> None:
    if isinstance(value, Tensor):
        tensors.append(node)
    elif isinstance(value, (list, tuple)):
        if isinstance(value, list):
            length = graph.call_function(len, (node,))
            same = graph.call_function(operator.eq, (length, len(value)))
            graph.call_function(torch._assert, (same, f"{len(value)} tensors are read"))
        for i, item in enumerate(value):
            _take(graph, graph.call_function(operator.getitem, (node, i)), item, tensors)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _take(graph, graph.call_function(operator.getitem, (node, key)), item, tensors)


def _is_none(x: Optional[Tensor]) -> bool:  # noqa: UP045 (TorchScript's)
    return x is None


def _annotation(value: Any) -> Any:
    """The type that TorchScript gives to an argument like this one."""
    if isinstance(value, Tensor):
        return Tensor
    if isinstance(value, tuple):
        return tuple[tuple(map(_annotation, value))]  # type: ignore[misc]
    if isinstance(value, list):
        return list[_annotation(value[0])] if value else list[Tensor]  # type: ignore[misc]
    if isinstance(value, Mapping):
        return dict[str, Tensor]
    return Optional[Tensor] if value is None else type(value)  # noqa: UP045 (TorchScript's)
