"""Small pictures of images of any kind."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from qconvert.errors import BadImageError
from qconvert.images.thumbnail import SIDE, Thumbnail, thumbnail


def opened(found: Thumbnail) -> Image.Image:
    image = Image.open(io.BytesIO(found.data))
    assert found.media_type == f"image/{str(image.format).lower()}"
    head, _, data = found.uri.partition(",")
    assert head == f"data:{found.media_type};base64"
    assert base64.b64decode(data) == found.data
    return image


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "small", "shown"),
    [
        ((640, 640), (160, 160), (160, 160)),
        ((4000, 1000), (320, 80), (320, 80)),
        ((2000, 32), (480, 8), (480, 8)),
        ((120, 90), (120, 90), (120, 90)),
        ((28, 28), (28, 28), (112, 112)),
        ((1, 5000), (1, 480), (1, 480)),
    ],
)
def test_sizes(tmp_path: Path, size, small, shown) -> None:
    """About the area of a square, a line longer than that; the tiny are shown enlarged."""
    path = tmp_path / "a.png"
    Image.fromarray(noise(size[1], size[0], 3)).save(path)
    found = thumbnail(path)
    assert opened(found).size == small
    assert (found.width, found.height) == shown
    assert small[0] * small[1] <= SIDE * SIDE


def test_photographs_are_small_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(800, 800, 3)).resize((1600, 1600)).save(path)
    assert len(thumbnail(path).data) < 20_000


def test_drawings_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[5:9, 5:9] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.array(opened(thumbnail(tmp_path / "a.png"))), pixels)


def test_nothing_but_pixels_is_kept(tmp_path: Path) -> None:
    """Where a photograph was taken is nobody's business."""
    exif = Image.Exif()
    exif[0x010F], exif[0x8825] = "a maker", {1: "N", 2: (48.0, 8.0, 0.0)}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(noise(90, 90, 3)).save(
        tmp_path / "a.jpg", exif=exif, icc_profile=profile, comment=b"a comment", quality=100
    )
    small = opened(thumbnail(tmp_path / "a.jpg"))
    small.load()
    assert not small.getexif()
    assert not small.info.keys() & {"exif", "icc_profile", "comment", "xmp"}


@pytest.mark.parametrize(("exif", "size"), [("ignore", (40, 20)), ("apply", (20, 40))])
def test_turned_as_the_model_is_given_it(tmp_path: Path, exif, size) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise(20, 40, 3)).save(tmp_path / "a.jpg", exif=turned)
    assert opened(thumbnail(tmp_path / "a.jpg", exif)).size == size


def test_values_of_more_bits_are_stretched(tmp_path: Path) -> None:
    values = np.full((10, 10), 40_000, np.uint16)
    values[0, 0], values[9, 9] = 39_000, 41_000
    Image.fromarray(values).save(tmp_path / "a.png")
    shown = np.array(opened(thumbnail(tmp_path / "a.png")))
    assert (shown[0, 0], shown[5, 5], shown[9, 9]) == (0, 128, 255)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "RGB")])
def test_arrays(tmp_path: Path, channels: int, mode: str) -> None:
    values = np.random.default_rng(0).normal(size=(12, 16, channels)).astype(np.float32)
    values[3, 3] = np.nan
    np.save(tmp_path / "a.npy", values)
    shown = opened(thumbnail(tmp_path / "a.npy"))
    assert (shown.mode, shown.size) == (mode, (16, 12))
    assert np.array(shown).min() == 0
    assert np.array(shown).max() == 255


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_array_of_one_value(tmp_path: Path, value: float) -> None:
    np.save(tmp_path / "a.npy", np.full((4, 4), value, np.float32))
    assert opened(thumbnail(tmp_path / "a.npy")).size == (4, 4)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BadImageError, match=r"a\.png: is no image"):
        thumbnail(tmp_path / "a.png")
