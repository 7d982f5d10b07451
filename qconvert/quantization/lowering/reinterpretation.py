"""The same bytes as another kind of tensor.

torch has int8 values as quint8 tensors, which carry their scale and zero point, and as plain uint8
tensors. Its own ways between the two copy (`int_repr` 0.4 ns an element). Here a new tensor is laid
over the memory of the old one: a microsecond, whatever the size. Who writes into one writes into
the other.

`set_` takes another tensor's memory from a contiguous tensor only, so it is given a part of no
elements, which always is. TorchScript compiles both functions: a trace would keep the sizes as
tensors, which costs more than a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qconvert import torchscript


def as_uint8(x: Tensor) -> Tensor:
    """The integers of a quint8 tensor, in its shape and layout."""
    result: Tensor = _compiled(_uint8)(x)
    return result


def as_quint8(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """A uint8 or quint8 tensor's integers under this scale and zero point."""
    result: Tensor = _compiled(_quint8)(x, scale, zero_point)
    return result


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Any]:
    return torchscript.script(function)


def _uint8(x: Tensor) -> Tensor:
    memory = x.as_strided([0], [1])
    empty = torch.empty([0], dtype=torch.uint8)
    return empty.set_(memory, 0, x.size(), x.stride())  # type: ignore[call-overload]


def _quint8(x: Tensor, scale: float, zero_point: int) -> Tensor:
    memory = x.as_strided([0], [1])
    empty = torch._empty_affine_quantized(
        [0], dtype=torch.quint8, scale=scale, zero_point=zero_point
    )
    return empty.set_(memory, 0, x.size(), x.stride())  # type: ignore[call-overload]
