"""Traces a module with torch.fx, seeing in-place operators and layers as they are."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node, Proxy, Tracer
from torch.nn.utils import parametrize

from qconvert.errors import UnsupportedError, UntraceableError
from qconvert.user_code import place_of


class _Tracer(Tracer):
    """Traces in-place operators as such, and keeps layers whole whose class only has a new name."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        base = next((b for b in type(m).__mro__ if b.__module__.startswith("torch.nn.")), nn.Module)
        return base not in _CONTAINERS and all(
            getattr(type(m), name, None) is getattr(base, name, None) for name in _COMPUTING
        )

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)


_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A subclass that overrides one of these computes something of its own.
_COMPUTING = ("forward", "_conv_forward", "_check_input_dim")


class _Proxy(Proxy):
    """A traced value for which `x += 1` changes x, as it does for a tensor."""

    def __iadd__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


def copied(module: nn.Module) -> nn.Module:
    """A copy whose weights are plain tensors: parametrizations are computed once.

    Raises UnsupportedError when the module cannot be copied.
    """
    try:
        module = copy.deepcopy(module)
        for owner in list(module.modules()):
            if parametrize.is_parametrized(owner):
                # The copy shares its class, which holds the weight, with the user's module.
                shared = type(owner)
                owner.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
                for name in list(owner.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(owner, name, leave_parametrized=True)
    except Exception as error:
        raise UnsupportedError(
            f"the model cannot be copied: {error}",
            where="model.source",
            fix="undo torch.nn.utils.weight_norm and the like (remove_weight_norm) in the source",
        ) from error
    return module


def traced(module: nn.Module) -> GraphModule:
    """The graph of a module, which shares its submodules.

    Raises UntraceableError with the line of the user's code that stopped the trace.
    """
    tracer = _Tracer(param_shapes_constant=True)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        raise UntraceableError(
            f"torch.fx cannot trace the model: {error}{place_of(error)}", where="model.source"
        ) from error
    return GraphModule(tracer.root, graph)
