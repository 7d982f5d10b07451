"""How modules are called, and copied: what the parts of a divided model share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
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
        return Call({name: self.named[name] for name in other.named}, other.positional)

    def with_tensors(self, tensors: Sequence[Any]) -> Call:
        """The same call of other tensors."""
        given = iter(tensors)
        named = pytree.tree_map_only(Tensor, lambda _: next(given), self.named)
        return Call(named, self.positional)

    def split(self) -> tuple[list[Any], dict[str, Any]]:
        """The arguments by position, and those by name."""
        items = list(self.named.items())
        return [value for _, value in items[: self.positional]], dict(items[self.positional :])


def is_plain(value: Any) -> bool:
    """Whether a value is of tensors, numbers and text, in tuples, lists and dicts: what TorchScript
    can hand from one module to another."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (Tensor, bool, int, float, str))


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


def sharing(module: nn.Module) -> nn.Module:
    """A copy that shares its tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
