"""Traces a module with torch.fx along the path that an example takes.

Every traced value knows what it was for the example, so that Python code which asks for a size (in
an `if`, a `range`, an `assert`) gets its answer. What depends on what is *in* a tensor has no
answer that holds for all images: it stops the trace, in the module whose code asks.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Proxy, Tracer
from torch.utils import _pytree as pytree

from qconvert.models.calls import Call, is_in, is_plain, same, sharing
from qconvert.models.pixels import Normalization
from qconvert.models.proxies import SizedProxy
from qconvert.user_code import place_in

# Modules that hold stubs of eager-mode quantization, which are the boundaries that its author drew.
STUBS = (torch.ao.quantization.QuantStub, torch.ao.quantization.DeQuantStub)
# They are one operator, whatever is in them.
_WHOLE = (*STUBS, Normalization)
# What stops a trace, unless the code goes one way for all images.
DIFFERS = "which differs from image to image"
# What a layer that is a part by itself is called in its trace.
ALONE = "module"
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
# A subclass that overrides one of these computes something of its own.
_COMPUTING = ("forward", "_conv_forward", "_check_input_dim")


class Stop(Exception):  # noqa: N818 (an event, which is often no error)
    """The trace stopped in the code of the module at `path`: `reason`, and ` (file:line: code)`."""

    def __init__(self, path: str, reason: str, place: str) -> None:
        self.path = path
        self.reason = reason
        self.place = place
        super().__init__(f"{reason}{place}")


@dataclass(frozen=True)
class Traced:
    """A graph that shares its modules with what was traced, with one placeholder for each tensor of
    the example, in their order. `sized` are the places of code, as `file:line: code`, whose answer
    about a size is that of the example."""

    graph: GraphModule
    sized: tuple[str, ...]


class _UnansweredError(Exception):
    """Python code asks for what is in a tensor."""


def _is_wrapped(target: Any) -> bool:
    """Whether it is a function of the user's or a library's that `torch.fx.wrap` names."""
    return inspect.isfunction(target) and not target.__module__.startswith("torch.")


class _Tracer(Tracer):
    """See `traced`."""

    def __init__(self, call: Call, whole: frozenset[str], fixed: frozenset[str] | None) -> None:
        super().__init__(param_shapes_constant=True)
        self.sized: dict[str, None] = {}
        self._values: dict[Node, Any] = {}
        # Values whose size depends on what is in a tensor.
        self._data_sized: set[Node] = set()
        # What does not depend on the size of an image: how many axes, which dtype.
        self._facts: set[Node] = set()
        self._call = call
        self._whole = whole
        self._fixed = fixed
        self._paths = [""]

    @property
    def path(self) -> str:
        """Of the module whose code runs."""
        return self._paths[-1]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._whole or isinstance(m, _WHOLE):
            return True
        if "forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks:
            return False  # it computes more than its class does
        if super().is_leaf_module(m, module_qualified_name):
            return True
        base = next((b for b in type(m).__mro__ if b.__module__.startswith("torch.nn.")), nn.Module)
        return base not in _CONTAINERS and all(
            getattr(type(m), name, None) is getattr(base, name, None) for name in _COMPUTING
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Notes in whose code a trace stops."""
        path = self.path_of_module(m)
        leaf = self.is_leaf_module(m, path)
        if not leaf:
            self._paths.append(path)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Stop:
            raise
        except Exception as error:
            raise stopped(self.path, error) from error
        finally:
            if not leaf:
                self._paths.pop()

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """A placeholder for each tensor of the example; all other arguments are what they are."""
        given = {name: self._placeholders(name, v) for name, v in self._call.named.items()}
        args, kwargs = Call(given, self._call.positional).split()
        if isinstance(self.root, _Alone):
            return (lambda: self.root.module(*args, **kwargs)), []
        return (lambda: root_fn(self.root, *args, **kwargs)), []

    def _placeholders(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            proxy = super().create_proxy("placeholder", name, (), {})
            self._values[proxy.node] = value.clone()  # the model may change it in place
            return proxy
        if isinstance(value, (list, tuple)):
            items = [self._placeholders(f"{name}_{i}", item) for i, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {k: self._placeholders(f"{name}_{k}", item) for k, item in value.items()}
        return value

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any,
                     **more: Any) -> Proxy:  # fmt: skip
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind != "output":
            self._values[proxy.node] = self._computed(proxy.node)
        return proxy

    def _computed(self, node: Node) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._known)
        if self._asks_for_data(node, args):
            self._data_sized.add(node)
        sources = node.all_input_nodes
        if _asks_for_fact(node) or (sources and self._facts.issuperset(sources)):
            self._facts.add(node)
        with _untraced(), torch.no_grad():
            if node.op == "get_attr":
                return self._known(node)
            if node.op == "call_function":
                if _is_wrapped(node.target):
                    return self._unchanging(str(node.name), node.target, args, kwargs)
                return node.target(*args, **kwargs)  # type: ignore[operator]
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            if str(node.target) in self._whole:
                return self._kept(str(node.target), args, kwargs)
            return self.root.get_submodule(str(node.target))(*args, **kwargs)

    def _kept(self, path: str, args: Any, kwargs: Any) -> Any:
        """What a module returns that is not looked into; the code that calls it must be kept too
        where a graph could not call it."""
        result = self._unchanging(path, self.root.get_submodule(path), args, kwargs)
        # A graph that calls it is traced by torch.jit, which takes tensors only.
        others = {type(x).__name__ for x in pytree.tree_leaves(result) if not isinstance(x, Tensor)}
        if others or not is_plain(result):
            kinds = ", ".join(sorted(others)) or type(result).__name__
            raise Stop(self.path, f"`{path}` returns {kinds}, no tensors", "")
        return result

    def _unchanging(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """The result of what a graph calls without looking into it; raises Stop when it changes
        its arguments, which a graph does not see."""
        before = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        result = function(*args, **kwargs)
        for x, y in zip(
            pytree.tree_leaves(before), pytree.tree_leaves((args, kwargs)), strict=True
        ):
            if isinstance(x, Tensor) and not same(x, y):
                raise Stop(self.path, f"`{name}` changes in place what it is given", "")
        return result

    def _known(self, node: Node) -> Any:
        """What a node's value was; torch.fx makes nodes for constants by itself."""
        if node not in self._values:
            self._values[node] = operator.attrgetter(str(node.target))(self.root)
        return self._values[node]

    def _asks_for_data(self, node: Node, args: Sequence[Any]) -> bool:
        """Whether the value's size, or the number that it is, depends on what is in a tensor."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op != "call_module" and name in _DATA_SIZED:
            return name != "where" or len(args) == 1
        if node.op == "call_function" and node.target is operator.getitem:
            picked = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(p, Tensor) and p.dtype == torch.bool for p in picked):
                return True
        return any(source in self._data_sized for source in node.all_input_nodes)

    def proxy(self, node: Node) -> Proxy:
        return SizedProxy(node, self)

    def value(self, proxy: Proxy, what: str) -> Any:
        """What a traced value was for the example, for Python code that must know it now.

        Raises _UnansweredError when other images may have another.
        """
        value = self._values[proxy.node]
        of_data = isinstance(value, Tensor) or proxy.node in self._data_sized
        if of_data and not self._follows_example():
            raise _UnansweredError(f"its code asks {what}, {DIFFERS}")
        if proxy.node in self._facts:
            return value
        place = place_in(_frames_inside())
        if ": assert" not in place:  # which holds, or the model would not have run
            self.sized.setdefault(place)
        return value

    def _follows_example(self) -> bool:
        if self._fixed is None:
            return True
        return any(self.path == f or is_in(self.path, f) for f in self._fixed)

    def to_bool(self, obj: Proxy) -> bool:
        return bool(self.value(obj, "whether something in a tensor is so"))

    def iter(self, obj: Proxy) -> Iterator[Any]:
        return iter([obj[i] for i in range(self.length(obj))])  # type: ignore[index]

    def keys(self, obj: Proxy) -> Any:
        return self.value(obj, "for keys").keys()

    def length(self, obj: Proxy) -> int:
        """Of a tuple or list that a module returns, which does not depend on the image; else as
        `value`."""
        value = self._values[obj.node]
        if isinstance(value, (tuple, list, dict)) and obj.node not in self._data_sized:
            return len(value)
        if isinstance(value, Tensor) and obj.node not in self._data_sized:
            return len(range(self.value(obj.shape[0], "")))  # type: ignore[index]
        return len(self.value(obj, "how many there are"))


_FACTS = frozenset({
    "dim", "ndim", "ndimension", "dtype", "device", "layout", "is_floating_point", "is_complex",
    "is_cuda", "is_quantized", "requires_grad", "type",
})  # fmt: skip
# As they are while nothing is traced.
_CALL, _GETATTR = nn.Module.__call__, nn.Module.__getattr__


@contextmanager
def _untraced() -> Iterator[None]:
    """torch.fx has put itself into every module; here they compute."""
    patched = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _CALL, _GETATTR  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched  # type: ignore[method-assign]


_DATA_SIZED = frozenset({
    "nonzero", "argwhere", "where", "masked_select", "unique", "unique_consecutive", "nms",
    "batched_nms", "item", "tolist", "bincount", "equal", "allclose",
})  # fmt: skip


def _asks_for_fact(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in _FACTS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _FACTS


# What torch.fx says, and what a user does.
_IN_WORDS = {
    "does not support item assignment": "its code assigns to a part of a tensor (`x[…] = …`)",
    "does not support item deletion": "its code deletes a part of a value",
    "__array": "its code gives a tensor to numpy",
    "numpy": "its code gives a tensor to numpy",
    "is not a member of this module": "its code uses the weights of a layer that is no submodule "
    "(kept in a plain list, or replaced): register it, as in nn.ModuleList",
    "is not installed as a submodule": "its code calls a layer that is no submodule (kept in a "
    "plain list): register it, as in nn.ModuleList",
}


class _Alone(nn.Module):
    """Holds a layer that is a part by itself, so that the trace has one node for it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> None:
        """Not called: the tracer calls the layer."""


def stopped(path: str, error: Exception) -> Stop:
    """The stop that an error in the code of the module at `path` is."""
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    reason = next((words for sign, words in _IN_WORDS.items() if sign in said), said)
    reason = reason.replace("SizedProxy", "a traced value")
    frames = [*_frames_inside(), *traceback.extract_tb(error.__traceback__)]
    return Stop(path, reason, place_in(frames))


def _frames_inside() -> list[traceback.FrameSummary]:
    """Those that run now, from the trace's begin on."""
    stack = traceback.extract_stack()
    begins = [i for i, f in enumerate(stack) if (f.name, f.filename) == ("traced", __file__)]
    return stack[1 + begins[-1] :]


def traced(
    module: nn.Module,
    call: Call,
    whole: frozenset[str] = frozenset(),
    fixed: frozenset[str] | None = frozenset(),
) -> Traced:
    """The graph of a module for a call, whose arguments hold tensors in any nesting of tuples,
    lists and dicts.

    `whole` are the paths of submodules that stay one node each. In the code of `fixed` ones (None:
    everywhere) also what depends on what is in a tensor is as for the example. Raises Stop.
    """
    tracer = _Tracer(call, whole, fixed)
    try:
        # A copy: code may keep what it computes (anchors, a last size) in its module.
        module = sharing(module)
        graph = tracer.trace(_Alone(module) if tracer.is_leaf_module(module, "") else module)
    except Stop:
        raise
    except Exception as error:
        raise stopped("", error) from error
    return Traced(GraphModule(tracer.root, graph), tuple(tracer.sized))
