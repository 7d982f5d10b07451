"""Weights that are rounded together instead of one by one, so that their errors cancel on the
inputs which a layer really reads.

One input after the other is rounded; what it is off by is shifted to those that are not rounded
yet, as far as the inputs go together. This is GPTQ (Frantar et al. 2022, arXiv:2210.17323), after
the optimal brain surgeon (Hassibi and Stork 1993). The inputs are those of the int8 model, not
centred, so that a layer's mean is kept, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of the inputs' mean power: what is added to each, so that inputs which say the same stay apart.
_DAMPING = 0.01
_BLOCK = 128


def rounded_together(
    weight: Tensor, squares: Tensor, scales: Tensor, lowest: Tensor, highest: Tensor
) -> Tensor:
    """Integers (g, o, k; float64, zero point 0) from `lowest` to `highest` for weights (g, o, k)
    with scales, all three (g, o), whose error has the least power, as nearly as one pass finds it,
    on inputs whose mean products are `squares` (g, k, k).

    The inputs of the largest power are rounded first: what they are off by has the most others to
    go to.
    """
    power = squares.diagonal(dim1=1, dim2=2)
    damping = _DAMPING * power.mean(1).clamp(min=1e-12)
    squares = squares + damping[:, None, None] * torch.eye(squares.shape[1], dtype=squares.dtype)
    order = power.argsort(dim=1, descending=True)
    squares = squares.gather(1, order[:, :, None].expand_as(squares))
    squares = squares.gather(2, order[:, None, :].expand_as(squares))
    places = order[:, None, :].expand_as(weight)
    left, integers = weight.gather(2, places), torch.zeros_like(weight)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weight.shape[2], _BLOCK):
        end = min(start + _BLOCK, weight.shape[2])
        errors = torch.zeros_like(left[:, :, start:end])
        for i in range(start, end):
            value = left[:, :, i]
            integer = (value / scales).round().clamp(lowest, highest)
            error = (value - integer * scales) / upper[:, i, i, None]
            integers[:, :, i], errors[:, :, i - start] = integer, error
            left[:, :, i + 1 : end] -= error[:, :, None] * upper[:, i, None, i + 1 : end]
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
    return torch.zeros_like(integers).scatter(2, places, integers)
