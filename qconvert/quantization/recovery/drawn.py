"""What a layer reads and should return at places drawn from all images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert.quantization.rules import padding


class Drawn(NamedTuple):
    """At n places: `rows` (g, n, k), the k inputs of each of g groups of a convolution (one of a
    linear layer), in the order of the weight's; `wanted` (g, n, o), the float layer's results
    before any activation."""

    rows: Tensor
    wanted: Tensor


def drawn(
    module: Any, inputs: Sequence[Tensor], targets: Sequence[Tensor], places: int
) -> Drawn | None:
    """Of a Conv2d or Linear, at about so many places, the same number of each image; None for other
    layers. The same places whenever it is asked."""
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return None
    of_image = _of_linear if isinstance(module, nn.Linear) else _of_convolution
    each = -(-places // len(inputs))
    parts = [
        of_image(module, x, y, each, i)
        for i, (x, y) in enumerate(zip(inputs, targets, strict=True))
    ]
    rows, wanted = (torch.cat(side, 1) for side in zip(*parts, strict=True))
    return Drawn(rows, wanted)


def _of_linear(module: Any, x: Tensor, y: Tensor, count: int, image: int) -> tuple[Tensor, Tensor]:
    rows, wanted = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    chosen = _places(len(rows), count, image)
    return rows[chosen][None], wanted[chosen][None]


def _of_convolution(
    module: Any, x: Tensor, y: Tensor, count: int, image: int
) -> tuple[Tensor, Tensor]:
    pad_y, pad_x = padding(module) or (0, 0)
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)).transpose(0, 1)
    batch, _, height, width = y.shape
    chosen = _places(batch * height * width, count, image)
    of, top, left = (
        chosen // (height * width),
        chosen // width % height * module.stride[0],
        chosen % width * module.stride[1],
    )
    at_y, at_x = (
        start[:, None] + torch.arange(size) * dilation
        for start, size, dilation in zip(
            (top, left), module.kernel_size, module.dilation, strict=True
        )
    )
    # (channels, n, height and width of the filter)
    patches = padded[:, of[:, None, None], at_y[:, :, None], at_x[:, None, :]]
    patches = patches.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(2)
    wanted = y.transpose(0, 1).flatten(1)[:, chosen]
    return patches, wanted.unflatten(0, (module.groups, -1)).transpose(1, 2)


def _places(total: int, count: int, image: int) -> Tensor:
    if total <= count:
        return torch.arange(total)
    seed = int.from_bytes(hashlib.sha256(f"{total} {image}".encode()).digest()[:4], "little")
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
