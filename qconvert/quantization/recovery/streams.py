"""Runs the float model and its simulation in int8 beside each other, operator by operator, so that
a layer can be changed before what comes after it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.quantization.lowering.backend import Layer, lower
from qconvert.quantization.lowering.targets import Simulated
from qconvert.quantization.plan import Plan


@dataclass(frozen=True)
class Met:
    """A layer of the simulation that is about to be computed: its module, which may be changed; the
    inputs that it reads, and what the float layer computed of its own, without activation, both by
    image."""

    layer: Layer
    module: Any
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]


def layers_in_order(model: FusedModel, plan: Plan, images: Sequence[Inputs]) -> Iterator[Met]:
    """Each int8 layer of the plan, after all that it reads has been computed by the layers before
    it as they are then.

    Of every image all values are held that are still to be read: memory grows with the images.
    """
    target = Simulated()
    simulated = lower(model, plan, target)
    wanted = {layer.operator.node for layer in target.layers.values()}
    with torch.no_grad():
        floats = [_Stream(model.graph, inputs, wanted) for inputs in images]
        streams = [_Stream(simulated, inputs, set()) for inputs in images]
        for node in simulated.graph.nodes:
            layer = target.layers.get(str(node.target)) if node.op == "call_module" else None
            if layer is not None:
                name = layer.operator.node
                yield Met(
                    layer,
                    simulated.get_submodule(str(node.target)),
                    tuple(stream.value(node.args[0]) for stream in streams),
                    tuple(stream.taken(name) for stream in floats),
                )
            for stream in streams:
                stream.step()


class _Stream:
    """One image on its way through a graph. `kept` are the names of nodes whose values wait until
    they are taken."""

    def __init__(self, graph: GraphModule, inputs: Inputs, kept: set[str]) -> None:
        self._interpreter = Interpreter(graph)
        self._interpreter.args_iter = iter(inputs)
        self._nodes = iter(graph.graph.nodes)
        self._kept = kept
        self._waiting: dict[str, Tensor] = {}

    def step(self) -> Node:
        """Computes the next node, and forgets what nobody reads any more."""
        node = next(self._nodes)
        interpreter = self._interpreter
        interpreter.env[node] = interpreter.run_node(node)
        if node.name in self._kept:
            self._waiting[node.name] = interpreter.env[node]
        for read in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[read]
        return node

    def value(self, node: Any) -> Tensor:
        """Of a node that was computed and is still to be read."""
        found: Tensor = self._interpreter.env[node]
        return found

    def taken(self, name: str) -> Tensor:
        """The value of a `kept` node, computed when it is first asked for, and forgotten."""
        while name not in self._waiting:
            self.step()
        return self._waiting.pop(name)
