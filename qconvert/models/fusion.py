"""Folds batch norms into the layers before them and finds activations to compute with a layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qconvert.errors import QConfigError, did_you_mean
from qconvert.models.assembly import Assembly, assembly_of
from qconvert.models.division import Kept
from qconvert.models.normal_form import REMOVED
from qconvert.models.operators import (
    ACTIVATIONS,
    TRANSPOSED,
    WEIGHTED,
    clip_bounds,
    kind_of,
    module_of,
    operator_name,
    shape_of,
)

# Operators that are computed with an activation after them.
PAIRED = tuple(dict.fromkeys(kind for kinds in ACTIVATIONS.values() for kind in kinds))
# Activations that no kernel computes with a layer.
_OTHER_ACTIVATIONS = frozenset({
    "hardsigmoid", "sigmoid", "elu", "celu", "selu", "mish", "prelu", "rrelu", "softplus",
})  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """A batch norm or an activation that stays an operator of its own, and why."""

    operator: str
    reason: str


@dataclass(frozen=True)
class FusedModel:
    """A graph in normal form whose batch norms are folded where that is exact.

    `folded` and `paired` hold the names of operators that became one, in order; `pairs` maps the
    graph node of a layer to that of the activation computed with it.
    """

    graph: GraphModule
    folded: tuple[tuple[str, ...], ...]
    paired: tuple[tuple[str, ...], ...]
    refused: tuple[Refusal, ...]
    removed: tuple[str, ...]
    pairs: dict[str, str]

    @property
    def assembly(self) -> Assembly:
        """How the graph becomes the model again."""
        return assembly_of(self.graph)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The modules whose code stays as it is written."""
        return self.assembly.kept


def fuse(graph: GraphModule, groups: Sequence[Sequence[str]] | None = None) -> FusedModel:
    """Folds and pairs in a copy of the graph; `groups` limits it to these lists of names.

    Raises QConfigError when a group names what is not there or cannot be fused.
    """
    graph = copy.deepcopy(graph)
    if groups is not None:
        groups = _resolved(graph, groups)
        _check_groups(graph, groups)
    # What may be fused with the operator that it reads; `_check_groups` has seen that it reads it.
    listed = None if groups is None else {name for group in groups for name in group[1:]}
    refused: list[Refusal] = []
    folded = _fold_batch_norms(graph, listed, refused)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    paired, pairs = _pair_activations(graph, listed, folded, refused)
    if groups is not None:
        _check_fused(groups, refused)
    return FusedModel(
        graph, tuple(folded), tuple(paired), tuple(refused), graph.meta.get(REMOVED, ()), pairs
    )


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: Any, channel_axis: int, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that computes what layer and batch norm did.

    `channel_axis` is the weight's axis of output channels (0; 1 for transposed convolutions,
    whose output channels count per group). Computed in float64, returned in the weight's dtype.
    The formula is that of Jacob et al. 2018 (arXiv:1712.05877), section 3.2.
    """
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    factor = gamma / torch.sqrt(variance + norm.eps)
    shift = beta - mean * factor
    if bias is not None:
        shift = shift + bias.double() * factor
    shape = [1] * weight.dim()
    if channel_axis == 0:
        shape[0] = -1
        scaled = weight.double() * factor.view(shape)
    else:
        # (inputs, outputs / groups, ...): the inputs are in groups, each with its own outputs.
        shape[channel_axis] = -1
        parts = weight.double().chunk(groups, dim=0)
        factors = factor.chunk(groups)
        scaled = torch.cat([p * f.view(shape) for p, f in zip(parts, factors, strict=True)])
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _resolved(graph: GraphModule, groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups with `relu` read as that call of the module which follows, as `relu:2`."""
    nodes = {operator_name(node): node for node in graph.graph.nodes if node.op.startswith("call_")}
    resolved = []
    for group in groups:
        names = list(group[:1])
        for name in group[1:]:
            before = nodes.get(names[-1])
            calls = [n for n in nodes if n == name or n.rpartition(":")[0] == name]
            follows = [n for n in calls if before and nodes[n].args[:1] == (before,)]
            names.append(follows[0] if follows else name)
        resolved.append(names)
    return resolved


def _check_groups(graph: GraphModule, groups: Sequence[Sequence[str]]) -> None:
    nodes = {operator_name(node): node for node in graph.graph.nodes if node.op.startswith("call_")}
    facts: list[str] = []
    for i, group in enumerate(groups):
        where = f"fuse.modules[{i}]"
        unknown = [name for name in group if name not in nodes]
        facts.extend(
            f"{where}: there is no operator {name!r}{did_you_mean(name, nodes)}" for name in unknown
        )
        if unknown:
            continue
        kinds = tuple(kind_of(graph, nodes[name]) for name in group)
        legal = (
            len(kinds) in (2, 3)
            and kinds[0] in (*WEIGHTED, "add")
            and (kinds[1] in ACTIVATIONS if len(kinds) == 2 else kinds[2] in ACTIVATIONS)
            and (len(kinds) == 2 or kinds[1] == "batch_norm")
        ) or (len(kinds) == 2 and kinds[0] in WEIGHTED and kinds[1] == "batch_norm")
        if not legal:
            facts.append(
                f"{where}: {' + '.join(kinds)} cannot be fused; "
                "a convolution, linear layer or add, then a batch norm, an activation, or both can"
            )
            continue
        facts.extend(
            f"{where}: {second!r} does not read {first!r} alone"
            for first, second in pairwise(group)
            if nodes[second].args[0] is not nodes[first] or len(nodes[first].users) != 1
        )
    if facts:
        raise QConfigError(facts, where="qconfig")


def _check_fused(groups: Sequence[Sequence[str]], refused: Sequence[Refusal]) -> None:
    """Everything that was listed must have been fused."""
    reasons = {refusal.operator: refusal.reason for refusal in refused}
    facts = [
        f"fuse.modules[{i}]: {name!r} cannot be fused: {reasons[name]}"
        for i, group in enumerate(groups)
        for name in group[1:]
        if name in reasons
    ]
    if facts:
        raise QConfigError(facts, where="qconfig")


def _fold_batch_norms(
    graph: GraphModule, listed: set[str] | None, refused: list[Refusal]
) -> list[tuple[str, ...]]:
    calls: dict[str, int] = {}
    folded: list[tuple[str, ...]] = []
    done: dict[tuple[str, str], str] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in list(graph.graph.nodes):
        if kind_of(graph, node) != "batch_norm" or node.op != "call_module":
            continue
        layer: Any = node.args[0]
        reason = _why_not_fold(graph, layer, node)
        if reason is None and listed is not None and operator_name(node) not in listed:
            reason = "it is not in fuse.modules"
        if reason is not None:
            refused.append(Refusal(operator_name(node), reason))
            continue
        key = (str(layer.target), str(node.target))
        if key not in done:
            # A layer that is called at several places gets a copy for each batch norm.
            path = key[0] if calls[key[0]] == 1 else f"{key[0]}_with_{key[1].replace('.', '_')}"
            graph.add_submodule(path, _folded(graph, layer, node))
            done[key] = path
        layer.target = done[key]
        node.replace_all_uses_with(layer)
        graph.graph.erase_node(node)
        folded.append((operator_name(layer), operator_name(node)))
    return folded


def _why_not_fold(graph: GraphModule, layer: Any, node: Node) -> str | None:
    if not isinstance(layer, Node) or kind_of(graph, layer) not in WEIGHTED:
        before = operator_name(layer) if isinstance(layer, Node) else "a constant"
        return f"it follows {before}, which is no convolution or linear layer"
    if layer.op != "call_module":
        return f"the weight of {operator_name(layer)} is not constant"
    if len(layer.users) != 1:
        return f"{operator_name(layer)} is also read before the batch norm"
    norm = module_of(graph, node)
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if kind_of(graph, layer) == "linear" and len(shape_of(layer)) != 2:
        return "the linear layer's features are not the batch norm's channels"
    return None


def _folded(graph: GraphModule, layer: Node, node: Node) -> Any:
    module = copy.deepcopy(module_of(graph, layer))
    norm = module_of(graph, node)
    transposed = kind_of(graph, layer) in TRANSPOSED
    weight, bias = fold_batch_norm(
        module.weight, module.bias, norm, 1 if transposed else 0, getattr(module, "groups", 1)
    )
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.bias = nn.Parameter(bias, requires_grad=False)
    return module


def _pair_activations(
    graph: GraphModule,
    listed: set[str] | None,
    folded: Sequence[tuple[str, ...]],
    refused: list[Refusal],
) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    names_before = {first: (first, second) for first, second in folded}
    paired: list[tuple[str, ...]] = []
    pairs: dict[str, str] = {}
    for node in graph.graph.nodes:
        if not node.op.startswith("call_") or not node.args:
            continue
        layer: Any = node.args[0]
        if kind_of(graph, node) not in ACTIVATIONS:
            if _is_other_activation(graph, layer, node):
                why = f"no int8 kernel computes {kind_of(graph, node)} with the layer before it"
                refused.append(Refusal(operator_name(node), why))
            continue
        if listed is not None and operator_name(node) not in listed:
            reason: str | None = "it is not in fuse.modules"
        else:
            reason = _why_not_pair(graph, layer, node)
        if reason is not None:
            refused.append(Refusal(operator_name(node), reason))
            continue
        before = names_before.get(operator_name(layer), (operator_name(layer),))
        paired.append((*before, operator_name(node)))
        pairs[layer.name] = node.name
    return paired, pairs


def _is_other_activation(graph: GraphModule, layer: Any, node: Node) -> bool:
    follows = isinstance(layer, Node) and kind_of(graph, layer) in PAIRED
    return follows and kind_of(graph, node).lower().rstrip("_") in _OTHER_ACTIVATIONS


def _why_not_pair(graph: GraphModule, layer: Any, node: Node) -> str | None:
    if not isinstance(layer, Node) or kind_of(graph, layer) not in PAIRED:
        before = operator_name(layer) if isinstance(layer, Node) else "a constant"
        return f"it follows {before}, which computes no activation with it"
    kinds = ACTIVATIONS[kind_of(graph, node)]
    if kind_of(graph, layer) not in kinds:
        return f"no int8 kernel computes {kind_of(graph, node)} with {kind_of(graph, layer)}"
    if layer.op != "call_module" and kind_of(graph, layer) in (*WEIGHTED, "batch_norm"):
        return f"the weight of {operator_name(layer)} is not constant"
    if len(layer.users) != 1:
        return f"{operator_name(layer)} is also read before the activation"
    if kind_of(graph, node) == "clip":
        bounds = clip_bounds(graph, node)
        if bounds is None or bounds[0] != 0 or bounds[1] <= 0:
            return "only bounds from 0 to a positive constant can be a saturation"
    return None
