"""From an image file to the model's inputs: as the qconfig says, or by the user's own transform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from qconvert.errors import BadImageError, TransformError
from qconvert.images.decode import decode, picture, size_of
from qconvert.images.masks import IGNORED, read_mask
from qconvert.qconfig import Preprocess
from qconvert.user_code import guarded

# The inputs of a model for one image, or for several: each tensor's first axis is of images.
Inputs = tuple[Tensor, ...]
# What is done to an image, a PIL image or a tensor, as it is decoded: the same kind comes back.
Change = Callable[[Any], Any]
# How far from an integer a pixel may be that was stored as one: float32 divided and multiplied.
_WHOLE = 1e-3


def shapes_of(inputs: Sequence[Tensor]) -> str:
    """The shapes of a model's inputs, for a message.

    >>> shapes_of([torch.zeros(1, 3, 8, 8), torch.zeros(1, 4)])
    '[1, 3, 8, 8], [1, 4]'
    """
    return ", ".join(str(list(x.shape)) for x in inputs)


class Reader(Protocol):
    """The way from a file to the model's inputs, the same in calibration and evaluation."""

    def __call__(self, path: Path, change: Change | None = None) -> Inputs:
        """One image, changed if so, each tensor (1, …). Raises BadImageError or TransformError."""
        ...

    def size(self, path: Path) -> tuple[int, int] | None:
        """Height and width of the input without reading all of it; None when only reading tells.

        Raises BadImageError.
        """
        ...

    def mask(self, path: Path) -> Tensor:
        """The mask of an image, with what changes its place or size done to it: (height, width)
        int64. Raises LabelError."""
        ...


@dataclass(frozen=True)
class Preprocessed:
    """The steps of `data.preprocess`: one input, (1, channels, height, width), of float32; with
    `as_pixels` of uint8, as before the normalization."""

    steps: Preprocess
    as_pixels: bool = False

    def __call__(self, path: Path, change: Change | None = None) -> Inputs:
        """See `Reader`."""
        steps = self.steps
        image = decode(path, steps.channels, steps.exif)
        if self.as_pixels and isinstance(image, Tensor):
            image = _whole_pixels(image, path)
        image = image if change is None else change(image)
        mode = InterpolationMode(steps.interpolation)
        if isinstance(image, Tensor) and mode is InterpolationMode.NEAREST:
            mode = InterpolationMode.NEAREST_EXACT  # as Pillow's
        image = self._placed(image, mode)
        if isinstance(image, Image.Image):
            image = F.pil_to_tensor(image)
        if self.as_pixels:
            return (image.unsqueeze(0),)
        if image.dtype == torch.uint8:
            image = image.to(torch.float32) / 255
        mean = torch.tensor(steps.mean).view(-1, 1, 1)
        std = torch.tensor(steps.std).view(-1, 1, 1)
        return (((image - mean) / std).unsqueeze(0),)

    def _placed(self, image: Any, mode: InterpolationMode) -> Any:
        """Resized and cropped."""
        steps = self.steps
        if steps.resize is not None:
            size = [steps.resize] if isinstance(steps.resize, int) else list(steps.resize)
            image = F.resize(image, size, mode)
        if steps.crop is not None:
            size = [steps.crop] * 2 if isinstance(steps.crop, int) else list(steps.crop)
            image = F.center_crop(image, size)
        return image

    def size(self, path: Path) -> tuple[int, int] | None:
        """See `Reader`."""
        return size_after(size_of(path, self.steps.exif), self.steps)

    def mask(self, path: Path) -> Tensor:
        """See `Reader`; what a crop adds beside the image is `IGNORED`."""
        # One more, because a crop adds zeros.
        shifted = read_mask(path).unsqueeze(0) + 1
        placed = self._placed(shifted, InterpolationMode.NEAREST_EXACT)[0] - 1
        return placed.where(placed >= 0, IGNORED)


def _whole_pixels(shares: Tensor, path: Path) -> Tensor:
    """uint8 of shares of full scale, if that is what they are made of.

    Raises BadImageError: to round them would change the image unseen."""
    pixels = shares * 255
    whole = pixels.round()
    if not torch.equal(whole.clamp(0, 255), whole) or (pixels - whole).abs().max() > _WHOLE:
        raise BadImageError(
            "has more than 8 bits a channel, and `data.input: uint8` takes 8",
            where=str(path),
            fix="save it with 8 bits, or leave `data.input: float32`",
        )
    return whole.to(torch.uint8)


@dataclass(frozen=True)
class Transformed:
    """The user's `data.transform`, called with a `picture` whose `filename` is its path. Where it
    must return pixels, they have so many `pixel_channels`."""

    function: Callable[..., Any]
    pixel_channels: int | None = None

    def __call__(self, path: Path, change: Change | None = None) -> Inputs:
        """See `Reader`."""
        image = picture(path)
        image = image if change is None else change(image)
        # Pillow itself sets it only on images that it has opened.
        setattr(image, "filename", str(path))  # noqa: B010
        with guarded(f"{path.name}: calling it", TransformError, "data.transform"):
            result = self.function(image)
        found = result if isinstance(result, (tuple, list)) else (result,)
        wrong = [type(x).__name__ for x in found if not isinstance(x, Tensor)]
        if wrong or not found:
            raise TransformError(
                f"returned {', '.join(wrong) or 'nothing'} for {path.name}",
                where="data.transform",
                fix="return a tensor (channels, height, width), or a tuple of the model's inputs",
            )
        if self.pixel_channels is not None:
            _check_pixels(found, self.pixel_channels, path)
        return tuple(x.detach().unsqueeze(0) for x in found)

    def size(self, path: Path) -> tuple[int, int] | None:
        """See `Reader`."""
        return None

    def mask(self, path: Path) -> Tensor:
        """See `Reader`; as it is in the file."""
        return read_mask(path)


def _check_pixels(found: Sequence[Tensor], channels: int, path: Path) -> None:
    """Raises TransformError when what a transform returned are not the pixels of one image."""
    (first, *others) = found
    of_image = first.dim() == 3 and len(first) == channels
    if not others and of_image and first.dtype == torch.uint8:
        return
    returned = ", ".join(f"{list(x.shape)} of {str(x.dtype).removeprefix('torch.')}" for x in found)
    raise TransformError(
        f"returned {returned} for {path.name}; `data.input: uint8` wants the pixels, uint8 "
        f"({channels}, height, width)",
        where="data.transform",
        fix="return them before any scaling (data.preprocess.channels says how many channels), or "
        "leave `data.input: float32`",
    )


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


@dataclass(frozen=True)
class Negative:
    """What another reader of one image gives, inverted: black for white. `mean` and `std` are those
    that the image was normalized with; uint8 is pixels as they are."""

    read: Reader
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, path: Path, change: Change | None = None) -> Inputs:
        """See `Reader`."""
        (image,) = self.read(path, change)
        if image.dtype == torch.uint8:
            return (255 - image,)
        mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (self.mean, self.std))
        return ((1 - 2 * mean) / std - image,)

    def size(self, path: Path) -> tuple[int, int] | None:
        """See `Reader`."""
        return self.read.size(path)

    def mask(self, path: Path) -> Tensor:
        """See `Reader`; a negative shows the same things."""
        return self.read.mask(path)
