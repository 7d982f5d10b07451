"""Changes images as they are decoded, so that training sees more than there are."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from qconvert.images.preprocess import Change
from qconvert.qconfig import AugmentationSection

# Crops are between so much narrower and wider than the image, as usual in training.
_RATIO = 4 / 3
# The number of channels of images that have a brightness, and of those that have colours.
_GREY, _COLOURS = 1, 3


def change_of(section: AugmentationSection, seed: int, epoch: int, path: Path) -> Change | None:
    """What is done to one image in one epoch, drawn by seed, epoch and file name; None if nothing
    may be."""
    if not (section.flip or section.color) and section.crop == 1:
        return None
    key = f"{seed} {epoch} {path.name} {path.parent.name}"
    drawn = random.Random(hashlib.sha256(key.encode()).digest())
    return partial(_changed, section, drawn)


def _changed(section: AugmentationSection, drawn: random.Random, image: Any) -> Any:
    if section.crop < 1:
        image = _cropped(image, section.crop, drawn)
    if section.flip and drawn.random() < 1 / 2:
        image = F.horizontal_flip(image)
    if section.color:
        image = _coloured(image, section.color, drawn)
    return image


def _cropped(image: Any, smallest: float, drawn: random.Random) -> Any:
    """A part of the image, of a share of its area from `smallest` on, in the image's size."""
    height, width = F.get_size(image)
    share = drawn.uniform(smallest, 1.0)
    ratio = math.exp(drawn.uniform(-math.log(_RATIO), math.log(_RATIO)))
    high = min(height, max(1, round(height * math.sqrt(share / ratio))))
    wide = min(width, max(1, round(width * math.sqrt(share * ratio))))
    top, left = drawn.randint(0, height - high), drawn.randint(0, width - wide)
    size, mode = [height, width], InterpolationMode.BILINEAR
    return F.resized_crop(image, top, left, high, wide, size, mode, antialias=True)


def _coloured(image: Any, strength: float, drawn: random.Random) -> Any:
    """Brightness and contrast, and saturation where there are colours, each times a factor that is
    at most so far from 1. Of other channels nobody knows what they mean: they stay."""
    channels = len(image.getbands()) if isinstance(image, Image.Image) else image.shape[-3]
    changes: list[Callable[..., Any]] = [F.adjust_brightness, F.adjust_contrast]
    if channels == _COLOURS:
        changes.append(F.adjust_saturation)
    elif channels != _GREY:
        return image
    drawn.shuffle(changes)
    for change in changes:
        image = change(image, drawn.uniform(1 - strength, 1 + strength))
    return image
