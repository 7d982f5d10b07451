"""Walks an image through a model in float and in int8 at once; at each place that int8 rounds, it
looks where both ways would end if this place alone were what it is on the other way.

What such a way shares with the one that it leaves is not computed again, and only values that are
still to be read are held: memory does not grow with the depth of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qconvert.models.outputs import ONLY, tensors
from qconvert.models.parts import needed_for
from qconvert.quantization.lowering.switched import Place, Switch
from qconvert.quantization.sensitivity.tensor_error import Tally, tally


class Energies(NamedTuple):
    """Power at the measured output: of float (`signal`), and of the error with everything in int8,
    with this place alone in int8, with its weight alone, with its result alone, and with this place
    alone in float; then the power of its own result, and of its error with everything in int8."""

    signal: float = 0.0
    int8: float = 0.0
    alone: float = 0.0
    weight: float = 0.0
    result: float = 0.0
    in_float: float = 0.0
    own_signal: float = 0.0
    own_error: float = 0.0


class Seen(NamedTuple):
    """One place on one image: energies, and what rounding makes of its result's float value."""

    energies: Energies
    tally: Tally | None

    def with_more(self, other: Seen) -> Seen:
        """Both together."""
        energies = Energies(*np.add(self.energies, other.energies).tolist())
        if self.tally is None or other.tally is None:
            return Seen(energies, self.tally or other.tally)
        return Seen(energies, self.tally.with_more(other.tally))


class Body:
    """A graph with switches, and what is measured of it: the output of a name; or, without one, all
    that hold numbers, each as a share of its own power.

    `places` are by their numbers; `axes` the channels' of their values (see `channels`).
    """

    def __init__(
        self,
        graph: GraphModule,
        places: Mapping[int, Place],
        axes: Mapping[str, int],
        measured: str | None,
    ) -> None:
        self.graph, self.axes, self.measured = graph, axes, measured
        everything = list(graph.graph.nodes)
        self.inputs = [node for node in everything if node.op == "placeholder"]
        self.nodes = [node for node in everything if node.op not in ("placeholder", "output")]
        self.structure = next(node for node in everything if node.op == "output").args[0]
        leaf = None if measured is None else _leaf(self.structure, "", measured)
        if leaf is not None:
            self.structure, self.measured = leaf, ONLY
        needed = needed_for(self.structure)
        self.needed = [node in needed for node in self.nodes]
        self.freed = self._freed()
        targets = {str(node.target): i for i, node in enumerate(self.nodes)
                   if node.op == "call_module"}  # fmt: skip
        self.weights: dict[int, tuple[int, Place]] = {}
        self.results: dict[int, tuple[int, Place]] = {}
        for number, place in places.items():
            if place.weight in targets:
                self.weights[targets[place.weight]] = number, place
            if (place.result or place.weight) in targets:
                self.results[targets[str(place.result or place.weight)]] = number, place

    def _freed(self) -> list[list[Node]]:
        """What nobody reads any more after each node."""
        found: list[list[Node]] = [[] for _ in self.nodes]
        kept: list[Node] = []
        torch.fx.node.map_arg(self.structure, kept.append)
        seen = set(kept)
        for i in reversed(range(len(self.nodes))):
            for node in (self.nodes[i], *self.nodes[i].all_input_nodes):
                if node not in seen:
                    seen.add(node)
                    found[i].append(node)
        return found

    def holds(self, number: int) -> bool:
        """Whether the place of this number is in it."""
        return any(number == held for held, _ in (*self.weights.values(), *self.results.values()))

    def reaches(self, number: int) -> bool:
        """Whether what is measured depends on the place of this number."""
        return any(
            self.needed[i]
            for i, (held, _) in (*self.weights.items(), *self.results.items())
            if held == number
        )

    def returned(self, values: Mapping[Node, Any]) -> list[Tensor]:
        """What is measured, of the values of all nodes that are returned."""
        found = tensors(torch.fx.node.map_arg(self.structure, values.__getitem__))
        if self.measured is not None:
            return [found[self.measured]]
        return [value for value in found.values() if value.is_floating_point() and value.numel()]

    def powers(self, want: Sequence[Tensor]) -> list[float]:
        """Of each measured output, the power that errors are told as shares of."""
        if self.measured is not None:
            return [1.0] * len(want)
        return [max(_power(x), 1e-24 * x.numel()) for x in want]


class _Way(Interpreter):
    """One image on its way through a body: in float or in int8, but for the switches `turned`."""

    def __init__(self, body: Body, inputs: Sequence[Tensor], int8: bool) -> None:
        super().__init__(body.graph, garbage_collect_values=False)
        self._body, self._int8 = body, int8
        self._turned: tuple[str | None, ...] = ()
        self.args_iter = iter(inputs)
        self.env = {}
        for node in body.inputs:
            self.env[node] = self.run_node(node)

    def run_node(self, n: Node) -> Any:
        """Without what the base class notes of each node, which takes longer than small ones."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A switch in the form in which it stands."""
        module = self.submodules[str(target)]
        if isinstance(module, Switch):
            turned = str(target) in self._turned
            module = module.as_float if turned == self._int8 else module.as_int8
        return module(*args, **kwargs)

    def step(self, i: int) -> Any:
        """Computes a node, and forgets what nobody reads any more."""
        node = self._body.nodes[i]
        result = self.env[node] = self.run_node(node)
        for read in self._body.freed[i]:
            self.env.pop(read, None)
        return result

    def end(self, start: int = 0, turned: Iterable[str | None] = ()) -> list[Tensor]:
        """What is measured where these switches are turned, from node `start` on. The way itself
        stays where it is."""
        here, self.env, self._turned = self.env, dict(self.env), tuple(turned)
        try:
            for i in range(start, len(self._body.nodes)):
                if self._body.needed[i]:
                    self.step(i)
            return self._body.returned(self.env)
        finally:
            self.env, self._turned = here, ()


class Look:
    """One image in float and in int8: the power of what is measured (`signal`), and that of the
    error of int8."""

    def __init__(self, body: Body, inputs: Sequence[Tensor]) -> None:
        self._body = body
        self._float, self._int8 = (_Way(body, inputs, int8) for int8 in (False, True))
        self._want = self._float.end()
        self._powers = body.powers(self._want)
        self.signal = sum(_power(x) / p for x, p in zip(self._want, self._powers, strict=True))
        self.int8 = self._error(self._int8.end())

    def places(self) -> dict[int, Seen]:
        """Of each place of the body, by its number; asked for once."""
        body, found = self._body, dict[int, Seen]()
        begun: dict[int, Energies] = {}
        for i, node in enumerate(body.nodes):
            number, place = body.weights.get(i, (-1, None))
            if place is not None:
                begun[number] = self._of_weight(i, place)
            number, result = body.results.get(i, (-1, None))
            rounded = None
            if result is not None:
                before = begun.pop(number, Energies(self.signal, self.int8))
                x = None if result.result is None else self._float.env[node.args[0]]
                if x is not None and result.held is not None and x.numel():
                    rounded = tally(x, result.held.params, body.axes.get(result.value))
                    before = self._of_result(i, result, before, bool(rounded.error.any()))
            want, have = self._float.step(i), self._int8.step(i)
            if result is not None:
                found[number] = Seen(_with_own(before, want, have), rounded)
        return found

    def _of_weight(self, i: int, place: Place) -> Energies:
        found = Energies(self.signal, self.int8)
        if not self._body.needed[i]:
            return found
        both = (place.weight, place.result)
        weight = self._error(self._float.end(i, (place.weight,)))
        alone = weight if place.held is None else self._error(self._float.end(i, both))
        in_float = self._error(self._int8.end(i, both))
        return found._replace(weight=weight, alone=alone, in_float=in_float)

    def _of_result(self, i: int, place: Place, before: Energies, changes: bool) -> Energies:
        if not self._body.needed[i]:
            return before
        turned = (place.result,)
        result = self._error(self._float.end(i, turned)) if changes else 0.0
        if place.weight is not None:
            return before._replace(result=result)
        in_float = self._error(self._int8.end(i, turned))
        return before._replace(result=result, alone=result, in_float=in_float)

    def _error(self, have: Sequence[Tensor]) -> float:
        return sum(
            _power(x.double() - y.double()) / power
            for x, y, power in zip(have, self._want, self._powers, strict=True)
        )


def _with_own(found: Energies, want: Any, have: Any) -> Energies:
    """Of a place's own result; of a recurrent layer's, its first tensor."""
    x, y = (next(iter(tensors(value).values())).double() for value in (want, have))
    return found._replace(own_signal=_power(x), own_error=_power(x - y))


def _power(x: Tensor) -> float:
    return float(x.double().square().sum())


def _leaf(structure: Any, name: str, wanted: str) -> Node | None:
    """The node of the output that `models.outputs.tensors` calls so; None where a run must tell."""
    if isinstance(structure, Node):
        return structure if (name or ONLY) == wanted else None
    if isinstance(structure, Mapping):
        items: Iterable[tuple[Any, Any]] = structure.items()
    else:
        items = enumerate(structure) if isinstance(structure, (tuple, list)) else ()
    found = (_leaf(item, f"{name}.{key}".lstrip("."), wanted) for key, item in items)
    return next((node for node in found if node is not None), None)
