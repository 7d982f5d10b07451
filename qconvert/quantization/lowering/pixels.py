"""Pixels as int8 kernels read them: uint8 as it is, with the mean around it in integers."""

# TorchScript compiles it: sizes that a trace computes in tensors cost more than the copy.

import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.models.pixels import PixelShares
from qconvert.quantization.affine import quantize
from qconvert.quantization.plan import TensorParams


class Pixels(nn.Module):
    """A `PixelShares` without its arithmetic: uint8 (N, C, H, W) in, uint8 in channels-last memory
    out, larger by the padding, whose integers are those nearest to the mean. `held` is how the plan
    holds the result. An image without padding is not copied where it is in that memory already."""

    __constants__ = ("left", "right", "top", "bottom")
    integers: Tensor

    def __init__(self, shares: PixelShares, held: TensorParams) -> None:
        super().__init__()
        self.left, self.right, self.top, self.bottom = shares.widths
        self.register_buffer("integers", quantize(shares.around, held.params).to(torch.uint8))

    def forward(self, pixels: Tensor) -> Tensor:
        """The result is filled piece by piece: `F.pad` knows one integer for all channels, and a
        fill of the whole takes ten times as long (three channels at each place)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        if self.left + self.right + self.top + self.bottom == 0:
            return pixels
        batch, channels, height, width = pixels.shape
        end, side = self.top + height, self.left + width
        size = [batch, channels, end + self.bottom, side + self.right]
        found = torch.empty(size, dtype=torch.uint8, memory_format=torch.channels_last)
        found[:, :, self.top : end, self.left : side] = pixels
        found[:, :, : self.top] = self.integers
        found[:, :, end:] = self.integers
        found[:, :, self.top : end, : self.left] = self.integers
        found[:, :, self.top : end, side:] = self.integers
        return found


def pixels_module(shares: PixelShares, held: TensorParams) -> torch.nn.Module:
    """Compiled."""
    compiled: nn.Module = torchscript.script(Pixels(shares, held).eval())
    return compiled
