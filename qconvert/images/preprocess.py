"""From an image file to the model's input, as torchvision's transforms do it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from qconvert.errors import ImageError
from qconvert.qconfig import Preprocess

# A file that claims more is taken for an attack or a mistake, as Pillow's own limit does.
MOST_PIXELS = 89_478_485


def decode(path: Path, channels: int) -> Image.Image:
    """Reads an image as grey (`channels` 1) or RGB (3).

    Raises ImageError naming the file when it is no image, truncated or unreasonably large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            if image.mode.startswith(("I", "F")):
                raise ImageError(
                    "has more than 8 bits a channel, which this version does not read",
                    where=str(path),
                    fix="save it with 8 bits",
                )
            return image.convert("L" if channels == 1 else "RGB")
    except Image.DecompressionBombError:
        raise ImageError(
            f"has more than {MOST_PIXELS:,} pixels",
            where=str(path),
            fix="shrink or remove the file",
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        fact = f"cannot be read: {reason}" if reason else "is no image, or a damaged one"
        raise ImageError(fact, where=str(path), fix="repair or remove the file") from None


def size_after(size: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """Height and width of the model's input for an image of this width and height.

    >>> size_after((640, 480), Preprocess(resize=240))
    (240, 320)
    """
    width, height = size
    resize, crop = preprocess.resize, preprocess.crop
    if isinstance(resize, int):
        short, long = sorted((width, height))
        long = int(resize * long / short)
        height, width = (resize, long) if height <= width else (long, resize)
    elif resize is not None:
        height, width = resize
    if crop is not None:
        height, width = (crop, crop) if isinstance(crop, int) else crop
    return height, width


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
    pixels = F.pil_to_tensor(image).to(torch.float32) / 255
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    std = torch.tensor(preprocess.std).view(-1, 1, 1)
    return ((pixels - mean) / std).unsqueeze(0)
