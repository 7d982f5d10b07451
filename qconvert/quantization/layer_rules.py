"""The rules of `quantization.layers`: which operators they match and what they ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TypeVar

from torch.fx import Node

from qconvert.errors import QConfigError, did_you_mean
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import computes_tensors, kind_of, module_of, operator_name
from qconvert.qconfig import (
    ActivationScheme,
    LayerRule,
    Precision,
    QuantizationSection,
    Section,
    WeightScheme,
)

Scheme = TypeVar("Scheme", bound=Section)


@dataclass(frozen=True)
class Asked:
    """What the qconfig asks for one operator; `rules` are the indices of the rules that matched,
    `precision_from` describes the rule that set the precision."""

    activations: ActivationScheme
    weights: WeightScheme
    precision: Precision = "auto"
    precision_from: str = ""
    rules: tuple[int, ...] = field(default=())
    own_activations: bool = False


def asked_for(model: FusedModel, section: QuantizationSection) -> dict[str, Asked]:
    """What is asked for every operator, by the name of its graph node.

    Rules are applied in order; each sets what it names and leaves the rest, so that the last one
    wins key by key. A glob matches an operator's name (with or without the `:2` of a second call)
    or the name of a module that holds it.

    Raises QConfigError when a rule matches nothing.
    """
    nodes = [node for node in model.graph.graph.nodes if computes_tensors(node)]
    asked = {node.name: Asked(section.activations, section.weights) for node in nodes}
    facts = []
    for i, rule in enumerate(section.layers):
        matched = [node for node in nodes if _matches(model, node, rule)]
        if not matched:
            facts.append(f"quantization.layers[{i}]: {described(rule)} matches no operator"
                         + _nearest(model, nodes, rule))  # fmt: skip
        for node in matched:
            asked[node.name] = _with_rule(asked[node.name], i, rule)
    if facts:
        raise QConfigError(facts, where="qconfig")
    return asked


def split_pairs(model: FusedModel, asked: Mapping[str, Asked]) -> frozenset[str]:
    """The layers whose activation the qconfig wants in float: they are held without it."""
    return frozenset(
        layer for layer, follower in model.pairs.items() if asked[follower].precision == "float32"
    )


def described(rule: LayerRule) -> str:
    """The rule's selector, as the qconfig writes it."""
    return f"match: {rule.match}" if rule.match is not None else f"type: {rule.type}"


def without_effect(
    section: QuantizationSection, asked: Mapping[str, Asked], effective: Iterable[str]
) -> tuple[str, ...]:
    """A line for each rule whose `activations` change nothing, given the nodes whose results are
    held with a range of their own."""
    effective = set(effective)
    used = {i for name, a in asked.items() if name in effective for i in a.rules}
    return tuple(
        f"quantization.layers[{i}]: the activations of {described(rule)} change nothing: what "
        "matches is float, returns float, or is held like its input"
        for i, rule in enumerate(section.layers)
        if rule.activations is not None and i not in used
    )


def _with_rule(before: Asked, index: int, rule: LayerRule) -> Asked:
    after = replace(before, rules=(*before.rules, index))
    if "precision" in rule.model_fields_set:
        after = replace(after, precision=rule.precision, precision_from=described(rule))
    if rule.activations is not None:
        merged = _merged(before.activations, rule.activations)
        after = replace(after, activations=merged, own_activations=True)
    if rule.weights is not None:
        after = replace(after, weights=_merged(before.weights, rule.weights))
    return after


def _merged(before: Scheme, after: Scheme) -> Scheme:
    return before.model_copy(update={k: getattr(after, k) for k in after.model_fields_set})


def _matches(model: FusedModel, node: Node, rule: LayerRule) -> bool:
    if rule.type is not None:
        return rule.type in _types(model, node)
    name, pattern = operator_name(node), rule.match or ""
    parts = name.partition(":")[0].split(".")
    owners = (".".join(parts[:i]) for i in range(1, len(parts) + 1))
    return fnmatchcase(name, pattern) or any(fnmatchcase(owner, pattern) for owner in owners)


def _types(model: FusedModel, node: Node) -> set[str]:
    names = {kind_of(model.graph, node)}
    if node.op == "call_module":
        bases = type(module_of(model.graph, node)).__mro__
        names |= {base.__name__ for base in bases} - {"Module", "object"}
    return names


def _nearest(model: FusedModel, nodes: list[Node], rule: LayerRule) -> str:
    if rule.match is not None:
        return did_you_mean(rule.match, [operator_name(node) for node in nodes])
    return did_you_mean(rule.type or "", sorted({t for n in nodes for t in _types(model, n)}))
