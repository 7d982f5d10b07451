"""What a model returns: its tensors by name, and the one that is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from qconvert.errors import ModelOutputError, did_you_mean

# The name of a model's only output, when it returns a plain tensor.
ONLY = "output"
# How far from 1 the length of an embedding's rows may be.
_UNIT = 1e-3


def tensors(value: Any) -> dict[str, Tensor]:
    """The tensors of a model's result by name: the place in a tuple or list, the key of a mapping,
    joined by dots where these are nested.

    Raises ModelOutputError for what TorchScript cannot return from a traced model.

    >>> x = Tensor([1])
    >>> list(tensors({"out": x, "aux": (x, x)}))
    ['out', 'aux.0', 'aux.1']
    """
    if isinstance(value, Tensor):
        return {ONLY: value}
    found: dict[str, Tensor] = {}
    _collect(value, "", found)
    if not found:
        raise ModelOutputError("the model returns no tensor", where="model.source")
    return found


def _collect(value: Any, name: str, found: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        if name in found:
            raise ModelOutputError(f"two outputs have the name {name!r}", where="model.source")
        found[name] = value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _collect(item, f"{name}.{key}".lstrip("."), found)
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            _collect(item, f"{name}.{i}".lstrip("."), found)
    else:
        what = "its result" if not name else f"output {name!r}"
        raise ModelOutputError(
            f"{what} is {type(value).__name__}, no tensor, which TorchScript cannot return",
            where="model.source",
        )


def choose(found: Mapping[str, Tensor], wanted: str | None) -> str:
    """The name of the output that is measured: `wanted`, or the first that holds numbers.

    Raises ModelOutputError when there is no such output.
    """
    floats = [name for name, value in found.items() if value.is_floating_point()]
    if wanted is None and floats:
        return floats[0]
    if wanted in floats:
        return str(wanted)
    if wanted is None:
        raise ModelOutputError("the model returns no float tensor", where="model.source")
    hint = did_you_mean(wanted, floats)
    raise ModelOutputError(
        f"the model has no output {wanted!r}{hint}",
        where="model.output",
        fix="leave it out: the model has one output"
        if floats == [ONLY]
        else f"choose one of {', '.join(floats)}",
    )


def only(model: Callable[..., Any], name: str) -> Callable[..., Tensor]:
    """The model with one of its outputs, named as by `tensors`."""

    def run(*inputs: Tensor) -> Tensor:
        return tensors(model(*inputs))[name]

    return run


def are_answers(output: Tensor, asked: str) -> bool:
    """Whether the largest value along axis 1 is an answer: (N, classes) or (N, classes, H, W).

    `asked` is `model.answers`. With `auto`, rows of unit length are an embedding, unless they are
    shares that add up to 1: those of a model that is very sure have unit length, too.

    Raises ModelOutputError when classes are asked for and the shape holds none.
    """
    shaped = output.dim() in (2, 4) and output.shape[1] > 1
    if asked == "classes" and not shaped:
        raise ModelOutputError(
            f"the output has shape {list(output.shape)}, which holds no classes along axis 1",
            where="model.answers",
            fix="write `answers: none`, or choose another output with `model.output`",
        )
    if asked != "auto" or not shaped:
        return shaped and asked != "none"
    rows = output.double()
    lengths, sums = rows.square().sum(1).sqrt(), rows.sum(1)
    unit = bool(((lengths - 1).abs() <= _UNIT).all())
    shares = bool((rows >= 0).all() and ((sums - 1).abs() <= _UNIT).all())
    return output.dim() == 4 or not unit or shares
