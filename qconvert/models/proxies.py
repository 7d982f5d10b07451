"""Traced values for Python code that asks them for numbers: torch.fx's own refuse."""

from __future__ import annotations

import math
import operator
from typing import Any, Protocol

from torch.fx import Node, Proxy


class Answers(Protocol):
    """A tracer that knows what its values are for the example."""

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any) -> Proxy:
        """See torch.fx."""
        ...

    def value(self, proxy: Proxy, what: str) -> Any:
        """What a value is, for Python code that asks for `what`."""
        ...

    def length(self, proxy: Proxy) -> int:
        """How many there are."""
        ...


class SizedProxy(Proxy):
    """A traced value: `x += 1` changes it, as it does for a tensor, and sizes have answers."""

    tracer: Answers  # type: ignore[assignment]

    def __getattr__(self, k: str) -> Any:
        return _Attribute(self, k)

    def __iadd__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def __ceil__(self) -> Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __index__(self) -> int:
        return int(self.tracer.value(self, "for a whole number"))

    def __int__(self) -> int:
        return int(self.tracer.value(self, "for a number"))

    def __float__(self) -> float:
        return float(self.tracer.value(self, "for a number"))

    def __contains__(self, item: Any) -> bool:
        return item in self.tracer.value(self, "what it contains")


class _Attribute(SizedProxy):
    """`x.shape`, or the method `x.size`: a node is made where it is used."""

    def __init__(self, root: Proxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer  # type: ignore[assignment]
        self._node: Node | None = None

    @property
    def node(self) -> Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy(
                "call_function", getattr, (self.root, self.attr), {}
            ).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Proxy:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)
