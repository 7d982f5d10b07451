"""Fake quantization and its gradients, against torch's own kernels."""

from __future__ import annotations

import pytest
import torch

from qconvert.quantization.fake_quantization import FakeQuantizedChannels, FakeQuantizedTensor

SCALES = [(0.1, 0), (0.0371, 117), (3.0, 255), (1e-4, 128)]


def values(scale: float) -> torch.Tensor:
    """Inside and outside of the range."""
    torch.manual_seed(0)
    return torch.randn(4, 6, 9, 5) * scale * 120


def values_and_ties(scale: float) -> torch.Tensor:
    """Some are exactly between two steps."""
    x = values(scale)
    ties = (torch.randint(-300, 300, x.shape) + 0.5) * scale
    return torch.where(torch.rand(x.shape) < 0.2, ties, x)


@pytest.mark.parametrize(("scale", "zero_point"), SCALES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_rounds_as_torch_bit_by_bit(scale: float, zero_point: int, memory) -> None:
    x = values_and_ties(scale).contiguous(memory_format=memory)
    found = FakeQuantizedTensor.apply(
        x, torch.tensor(scale), torch.tensor(float(zero_point)), 0, 255
    )
    scale = float(torch.tensor(scale))
    assert torch.equal(found, torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255))


@pytest.mark.parametrize(("scale", "zero_point"), SCALES)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_those_of_lsq(scale: float, zero_point: int, memory) -> None:
    x = values(scale).contiguous(memory_format=memory)
    grad = torch.randn(x.shape)
    results = []
    for function, shape in (
        (FakeQuantizedTensor.apply, ()),
        (torch._fake_quantize_learnable_per_tensor_affine, (1,)),
    ):
        leaves = [
            x.clone().requires_grad_(),
            torch.full(shape, scale).requires_grad_(),
            torch.full(shape, float(zero_point)).requires_grad_(),
        ]
        function(*leaves, 0, 255).backward(grad)
        results.append([leaf.grad for leaf in leaves])
    (of_x, of_scale, of_zero), (x_want, scale_want, zero_want) = results
    assert torch.equal(of_x, x_want)
    assert float(of_scale) == pytest.approx(float(scale_want), rel=1e-3)
    assert float(of_zero) == pytest.approx(float(zero_want), rel=1e-3, abs=scale * 1e-3)


def test_each_channel_has_its_own_scale() -> None:
    scales = torch.tensor([0.01, 0.3, 0.002, 1.0])
    x = values(1.0) * scales.view(4, 1, 1, 1)
    grad = torch.randn(x.shape)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    own, other = scales.clone().requires_grad_(), scales.clone().requires_grad_()
    zeros = torch.zeros(4)
    found = FakeQuantizedChannels.apply(mine, own, zeros.int(), -127, 127)
    want = torch._fake_quantize_learnable_per_channel_affine(theirs, other, zeros, 0, -127, 127)
    assert torch.equal(found, want)
    found.backward(grad)
    want.backward(grad)
    assert torch.equal(mine.grad, theirs.grad)
    assert torch.allclose(own.grad, other.grad, rtol=1e-3)


def test_one_scale_for_all_channels() -> None:
    """The gradients of the channels add up."""
    x, scale = values(1.0), torch.tensor([0.5])
    grad = torch.randn(x.shape)
    one, each = scale.clone().requires_grad_(), scale.expand(4).clone().requires_grad_()
    for scales in (one, each):
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        FakeQuantizedChannels.apply(x, scales, zeros, -127, 127).backward(grad)
    assert float(one.grad) == pytest.approx(float(each.grad.sum()), rel=1e-4)
