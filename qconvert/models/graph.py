"""Captures a model as a torch.fx graph in one normal form.

After `capture`, convolutions, linear layers and batch norms with constant weights are plain
`torch.nn` modules, however the user wrote them; nothing is computed in place; what does nothing
in eval mode (dropout, identity) is gone; every node has a shape and a name that people know.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node, Proxy, Tracer
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.nn.utils import parametrize

from qconvert.errors import ConversionError
from qconvert.models.operators import argument, kind_of
from qconvert.models.user_code import place_of

# Where `capture` leaves the operator's name in `node.meta`.
NAME = "operator_name"
# Where the removed names are in `graph.meta`.
REMOVED = "removed"


def capture(module: nn.Module, example: Tensor) -> GraphModule:
    """Returns the normal form of an eval-mode module that maps one tensor to one tensor.

    The given module is not changed. `example` is one input, float32.

    Raises ConversionError with the line of the user's code that stopped the trace.
    """
    graph = _traced(_copied(module))
    _check_inputs(graph)
    _name_operators(graph)
    _inputs_by_position(graph)
    _functions_to_modules(graph)
    _number_names(graph)
    graph.meta[REMOVED] = _remove_identities(graph)
    _out_of_place(graph)
    _views_to_reshapes(graph)
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


def operator_name(node: Node) -> str:
    """The name that people know: the module's path, or its owner's path and the function."""
    return node.meta.get(NAME, node.name)


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


def _copied(module: nn.Module) -> nn.Module:
    """A copy whose weights are plain tensors: parametrizations are computed once."""
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
        raise ConversionError(
            f"the model cannot be copied: {error}",
            where="model.source",
            fix="undo torch.nn.utils.weight_norm and the like (remove_weight_norm) in the source",
        ) from error
    return module


def _traced(module: nn.Module) -> GraphModule:
    tracer = _Tracer(param_shapes_constant=True)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        raise ConversionError(
            f"torch.fx cannot trace the model: {error}{place_of(error)}",
            where="model.source",
            fix="make this line independent of the tensors' values and shapes",
        ) from error
    return GraphModule(tracer.root, graph)


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


def _inputs_by_position(graph: GraphModule) -> None:
    """`self.bn(input=x)` is `self.bn(x)`."""
    for node in graph.graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:
            node.args, node.kwargs = tuple(node.kwargs.values()), {}


# Functional forms and the modules that they stand for, with the names of the module's arguments.
_CONV_ARGUMENTS = ("stride", "padding", "dilation", "groups")
_FUNCTIONAL: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.conv1d: (nn.Conv1d, _CONV_ARGUMENTS),
    torch.conv2d: (nn.Conv2d, _CONV_ARGUMENTS),
    torch.conv3d: (nn.Conv3d, _CONV_ARGUMENTS),
    F.conv1d: (nn.Conv1d, _CONV_ARGUMENTS),
    F.conv2d: (nn.Conv2d, _CONV_ARGUMENTS),
    F.conv3d: (nn.Conv3d, _CONV_ARGUMENTS),
    F.linear: (nn.Linear, ()),
}


def _functions_to_modules(graph: GraphModule) -> None:
    """A subclass of Conv2d is traced into its `F.conv2d`; make that a plain Conv2d again."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _FUNCTIONAL:
            module = _weighted_module(graph, node)
            weight = argument(node, 1, "weight")
        elif node.target is F.batch_norm:
            module = _batch_norm_module(graph, node)
            weight = argument(node, 1, "running_mean")
        else:
            continue
        if module is None:
            continue
        owner, _, _ = str(weight.target).rpartition(".")
        path = f"{owner.replace('.', '_')}_{node.name}".strip("_")
        while hasattr(graph, path):
            path += "_"
        graph.add_submodule(path, module)
        with graph.graph.inserting_before(node):
            new = graph.graph.call_module(path, (argument(node, 0, "input"),))
        new.meta = {**node.meta, NAME: owner or path}
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)


def _constant(graph: GraphModule, node: Any) -> Tensor | None:
    """The tensor that a `get_attr` node reads, or None."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    return value.detach() if isinstance(value, Tensor) else None


def _weighted_module(graph: GraphModule, node: Node) -> nn.Module | None:
    factory, names = _FUNCTIONAL[node.target]  # type: ignore[index]
    weight = _constant(graph, argument(node, 1, "weight"))
    bias_node = argument(node, 2, "bias")
    bias = _constant(graph, bias_node)
    if weight is None or (bias_node is not None and bias is None):
        return None
    settings = {name: argument(node, 3 + i, name) for i, name in enumerate(names)}
    settings = {name: value for name, value in settings.items() if value is not None}
    if any(isinstance(value, Node) for value in settings.values()):
        return None
    channels_in = weight.shape[1] * settings.get("groups", 1)
    if factory is not nn.Linear:
        settings["kernel_size"] = tuple(weight.shape[2:])
    module = factory(channels_in, weight.shape[0], bias=bias is not None, **settings)
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return module.eval()


def _batch_norm_module(graph: GraphModule, node: Node) -> nn.Module | None:
    if argument(node, 5, "training", False) is not False:
        return None
    values: dict[str, Tensor] = {}
    for i, name in enumerate(("running_mean", "running_var", "weight", "bias")):
        given = argument(node, i + 1, name)
        value = _constant(graph, given)
        if given is not None and value is None:
            return None  # computed as the model runs
        if value is not None:
            values[name] = value
    if not {"running_mean", "running_var"} <= set(values):
        return None
    # Any class of batch norm will do: what it checks is the number of axes.
    module = nn.SyncBatchNorm(len(values["running_mean"]), eps=argument(node, 7, "eps", 1e-5))
    for name in ("running_mean", "running_var"):
        setattr(module, name, values[name])
    for name, neutral in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        value = values.get(name, neutral(values["running_mean"]))
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    return module.eval()


_IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
}
# Their results share memory with their input, or may: in-place changes are seen through them.
_VIEWS = frozenset({
    "flatten", "reshape", "chunk", "split", "tensor_split", "permute", "transpose", "squeeze",
    "unsqueeze", "getitem", "unbind", "expand", "expand_as", "view_as", "reshape_as", "narrow",
    "contiguous", "unfold", "select", "detach", "to", "type_as", "float", "swapaxes", "swapdims",
    "movedim", "t", "diagonal", "unflatten", "Unflatten",
})  # fmt: skip


def _out_of_place(graph: GraphModule) -> None:
    """Replaces in-place operators by plain ones that everybody sees who saw the change.

    `y = relu_(x); z = x + y` adds `y` twice: later readers of `x` get the new value.
    """
    for node in [node for node in graph.graph.nodes if _is_in_place(graph, node)]:
        changed = argument(node, 0, "input")
        _make_plain(graph, node)
        if not isinstance(changed, Node):
            continue
        _refuse_changed_views(graph, node, changed)
        for user in [user for user in changed.users if node < user]:
            user.replace_input_with(changed, node)


def _refuse_changed_views(graph: GraphModule, node: Node, changed: Node) -> None:
    """An in-place change is seen through every other view of the same memory; refuse the change
    when one of them is read later."""
    base = _base(graph, changed)
    for other in graph.graph.nodes:
        if other is node:
            return
        if other is changed or _base(graph, other) is not base:
            continue
        if any(node < user for user in other.users):
            raise ConversionError(
                f"{operator_name(node)} changes memory that {operator_name(other)} is a view of, "
                "and that is read again later",
                where="model.source",
                fix="do it out of place (inplace=False)",
            )


def _base(graph: GraphModule, node: Node) -> Node:
    """The value whose memory a chain of views looks at."""
    while node.op.startswith("call_") and kind_of(graph, node) in _VIEWS:
        source = argument(node, 0, "input")
        if not isinstance(source, Node):
            break
        node = source
    return node


def _views_to_reshapes(graph: GraphModule) -> None:
    """`view` raises on channels-last memory, which int8 kernels return; `reshape` copies it."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"


def _is_in_place(graph: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.target in _IN_PLACE_OPERATORS or node.kwargs.get("inplace") is True


def _make_plain(graph: GraphModule, node: Node) -> None:
    if node.op == "call_module":
        graph.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
    elif node.op == "call_method":
        node.target = str(node.target).removesuffix("_")
    else:
        node.target = _IN_PLACE_OPERATORS.get(node.target, node.target)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}


def _remove_identities(graph: GraphModule) -> tuple[str, ...]:
    removed = []
    for node in list(graph.graph.nodes):
        if node.op.startswith("call_") and kind_of(graph, node) == "identity":
            removed.append(operator_name(node))
            node.replace_all_uses_with(argument(node, 0, "input"))
            graph.graph.erase_node(node)
    return tuple(removed)


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
