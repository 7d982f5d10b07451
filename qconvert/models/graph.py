"""Captures a model as a torch.fx graph in one normal form.

After `capture`, convolutions, linear layers and batch norms with constant weights are plain
`torch.nn` modules, however the user wrote them; nothing is computed in place; what does nothing
in eval mode (dropout, identity) is gone; every node has a shape and a name that people know.
"""

from __future__ import annotations

import copy
import operator
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Tracer
from torch.fx.passes.shape_prop import ShapeProp

from qconvert.errors import ConversionError
from qconvert.models.operators import argument, kind_of

# Where `capture` leaves the operator's name in `node.meta`.
NAME = "operator_name"
# Where the removed names are in `graph.meta`.
REMOVED = "removed"


def capture(module: nn.Module, example: Tensor) -> GraphModule:
    """Returns the normal form of an eval-mode module that maps one tensor to one tensor.

    The given module is not changed. `example` is one input, float32.

    Raises ConversionError with the line of the user's code that stopped the trace.
    """
    graph = _traced(copy.deepcopy(module))
    _name_operators(graph)
    _functions_to_modules(graph)
    graph.meta[REMOVED] = _remove_identities(graph)
    _out_of_place(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    propagate_shapes(graph, example)
    _check_signature(graph)
    return graph


def propagate_shapes(graph: GraphModule, example: Tensor) -> None:
    """Leaves shape and dtype of every value in `node.meta`."""
    with torch.inference_mode():
        try:
            ShapeProp(graph).propagate(example)
        except Exception as error:
            raise ConversionError(
                f"the model fails on an input of shape {list(example.shape)}: "
                f"{error.__cause__ or error}",
                where="model.source",
                fix="correct `data.preprocess` (channels, resize, crop) or the model",
            ) from error


def operator_name(node: Node) -> str:
    """The name that people know: the module's path, or its owner's path and the function."""
    return node.meta.get(NAME, node.name)


def _traced(module: nn.Module) -> GraphModule:
    tracer = Tracer(param_shapes_constant=True)
    try:
        graph = tracer.trace(module)
    except Exception as error:
        ours = (Path(torch.__file__).parent, Path(__file__).parent)
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not any(Path(frame.filename).is_relative_to(folder) for folder in ours)
            and not frame.filename.startswith("<")
        ]
        place = f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
        raise ConversionError(
            f"torch.fx cannot trace the model: {error}{place}",
            where="model.source",
            fix="make this line independent of the tensors' values and shapes",
        ) from error
    return GraphModule(tracer.root, graph)


def _name_operators(graph: GraphModule) -> None:
    """`layer1.0.conv1` for a module, `layer1.0.add` for a function in it, `:2` for a second."""
    seen: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        if node.op == "call_module":
            name = str(node.target)
        else:
            stack = node.meta.get("nn_module_stack") or {}
            owner = list(stack.values())[-1][0] if stack else ""
            function = node.target if isinstance(node.target, str) else node.target.__name__
            name = f"{owner}.{function}" if owner else function
        seen[name] += 1
        node.meta[NAME] = name if seen[name] == 1 else f"{name}:{seen[name]}"


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
        users_of_owner = [
            n for n in graph.graph.nodes if n.op == "call_module" and n.target == owner
        ]
        path = owner if owner and not users_of_owner else f"{owner}_{node.name}".strip("_")
        graph.add_submodule(path, module)
        with graph.graph.inserting_before(node):
            new = graph.graph.call_module(path, (argument(node, 0, "input"),))
        new.meta = {**node.meta, NAME: node.meta[NAME].rpartition(".")[0] or path}
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
    names = ("running_mean", "running_var", "weight", "bias")
    values: dict[str, Any] = {
        name: _constant(graph, argument(node, i + 1, name)) for i, name in enumerate(names)
    }
    mean, variance = values["running_mean"], values["running_var"]
    if mean is None or variance is None or argument(node, 5, "training", False) is not False:
        return None
    affine = values["weight"] is not None and values["bias"] is not None
    module = nn.BatchNorm2d(len(mean), eps=argument(node, 7, "eps", 1e-5), affine=affine)
    module._check_input_dim = lambda input: None  # type: ignore[method-assign]
    module.running_mean, module.running_var = mean, variance
    if affine:
        module.weight = nn.Parameter(values["weight"], requires_grad=False)
        module.bias = nn.Parameter(values["bias"], requires_grad=False)
    return module.eval()


_IN_PLACE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
}
# Their results share memory with their input: in-place changes are seen through them.
_VIEWS = frozenset({"flatten", "reshape", "chunk", "split", "permute", "transpose", "squeeze",
                    "unsqueeze", "getitem", "unbind", "expand", "narrow"})  # fmt: skip


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
    """An in-place change of a view also changes its base; refuse it when that is read later."""
    while kind_of(graph, changed) in _VIEWS:
        base = argument(changed, 0, "input")
        if not isinstance(base, Node):
            return
        if any(node < user for user in base.users):
            raise ConversionError(
                f"{operator_name(node)} changes a view of a tensor that is read again later",
                where="model.source",
                fix="do it out of place (inplace=False)",
            )
        changed = base


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


def _check_signature(graph: GraphModule) -> None:
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder" and node.users]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    if len(inputs) != 1:
        raise ConversionError(
            f"the model reads {len(inputs)} inputs; this version converts models of one image",
            where="model.source",
            fix="name a callable that wraps the model",
        )
    result = output.args[0]
    if not isinstance(result, Node) or "tensor_meta" not in result.meta:
        raise ConversionError(
            "the model returns several values; this version converts models that return one tensor",
            where="model.source",
            fix="name a callable whose model returns the tensor to be measured",
        )
