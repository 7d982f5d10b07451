"""Pixels as int8 kernels read them: uint8 as it is, with the mean around it in integers."""

# TorchScript compiles it: sizes that a trace computes in tensors cost more than the copy.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.models.pixels import PixelShares
from qconvert.quantization.affine import quantize
from qconvert.quantization.plan import TensorParams


class Pixels(nn.Module):
    """A `PixelShares` without its arithmetic: uint8 (N, C, H, W) in, uint8 in channels-last memory
    out, larger by the padding, whose integers are those nearest to the means. `held` is how the
    plan holds the result. Without padding, an image in that memory is not copied."""

    __constants__ = ("left", "right", "top", "bottom", "alike", "integer")
    integers: Tensor

    def __init__(self, shares: PixelShares, held: TensorParams) -> None:
        super().__init__()
        self.left, self.right, self.top, self.bottom = shares.widths
        self.register_buffer("integers", quantize(shares.around, held.params).to(torch.uint8))
        self.integer = int(self.integers[0])
        self.alike = bool((self.integers == self.integer).all())

    def forward(self, pixels: Tensor) -> Tensor:
        """`F.pad` knows one integer for all channels. Others are joined to the image's sides: to
        fill the whole first takes five times as long (three channels at each place)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        widths = [self.left, self.right, self.top, self.bottom]
        if self.left + self.right + self.top + self.bottom == 0:
            return pixels
        if self.alike:
            return F.pad(pixels, widths, "constant", float(self.integer))
        batch, _, height, width = pixels.shape
        sides = [pixels]
        if self.left > 0:
            sides = [self._border(batch, height, self.left), pixels]
        if self.right > 0:
            sides = sides + [self._border(batch, height, self.right)]  # noqa: RUF005
        wide = torch.cat(sides, 3)
        width = width + self.left + self.right
        ends = [wide]
        if self.top > 0:
            ends = [self._border(batch, self.top, width), wide]
        if self.bottom > 0:
            ends = ends + [self._border(batch, self.bottom, width)]  # noqa: RUF005
        return torch.cat(ends, 2)

    def _border(self, batch: int, height: int, width: int) -> Tensor:
        whole = self.integers.expand(batch, -1, height, width)
        return whole.contiguous(memory_format=torch.channels_last)


def pixels_module(shares: PixelShares, held: TensorParams) -> nn.Module:
    """Compiled."""
    compiled: nn.Module = torchscript.script(Pixels(shares, held).eval())
    return compiled
