"""From an image file to the model's input, as torchvision's transforms do it."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from qconvert.errors import ImageError
from qconvert.qconfig import Preprocess


def decode(path: Path, channels: int) -> Image.Image:
    """Reads an image as grey (`channels` 1) or RGB (3).

    Raises ImageError naming the file when it is no image, truncated or unreasonably large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("L" if channels == 1 else "RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError("has too many pixels", where=str(path)) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        fact = f"cannot be read: {reason}" if reason else "is no image, or a damaged one"
        raise ImageError(fact, where=str(path), fix="repair or remove the file") from None


def load(path: Path, preprocess: Preprocess) -> Tensor:
    """Returns the model's input for one file: float32, (1, channels, height, width)."""
    image = decode(path, preprocess.channels)
    mode = InterpolationMode(preprocess.interpolation)
    if preprocess.resize is not None:
        size = preprocess.resize
        image = F.resize(image, [size] if isinstance(size, int) else list(size), mode)
    if preprocess.crop is not None:
        size = preprocess.crop
        image = F.center_crop(image, [size, size] if isinstance(size, int) else list(size))
    pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    return ((pixels - mean) / std).unsqueeze(0)
