"""A file is tried at another size than it was traced at, if the float model works there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.images.preprocess import Inputs
from qconvert.quantization.lowering.other_size import try_other_size, why_not_at

EXAMPLE = (torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0)),)
SMALL = (EXAMPLE[0][:, :, :4, :3],)
WEIGHT = torch.rand(3 * 8 * 6, 5, generator=torch.Generator().manual_seed(1))
Function = Callable[..., Tensor]


class Computes(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def traced(function: Function, example: Inputs = EXAMPLE) -> torch.jit.ScriptModule:
    return torchscript.freeze(torchscript.trace(Computes(function), example))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def rows(x: Tensor) -> Tensor:
    """Of a fixed height."""
    if x.shape[2] != 8:
        raise ValueError("lines are 8 pixels high")
    return x.mean(3).flatten(1)


def flat(x: Tensor) -> Tensor:
    """Of one size alone."""
    return x.flatten(1) @ WEIGHT


def at_8_x_6(x: Tensor) -> Tensor:
    """Right where it was traced; elsewhere it adds up as if there were 48 pixels."""
    return x.sum((2, 3)) / 48


@pytest.mark.parametrize(
    ("function", "shape"), [(pooled, [1, 3, 72, 38]), (rows, [1, 3, 8, 38])], ids=["both", "width"]
)
def test_larger_image_that_the_model_accepts_is_tried(function: Function, shape: list[int]) -> None:
    tried = try_other_size(function, function, traced(function), EXAMPLE)
    assert tried.record() == {"shape": shape, "why_not": None}
    assert list(tried.inputs[0].shape) == shape
    assert 0 <= float(tried.inputs[0].min()) < float(tried.inputs[0].max()) <= 1


@pytest.mark.parametrize(
    ("function", "example"),
    [(flat, EXAMPLE), (torch.add, EXAMPLE * 2), (torch.relu, (torch.ones(1, 7),))],
    ids=["one size", "two inputs", "no image"],
)
def test_nothing_is_tried_where_no_other_size_is_known(function: Function, example: Inputs) -> None:
    assert try_other_size(function, function, traced(function, example), example) is None


def test_file_that_is_bound_to_its_size_says_why() -> None:
    tried = try_other_size(pooled, pooled, traced(at_8_x_6), EXAMPLE)
    assert "differs from the model in memory by 56 of its output" in (tried.why_not or "")


@pytest.mark.parametrize(
    ("function", "inputs", "reason"),
    [
        (pooled, SMALL, None),
        (at_8_x_6, EXAMPLE, None),
        (at_8_x_6, SMALL, "differs from the model in memory by 0.75 of its output"),
        (flat, SMALL, "mat1 and mat2 shapes cannot be multiplied (1x36 and 144x5)"),
        (lambda x: x, SMALL, "gives shape [1, 3, 4, 3], in memory it is [1, 3]"),
    ],
    ids=["any size", "own size", "other values", "fails", "other shape"],
)
def test_reason_why_a_traced_module_is_not_right_at_a_size(
    function: Function, inputs: Inputs, reason: str | None
) -> None:
    found = why_not_at(traced(function), pooled, inputs)
    assert found is None if reason is None else reason in found
