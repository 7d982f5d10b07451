"""Which blocks of a model resist int8, what they cost, and what change of architecture would help.

What is advised must be what the rules and kernels really do: `rules.py`, `units.py`,
docs/operators.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qconvert.quantization.forecast import Forecast, Operator
from qconvert.quantization.topics import FOLLOWS, KEPT, SQUEEZE, Topic, kept_advice, topic_of
from qconvert.records import Record

# Classes that hold modules and compute nothing of their own: no names for a block.
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "Module", "")
_AVERAGES = ("mean", "adaptive_avg_pool2d", "avg_pool2d")
_GATES = ("sigmoid", "hardsigmoid", "Sigmoid", "Hardsigmoid")


class Block(Record):
    """Blocks of one class that resist for one reason.

    `paths` are all of them, `pattern` is one name for them, `operators` the kinds in float in one
    of them. Shares are of the model's multiply-accumulates and of its estimated time, boundaries
    included.
    """

    topic: str
    pattern: str
    block: str
    paths: tuple[str, ...]
    operators: tuple[str, ...]
    reasons: tuple[str, ...]
    macs_share: float
    time_share: float
    advice: str


@dataclass(frozen=True)
class _Resisting:
    operator: Operator
    path: str
    topic: Topic


def resisting_blocks(
    forecast: Forecast,
    class_of: Callable[[str], str],
    kept: Sequence[tuple[str, str]] = (),
) -> tuple[Block, ...]:
    """Blocks with operators in float, the most expensive first.

    `class_of` gives the class name of the module at a path, `kept` are paths and reasons of modules
    that are computed as they are written.
    """
    in_float = [o for o in forecast.operators if o.precision == "float32" and not o.kept]
    squeezing = _squeezing(in_float, class_of)
    groups: dict[tuple[str, str], list[_Resisting]] = {}
    for operator in in_float:
        path = _block_path(operator, class_of)
        topic = SQUEEZE if path in squeezing else topic_of(operator)
        if topic is None:
            continue
        found = _Resisting(operator, path, topic)
        groups.setdefault((topic.name, class_of(path)), []).append(found)
    blocks = [_block(forecast, name, members) for (_, name), members in groups.items()]
    blocks.sort(key=lambda b: (b.topic == FOLLOWS.name, -b.time_share))
    return (*_kept_blocks(forecast, class_of, kept), *blocks)


def _block(forecast: Forecast, name: str, members: Sequence[_Resisting]) -> Block:
    operators = [member.operator for member in members]
    time, macs = forecast.microseconds, forecast.macs()
    spent = sum(o.microseconds + o.boundary_microseconds for o in operators)
    paths = tuple(dict.fromkeys(member.path for member in members))
    topic = members[0].topic
    return Block(
        topic=topic.name,
        pattern=pattern_of(paths),
        block=name,
        paths=paths,
        operators=tuple(dict.fromkeys(o.kind for o in operators)),
        reasons=tuple(dict.fromkeys(_without_names(o) for o in operators)),
        macs_share=sum(o.macs for o in operators) / macs if macs else 0.0,
        time_share=spent / time if time else 0.0,
        advice=topic.advice,
    )


def _kept_blocks(
    forecast: Forecast, class_of: Callable[[str], str], kept: Sequence[tuple[str, str]]
) -> Iterable[Block]:
    macs, time = forecast.macs(), forecast.microseconds
    work = {code.path: code.macs for code in forecast.kept_code}
    for path, reason in kept:
        inside = [o for o in forecast.operators if o.kept and o.name.partition(":")[0] == path]
        spent = sum(o.microseconds + o.boundary_microseconds for o in inside)
        yield Block(
            topic=KEPT.name,
            pattern=path or "the model",
            block=class_of(path),
            paths=(path,),
            operators=tuple(dict.fromkeys(o.kind for o in inside)),
            reasons=(reason,),
            macs_share=work.get(path, 0) / macs if macs else 0.0,
            time_share=spent / time if time else 0.0,
            advice=kept_advice(path, reason),
        )


def _without_names(operator: Operator) -> str:
    """One reason for all operators that have it, whatever their inputs are called."""
    reason = operator.reason or ""
    reason = re.sub(r"^its input .* is float", "an input of it is float", reason)
    return re.sub(r" \(.* microseconds.*\)$", "", reason)


def _block_path(operator: Operator, class_of: Callable[[str], str]) -> str:
    """The nearest module around an operator that has a class of its own; else its own module."""
    name = operator.name.partition(":")[0]
    path = name.rpartition(".")[0]
    while path:
        if class_of(path) not in _CONTAINERS:
            return path
        path = path.rpartition(".")[0]
    return name if class_of(name) else ""


def _squeezing(operators: Sequence[Operator], class_of: Callable[[str], str]) -> set[str]:
    """The blocks that average a map, and multiply it by a gate made of the averages."""
    kinds: dict[str, set[str]] = {}
    for operator in operators:
        kinds.setdefault(_block_path(operator, class_of), set()).add(operator.kind)
    return {
        path
        for path, found in kinds.items()
        if path and "mul" in found and found.intersection(_AVERAGES) and found.intersection(_GATES)
    }


def pattern_of(paths: Sequence[str]) -> str:
    """One name for several paths: `*` where they differ.

    >>> pattern_of(["features.4.block.2", "features.5.block.2"])
    'features.*.block.2'
    >>> pattern_of(["layer1.0", "layer2.0.x", "head"])
    'layer1.0, …'
    """
    if len(paths) == 1:
        return paths[0] or "the model"
    parts = [path.split(".") for path in paths]
    if len({len(part) for part in parts}) == 1 and len({part[0] for part in parts}) == 1:
        columns = zip(*parts, strict=True)
        return ".".join(c[0] if len(set(c)) == 1 else "*" for c in columns)
    prefix = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        prefix.append(column[0])
    return ".".join([*prefix, "*"]) if prefix else f"{paths[0] or 'the model'}, …"
