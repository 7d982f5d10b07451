"""int8 tensors that are shown as another kind of tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.quantization.lowering.reinterpretation import as_quint8, as_uint8

SCALE, ZERO_POINT = 0.05, 100


def quint8(*shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.quantize_per_tensor(x, SCALE, ZERO_POINT, torch.quint8)


VIEWS: list[Callable[[], Tensor]] = [
    lambda: quint8(2, 3, 4, 5),
    lambda: quint8(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    lambda: quint8(2, 7),
    lambda: quint8(2, 8, 4, 5)[:, 2:5],
    lambda: quint8(2, 3, 4, 5).permute(0, 2, 3, 1),
    lambda: quint8(0, 3, 4, 5),
]


@pytest.mark.parametrize("view", VIEWS)
def test_there_and_back_is_the_same_in_the_same_memory(view: Callable[[], Tensor]) -> None:
    x = view()
    integers = as_uint8(x)
    assert integers.dtype == torch.uint8
    assert torch.equal(integers, x.int_repr())
    back = as_quint8(integers, SCALE, ZERO_POINT)
    assert torch.equal(back.dequantize(), x.dequantize())
    for shown in (integers, back):
        assert (shown.stride(), shown.data_ptr()) == (x.stride(), x.data_ptr())


class Negative(nn.Module):
    """Two values that are made one after the other of one operator."""

    def forward(self, x: Tensor) -> Tensor:
        held = torch.quantize_per_tensor(x, SCALE, ZERO_POINT, torch.quint8)
        mirrored = 200 - as_uint8(held)
        return as_quint8(mirrored, SCALE, ZERO_POINT).dequantize() + held.dequantize()


def test_a_file_keeps_the_memory_as_long_as_it_is_read() -> None:
    """Also where another thing is computed in what has become free; at any batch size."""
    example = torch.zeros(1, 3, 4, 5)
    script = torchscript.freeze(torchscript.trace(Negative(), [example]))
    loaded = torchscript.load(torchscript.to_bytes(script))
    for batch in (1, 3):
        x = torch.randn(batch, 3, 4, 5).clamp(-4, 4)
        for _ in range(3):
            assert loaded(x).abs().max() < 1e-6
