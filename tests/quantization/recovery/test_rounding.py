"""Weights that are rounded together, against the best of all possibilities."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from qconvert.quantization.recovery.rounding import rounded_together

INPUTS = 6


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A row of weights, scale 1, and inputs of which all say nearly the same."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(400, INPUTS, generator=generator, dtype=torch.float64)
    rows = common + 0.5 * own + 0.5
    weight = 3 * torch.randn(1, 1, INPUTS, generator=generator, dtype=torch.float64)
    return weight, rows, (rows.T @ rows / len(rows))[None]


def together(weight: Tensor, squares: Tensor, bound: float = 127) -> Tensor:
    one = torch.ones(weight.shape[:2], dtype=torch.float64)
    return rounded_together(weight, squares, one, -bound * one, bound * one)


def power(weight: Tensor, integers: Tensor, rows: Tensor) -> float:
    """Of the error of the result."""
    return float((rows @ (weight - integers)[0, 0]).square().mean())


def test_comes_near_the_best_of_all_roundings() -> None:
    """Up or down, for each of six weights: 64 possibilities."""
    found, nearest, best = [], [], []
    for seed in range(40):
        weight, rows, squares = problem(seed)
        floor = weight.floor()
        ways = [torch.tensor(way, dtype=torch.float64) for way in product((0, 1), repeat=INPUTS)]
        best.append(min(power(weight, floor + way, rows) for way in ways))
        nearest.append(power(weight, weight.round(), rows))
        found.append(power(weight, together(weight, squares), rows))
    excess, of_nearest = (sum(side) / sum(best) for side in (found, nearest))
    assert of_nearest > 2
    assert excess < 1.35


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    weight = 3 * torch.randn(1, 5, 30, dtype=torch.float64)
    squares = torch.diag(torch.rand(30, dtype=torch.float64) + 0.1)[None]
    assert torch.equal(together(weight, squares), weight.round())


def test_integers_stay_in_their_range() -> None:
    weight, _, squares = problem(0)
    assert together(100 * weight, squares, bound=7).abs().max() == 7


@pytest.mark.parametrize("inputs", [127, 300])
def test_blocks_change_nothing(inputs: int) -> None:
    """Errors reach the inputs of later blocks: as in one pass over all, written down plainly."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2000, inputs, generator=generator, dtype=torch.float64).cumsum(1)
    squares = (rows.T @ rows / len(rows))[None]
    weight = 5 * torch.randn(1, 3, inputs, generator=generator, dtype=torch.float64)
    damped = squares[0] + 0.01 * squares[0].diagonal().mean() * torch.eye(inputs)
    left, integers = weight[0].clone(), torch.zeros(3, inputs, dtype=torch.float64)
    open_ = list(range(inputs))
    for i in squares[0].diagonal().argsort(descending=True).tolist():
        inverse = torch.linalg.inv(damped[open_][:, open_])
        at = open_.index(i)
        integers[:, i] = left[:, i].round().clamp(-127, 127)
        error = (left[:, i] - integers[:, i]) / inverse[at, at]
        left[:, open_] -= error[:, None] * inverse[at]
        open_.remove(i)
    assert torch.equal(together(weight, squares)[0], integers)
