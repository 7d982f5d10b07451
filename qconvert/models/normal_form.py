"""Rewrites of a traced graph, one for each way in which people write the same operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qconvert.errors import UnsupportedError
from qconvert.models.operators import (
    NAME,
    argument,
    is_constant,
    kind_of,
    operator_name,
    quantizable,
)
from qconvert.models.tracing import STUBS


def remove_assertions(graph: GraphModule) -> None:
    """`torch._assert(x.ndim == 4)`: a trace forgets it anyway, and as long as it stands it reads
    the layer before it, which then cannot be fused. What was computed for it alone goes with the
    dead code, but not yet: until `out_of_place`, what nobody reads may change what is read."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.graph.erase_node(node)


# Where a node holds that it is outside of the part that an author of eager mode wants quantized.
OUTSIDE = "outside of the stubs"


def stubs_to_marks(graph: GraphModule) -> bool:
    """Removes QuantStub and DeQuantStub and marks what is not between them; whether there are
    any."""
    inside: set[Node] = set()
    stubs = []
    for node in graph.graph.nodes:
        stub = _stub(graph, node)
        if stub is not None:
            stubs.append(node)
        if stub == "QuantStub" or (stub is None and inside & set(node.all_input_nodes)):
            inside.add(node)
    if not stubs:
        return False
    for node in graph.graph.nodes:
        if node not in inside:
            node.meta[OUTSIDE] = True
    for node in stubs:
        node.replace_all_uses_with(argument(node, 0, "x"))
        graph.graph.erase_node(node)
    return True


def all_outside(graph: GraphModule) -> None:
    """Marks every node as outside of the stubs, which another part of the model has."""
    for node in graph.graph.nodes:
        node.meta[OUTSIDE] = True


def _stub(graph: GraphModule, node: Node) -> str | None:
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return type(module).__name__ if isinstance(module, STUBS) else None


def inputs_by_position(graph: GraphModule) -> None:
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


def has_layers(graph: GraphModule, but: Sequence[str]) -> bool:
    """Whether a traced graph has a layer that multiplies and accumulates, but for those in the
    modules at these paths."""
    return any(
        node.target in _FUNCTIONAL
        or (
            node.op == "call_module"
            and node.target not in but
            and quantizable(graph.get_submodule(str(node.target)))
        )
        for node in graph.graph.nodes
    )


def functions_to_modules(graph: GraphModule) -> None:
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
        owner, _, _ = _attribute(weight).rpartition(".")
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
    """The tensor of a node that reads or computes a constant (a standardized weight), or None."""
    if not isinstance(node, Node) or not is_constant(node):
        return None
    with torch.no_grad():
        value = _computed(graph, node)
    return value.detach() if isinstance(value, Tensor) else None


def _computed(graph: GraphModule, node: Node) -> Any:
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(graph)
        return value.detach().clone() if isinstance(value, Tensor) else value
    args, kwargs = torch.fx.node.map_arg(
        (node.args, node.kwargs), lambda source: _computed(graph, source)
    )
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function = graph.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    return function(*args, **kwargs)  # type: ignore[operator]


def _attribute(node: Node) -> str:
    """The path of the first attribute that a constant is made of."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return str(node.target)


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


def out_of_place(graph: GraphModule) -> None:
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
            raise UnsupportedError(
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


def views_to_reshapes(graph: GraphModule) -> None:
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


# Where a captured graph holds the names of what was removed.
REMOVED = "removed"


def remove_identities(graph: GraphModule) -> tuple[str, ...]:
    removed = []
    for node in list(graph.graph.nodes):
        if node.op.startswith("call_") and kind_of(graph, node) == "identity":
            removed.append(operator_name(node))
            node.replace_all_uses_with(argument(node, 0, "input"))
            graph.graph.erase_node(node)
    return tuple(removed)
