"""From a file to pixels: what becomes of each format is in `docs/images.md`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from qconvert.errors import BadImageError

Exif = Literal["ignore", "apply"]
# A file that claims more is taken for an attack or a mistake, as Pillow's own limit does.
MOST_PIXELS = 89_478_485
_TOO_LARGE = f"has more than {MOST_PIXELS:,} pixels"
_SHRINK = "shrink or remove the file"
# Pillow announces what is refused here, with the name of the file, a moment later.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow's modes of 8 bits by number of channels.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_ORIENTATION = 0x0112  # EXIF
_TURNED = (5, 6, 7, 8)  # by 90 degrees: height and width change places


def decode(path: Path, channels: int, exif: Exif = "ignore") -> Image.Image | Tensor:
    """Reads an image: of 8 bits, as Pillow's grey (1 channel), grey and alpha (2), RGB (3) or RGBA
    (4); of more bits or channels, as float32 (channels, height, width), integers as shares of their
    full scale.

    Raises BadImageError naming the file when it is no image, damaged or unreasonably large.
    """
    with _named(path):
        if path.suffix.lower() == ".npy":
            return _array(path, channels)
        with Image.open(path) as image:
            _check_size(image)
            if exif == "apply":
                ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, channels)


def picture(path: Path) -> Image.Image | Tensor:
    """What a user's transform gets: an RGB image; where that would lose bits or channels, the image
    as Pillow opens it, or of a `.npy` the tensor (channels, height, width).

    Raises BadImageError as `decode` does.
    """
    with _named(path):
        if path.suffix.lower() == ".npy":
            return _array(path, None)
        with Image.open(path) as image:
            _check_size(image)
            if not _is_deep(image) and getattr(image, "n_frames", 1) == 1:
                return _pixels(image, 3)
        opened = Image.open(path)  # which stays open for its pages
        opened.load()
        return opened


def size_of(path: Path, exif: Exif) -> tuple[int, int]:
    """Width and height of the image that `decode` would return, from the file's header alone.

    Raises BadImageError as `decode` does, when the header tells.
    """
    with _named(path):
        if path.suffix.lower() == ".npy":
            height, width = _mapped(path).shape[:2]
            return width, height
        with Image.open(path) as image:
            _check_size(image)
            width, height = image.size
            turned = exif == "apply" and _mark(image) in _TURNED
            return (height, width) if turned else (width, height)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever Pillow or NumPy raises at a file becomes one error that names it."""
    try:
        yield
    except BadImageError as error:
        raise BadImageError(error.facts, where=str(path), fix=error.fix) from None
    except Image.DecompressionBombError:
        raise BadImageError(_TOO_LARGE, where=str(path), fix=_SHRINK) from None
    except Exception as error:  # a damaged file makes them raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        fact = f"cannot be read: {reason}" if reason else "is no image, or a damaged one"
        raise BadImageError(fact, where=str(path)) from None


def is_rotated(path: Path) -> bool:
    """Whether the header says that the camera was turned. False for what cannot be read."""
    try:
        with Image.open(path) as image:
            return _mark(image) not in (0, 1)
    except Exception:  # a damaged header is named when it is decoded
        return False


def _mark(image: Image.Image) -> int:
    """The rotation mark that is left to apply: Pillow itself turns a TIFF, in any case."""
    return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise BadImageError(_TOO_LARGE, fix=_SHRINK)


def _pixels(image: Image.Image, channels: int) -> Image.Image | Tensor:
    pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and channels > 1 and pages == channels and _is_grey(image):
        return _pages(image, pages)
    if channels not in _MODES:
        raise BadImageError(
            f"has {pages} page(s) of {image.mode}, which are not {channels} channels",
            fix="save it as a TIFF of so many grey pages, or as a .npy array "
            "(height, width, channels)",
        )
    if _is_deep(image):
        grey = _grey(image)
        alpha = [torch.ones_like(grey)] if channels in (2, 4) else []
        return torch.cat([*[grey] * (channels - len(alpha)), *alpha])
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; Pillow warns on the direct way
    try:
        return image.convert(_MODES[channels])
    except ValueError:
        raise BadImageError(
            f"has pixels in mode {image.mode}, which Pillow does not turn into {_MODES[channels]}",
            fix="save it as PNG, or read it with `data.transform`",
        ) from None


def _pages(image: Image.Image, count: int) -> Tensor:
    """Each page a channel."""
    found: list[Tensor] = []
    for page in range(count):
        image.seek(page)
        if not _is_grey(image) or (found and image.size != found[0].shape[:0:-1]):
            raise BadImageError(
                f"has pages that are not alike: page {page + 1} is {image.mode} of "
                f"{image.width} x {image.height}",
                fix="save all pages as grey and in one size",
            )
        found.append(_grey(image))
    return torch.cat(found)


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L") or _is_deep(image)


def _is_deep(image: Image.Image) -> bool:
    """Whether the pixels have more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _grey(image: Image.Image) -> Tensor:
    """A page of one channel as float32 (1, height, width): integers as shares of full scale."""
    if not _is_deep(image):
        return F.pil_to_tensor(image.convert("L")).float() / 255
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise BadImageError(
            "has integers of 32 bits, whose full scale nobody knows",
            fix="save it with 8 or 16 bits, as float, or read it with `data.transform`",
        )
    values = torch.from_numpy(np.array(image, dtype=np.float32))
    return (values if image.mode == "F" else values / 65535).unsqueeze(0)


def _array(path: Path, channels: int | None) -> Tensor:
    array = _mapped(path)
    shown = f"{list(array.shape)} of {array.dtype}"
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or channels not in (None, array.shape[2]) or not array.size:
        raise BadImageError(
            f"is an array of shape {shown}; wanted is [height, width, {channels or 'channels'}]",
            fix="correct the array, or `data.preprocess.channels`",
        )
    if array.shape[0] * array.shape[1] > MOST_PIXELS:
        raise BadImageError(_TOO_LARGE, fix=_SHRINK)
    full_scale = _FULL_SCALE.get(array.dtype.newbyteorder("="), 1)
    if full_scale == 1 and not np.issubdtype(array.dtype, np.floating):
        raise BadImageError(
            f"is an array of shape {shown}; its full scale is not known",
            fix="save it as uint8, uint16 or float32",
        )
    values = torch.from_numpy(np.array(array, dtype=np.float32))
    return values.permute(2, 0, 1).contiguous() / full_scale


def _mapped(path: Path) -> np.ndarray:
    """A .npy file; mapped, so that a header that promises too much costs no memory."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise BadImageError("is an archive of arrays", fix="save one array with numpy.save")
    return array
