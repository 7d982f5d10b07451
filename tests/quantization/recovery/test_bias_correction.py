"""Corrections of biases, of layers whose errors are known."""

from __future__ import annotations

from math import inf

import pytest
import torch

from qconvert.quantization.recovery.bias_correction import correction
from qconvert.quantization.recovery.drawn import Drawn

MANY = 100_000


def test_mean_error_is_made_up_for() -> None:
    """Inputs with mean 2 and weights that are 0.1 too small: 0.2 for each of the three."""
    rows = torch.randn(1, MANY, 3) + 2
    weight = torch.tensor([[[1.0, -1.0, 0.5]]])
    found = Drawn(rows, rows @ weight.mT + 0.25)
    more = correction(found, weight - 0.1, torch.tensor([[0.25]]), -inf, inf)
    assert float(more) == pytest.approx(0.6, abs=0.01)


def test_what_is_clipped_anyway_does_not_count() -> None:
    """Half of the results are far above what holds them, and wrong by 5; the others by 0.3."""
    rows = torch.cat([torch.zeros(1, MANY // 2, 1), torch.ones(1, MANY // 2, 1)], 1)
    found = Drawn(rows, rows * 100 + 1)
    weight, bias = torch.tensor([[[95.3]]]), torch.tensor([[0.7]])
    more = correction(found, weight, bias, 0.0, 6.0)
    assert float(more) == pytest.approx(0.3, abs=0.001)
    both = correction(found, weight, bias, -inf, inf)
    assert float(both) == pytest.approx(2.65, abs=0.01)


def test_a_few_places_move_little() -> None:
    rows = torch.ones(1, 4, 1)
    more = correction(Drawn(rows, rows + 1), torch.ones(1, 1, 1), torch.zeros(1, 1), -inf, inf)
    assert 0 < float(more) < 0.2


def test_each_group_has_its_own() -> None:
    rows = torch.ones(2, MANY, 1)
    found = Drawn(rows, torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, None].expand(2, MANY, 2))
    more = correction(found, torch.zeros(2, 2, 1), torch.zeros(2, 2), -inf, inf)
    assert torch.allclose(more, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), atol=0.01)
