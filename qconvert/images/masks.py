"""Masks: for each image another one, of the same size, whose pixels are classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qconvert.errors import LabelError
from qconvert.images.labels import Labelled, left_out, read_classes

# Pixels of no class: at the edges of objects (Pascal VOC, Cityscapes), and beside the image.
IGNORED = 255
# One channel of whole numbers: grey, palette (the index counts, not the colour), black and white,
# 16 and 32 bits.
_MODES = ("L", "P", "1", "I;16", "I")


def from_masks(
    root: Path,
    files: Sequence[Path],
    folder: Path,
    masks: Sequence[Path],
    classes_file: Path | None,
) -> Labelled:
    """Images with their masks: `a/b.jpg` below `root` has `a/b.png` below `folder`, of any ending.
    Images without a mask are left out.

    Raises LabelError when no image has one, or one image has two.
    """
    found: dict[Path, Path] = {}
    for mask in masks:
        key = mask.relative_to(folder).with_suffix("")
        if key in found:
            raise LabelError(
                f"{found[key].name} and {mask.name} are masks of one image",
                where=str(folder),
                fix="keep one of them",
            )
        found[key] = mask
    paired = {
        path: found[key]
        for path in files
        if (key := path.relative_to(root).with_suffix("")) in found
    }
    if not paired:
        raise LabelError(
            f"no image of {root} has a mask here",
            where=str(folder),
            fix="name a mask as its image, but for the ending: a/b.png is that of a/b.jpg",
        )
    classes = None if classes_file is None else read_classes(classes_file)
    notes = left_out(files, list(paired), f"mask in {folder.name}")
    return Labelled(tuple(paired), tuple(paired.values()), classes, notes)


def read_mask(path: Path) -> Tensor:
    """The classes of a mask's pixels, (height, width) int64.

    Raises LabelError when it cannot be read or is a picture in colours.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise LabelError(f"cannot be read: {error}", where=str(path)) from None
    if mode not in _MODES:
        raise LabelError(
            f"is a picture of mode {mode}, not one of classes",
            where=str(path),
            fix="save masks with one channel, whose values are indexes of classes",
        )
    return torch.from_numpy(pixels.astype(np.int64))
