"""A model that takes the pixels of images as uint8, and normalizes them inside."""

# No `from __future__ import annotations`: TorchScript reads those of a model whose code is kept.

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where a `PixelInput` holds the user's model: people know its modules without this path.
INNER = "float_model"


def known_path(path: str) -> str:
    """A module's path as people know it, without that of the user's model in a `PixelInput`.

    >>> known_path("float_model.layer1.0.conv1"), known_path("layer1"), known_path("float_model")
    ('layer1.0.conv1', 'layer1', '')
    """
    return path.removeprefix(INNER).lstrip(".") if _is_inner(path) else path


def inner_path(path: str) -> str:
    """Where a `PixelInput` has a module of the user's model.

    >>> inner_path("layer1"), inner_path("")
    ('float_model.layer1', 'float_model')
    """
    return f"{INNER}.{path}".rstrip(".")


def _is_inner(path: str) -> bool:
    return path == INNER or path.startswith(f"{INNER}.")


class Normalization(nn.Module):
    """Pixels, uint8 (N, C, H, W), to what the model was trained on: float32 of the same shape,
    `(pixel / 255 - mean) / std`, computed as `images.preprocess` does. `mean` and `std` have a
    value, or one for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized."""
        return (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std


class PixelInput(nn.Module):
    """The user's model behind its normalization: takes uint8 (N, C, H, W)."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalization = Normalization(mean, std)
        self.float_model = model  # see INNER
        self.eval()

    def forward(self, pixels: Tensor):  # type: ignore[no-untyped-def]
        """What the model returns; TorchScript finds out what that is, if the code is kept."""
        return self.float_model(self.normalization(pixels))


class PixelShares(nn.Module):
    """Pixels, uint8 (N, C, H, W), as float32 shares of 255 above or below the pixel `zero`, with
    the means of the channels around them: what zeros around normalized pixels were before the
    normalization.

    `mean` has a value for each channel, `widths` are those of the padding: left, right, top,
    bottom. int8 kernels take the pixels themselves: see `quantization.lowering.pixels`.
    """

    around: Tensor

    def __init__(self, mean: Tensor, widths: Sequence[int] = (0, 0, 0, 0)) -> None:
        super().__init__()
        self.zero = nearest_pixel(mean)
        self.register_buffer("around", (mean.double() - self.zero / 255).float().view(-1, 1, 1))
        self.widths = list(widths)

    def forward(self, pixels: Tensor) -> Tensor:
        """Larger than the image by `widths`."""
        shares = (pixels.to(self.around.dtype) - self.zero) / 255
        if not any(self.widths):
            return shares
        return F.pad(shares - self.around, self.widths) + self.around


def nearest_pixel(mean: Tensor) -> int:
    """The pixel nearest to the mean of all channels.

    What a rounded weight computes wrongly grows with its input: the middle of the pixels as zero
    keeps the error as small as with normalized pixels (TextLine, whose paper is white: 43.7 dB, and
    42.8 with black as zero).

    >>> nearest_pixel(torch.tensor([0.485, 0.456, 0.406]))
    114
    """
    return round(min(max(float(mean.double().mean()), 0.0), 1.0) * 255)
