"""An image made small enough to be part of a page."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from qconvert.images.decode import Exif, picture

# A picture has at most the pixels of such a square; a line of text is longer and less high.
SIDE = 160
_LONGEST = 3 * SIDE
# Smaller pictures are shown enlarged, each pixel as a square, to about this length.
_ENLARGED = 112
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A PNG or JPEG without anything but pixels (no place, no camera, no colour profile), and the
    size in which it is to be shown."""

    media_type: str
    data: bytes
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The picture as a `data:` address."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


def thumbnail(path: Path, exif: Exif = "ignore") -> Thumbnail:
    """A small picture of an image. Of more than 8 bits or of an array, the first three channels (or
    the first) from their least to their largest value.

    Raises BadImageError as `decode` does.
    """
    small = _small(_eight_bits(picture(path), exif))
    # What Pillow read beside the pixels would be saved with them.
    small.info = {}
    times = max(1, _ENLARGED // max(small.size))
    media_type, data = "image/png", _saved(small, "PNG")
    # What is enlarged shows each pixel, and would show JPEG's waves.
    if times == 1 and len(jpeg := _saved(small, "JPEG")) < len(data):
        media_type, data = "image/jpeg", jpeg
    return Thumbnail(media_type, data, times * small.width, times * small.height)


def _saved(image: Image.Image, form: str) -> bytes:
    written = io.BytesIO()
    image.save(written, form, optimize=True, quality=_QUALITY)
    return written.getvalue()


def _small(image: Image.Image) -> Image.Image:
    width, height = image.size
    scale = min(1.0, SIDE / math.sqrt(width * height), _LONGEST / max(width, height))
    if scale == 1:
        return image
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _eight_bits(image: Image.Image | Tensor, exif: Exif) -> Image.Image:
    """RGB or grey."""
    if isinstance(image, Tensor):
        return _stretched(image.numpy())
    if exif == "apply":
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _stretched(np.array(image, dtype=np.float32)[None])
    return image.convert("RGB")


def _stretched(channels: np.ndarray) -> Image.Image:
    """(channels, height, width) as a picture, from the least value to the largest."""
    shown = channels[:3] if len(channels) >= 3 else channels[:1]
    finite = shown[np.isfinite(shown)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    scaled = (np.nan_to_num(shown, nan=low) - low) / ((high - low) or 1.0)
    pixels = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
