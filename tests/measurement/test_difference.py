"""How far outputs are from those that they should equal, each as a share of its own largest."""

from __future__ import annotations

import math

import pytest
import torch

from qconvert.measurement.difference import relative_difference

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("want", "have", "expected"),
    [
        ({"a": [1, -4]}, {"a": [1, -4]}, 0),
        ({"a": [1, -4]}, {"a": [2, -4]}, 0.25),
        ({"a": [1, -4]}, {"a": [1, -4.5]}, 0.125),
        # A small output beside a large one is judged by its own size.
        ({"a": [100, 50], "b": [0.5]}, {"a": [99, 50], "b": [0.25]}, 0.5),
        ({"a": [100, 50], "b": [0.5]}, {"a": [90, 50], "b": [0.5]}, 0.1),
        ({"a": [0, 0]}, {"a": [0, 0]}, 0),
        ({"a": []}, {"a": []}, 0),
        ({}, {}, 0),
        ({"a": [NAN]}, {"a": [NAN]}, INF),
        ({"a": [1, 2]}, {"a": [1, NAN]}, INF),
        ({"a": [1, 2], "b": [3]}, {"a": [1, NAN], "b": [3]}, INF),
        ({"a": [1, 2]}, {"a": [1, INF]}, INF),
        ({"a": [1]}, {"b": [1]}, INF),
        ({"a": [1]}, {"a": [1], "b": [1]}, INF),
        ({"a": [1], "b": [1]}, {"a": [1]}, INF),
        ({"a": [1]}, {"a": [1, 1]}, INF),
        ({"a": [[1, 2]]}, {"a": [[1], [2]]}, INF),
    ],
)
def test_difference_by_hand(want: dict, have: dict, expected: float) -> None:
    found = relative_difference(*({k: torch.tensor(v) for k, v in d.items()} for d in (want, have)))
    assert found == pytest.approx(expected)


def test_output_of_zeros_may_not_become_anything_else() -> None:
    assert relative_difference({"a": torch.zeros(2)}, {"a": torch.full((2,), 1e-9)}) > 100


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.float64])
def test_outputs_of_every_type_are_compared(dtype: torch.dtype) -> None:
    want, have = torch.tensor([0, 1]), torch.tensor([1, 1])
    assert relative_difference({"a": want.to(dtype)}, {"a": have.to(dtype)}) == 1
    assert relative_difference({"a": want.to(dtype)}, {"a": want.to(dtype)}) == 0
