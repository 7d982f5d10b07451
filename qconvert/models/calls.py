"""How modules are called, and copied: what the parts of a divided model share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from qconvert.errors import UnsupportedError


@dataclass(frozen=True)
class Call:
    """A call of a module: its arguments by name, and which of them were given by position."""

    named: dict[str, Any]
    positional: int

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Arguments of a `*args` are named after it, with their number."""
        signature = inspect.signature(module.forward)
        names = list(signature.parameters)
        last = signature.parameters[names[-1]] if names else None
        many = names.pop() if last and last.kind is inspect.Parameter.VAR_POSITIONAL else ""
        named = {
            names[i] if i < len(names) else f"{many}_{i - len(names)}": value
            for i, value in enumerate(args)
        }
        return cls({**named, **kwargs}, len(args))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the arguments, in order."""
        found = pytree.tree_leaves(list(self.named.values()))
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))

    @property
    def form(self) -> str:
        """Equal for calls that differ in the tensors alone."""
        return str(pytree.tree_map_only(Tensor, lambda x: "tensor", self.named))

    def in_order_of(self, other: Call) -> Call:
        """The arguments that another call of the module has, in its order."""
        named = {name: _in_order(self.named[name], value) for name, value in other.named.items()}
        return Call(named, other.positional)

    def with_tensors(self, tensors: Sequence[Any]) -> Call:
        """The same call of other tensors."""
        given = iter(tensors)
        named = pytree.tree_map_only(Tensor, lambda _: next(given), self.named)
        return Call(named, self.positional)

    def split(self) -> tuple[list[Any], dict[str, Any]]:
        """The arguments by position, and those by name."""
        items = list(self.named.items())
        return [value for _, value in items[: self.positional]], dict(items[self.positional :])


def _in_order(value: Any, other: Any) -> Any:
    """A value with the keys of its dicts in the order of another's."""
    if isinstance(value, Mapping) and isinstance(other, Mapping) and value.keys() == other.keys():
        return {key: _in_order(value[key], item) for key, item in other.items()}
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        found = [_in_order(x, y) for x, y in zip(value, other, strict=False)]
        if len(found) == len(value) and not hasattr(value, "_fields"):
            return type(value)(found)
    return value


def is_in(path: str, owner: str) -> bool:
    """Whether a module is below another, by their paths."""
    return not owner or path.startswith(f"{owner}.")


def is_plain(value: Any) -> bool:
    """Whether a value is of tensors, numbers and text, in tuples, lists and dicts: what TorchScript
    can hand from one module to another."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (Tensor, bool, int, float, str))


def not_tensors(value: Any) -> list[str]:
    """The types of what is no tensor in tuples, lists and dicts of tensors."""
    if isinstance(value, (tuple, list)):
        return [name for item in value for name in not_tensors(item)]
    if isinstance(value, Mapping):
        return [name for item in value.values() for name in not_tensors(item)]
    return [] if isinstance(value, Tensor) else [type(value).__name__]


def same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are equal, NaN where NaN is."""
    return x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())


def copied(module: nn.Module) -> nn.Module:
    """A copy whose weights are plain tensors: parametrizations are computed once.

    Raises UnsupportedError when the module cannot be copied.
    """
    try:
        module = copy.deepcopy(module)
        for owner in list(module.modules()):
            for hook in list(owner._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(owner, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(owner, hook.name)
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


def sharing(module: nn.Module) -> nn.Module:
    """A copy that shares its tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
