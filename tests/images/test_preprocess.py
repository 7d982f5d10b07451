"""An image becomes the model's input as torchvision's own transforms make it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from qconvert.errors import ImageError
from qconvert.images.preprocess import decode, load
from qconvert.qconfig import Preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def by_torchvision(path: Path, settings: Preprocess) -> torch.Tensor:
    steps = []
    if settings.resize is not None:
        steps.append(transforms.Resize(settings.resize, InterpolationMode(settings.interpolation)))
    if settings.crop is not None:
        steps.append(transforms.CenterCrop(settings.crop))
    steps.append(transforms.ToTensor())
    steps.append(transforms.Normalize(settings.mean, settings.std))
    with Image.open(path) as image:
        return transforms.Compose(steps)(image.convert("L" if settings.channels == 1 else "RGB"))


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "RGB"])
@pytest.mark.parametrize(
    "settings",
    [
        {"resize": 19},
        {"resize": (20, 31), "interpolation": "bicubic"},
        {"resize": (40, 11), "interpolation": "nearest"},
        {"crop": 15},
        {"crop": (13, 60)},
        {"resize": 32, "crop": (28, 24), "mean": (0.1307,), "std": (0.3081,)},
    ],
    ids=str,
)
def test_input_is_exactly_that_of_torchvision(tmp_path, save_image, settings, channels):
    path = save_image(tmp_path / "image.png", size=(37, 26))
    preprocess = Preprocess(channels=channels, **settings)
    got, want = load(path, preprocess), by_torchvision(path, preprocess)
    assert got.shape == (1, *want.shape)
    assert got.shape[1] == channels
    assert got.dtype == torch.float32
    assert torch.equal(got[0], want)


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "RGB"])
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_colour_mode_becomes_grey_or_rgb(tmp_path, save_image, mode, channels):
    path = tmp_path / "image.tif"
    save_image(path, mode=mode)
    image = decode(path, channels)
    with Image.open(path) as original:
        assert image.tobytes() == original.convert(image.mode).tobytes()
    assert image.mode == ("L" if channels == 1 else "RGB")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_8_bits_a_channel_are_refused(tmp_path, mode):
    """Pillow would cut them at 255 without a word."""
    Image.new(mode, (4, 4), 1000).save(tmp_path / "image.tif")
    with pytest.raises(ImageError, match=r"image\.tif: has more than 8 bits a channel"):
        decode(tmp_path / "image.tif", 1)


def test_imagenet_preprocessing_is_exact(tmp_path, save_image):
    path = save_image(tmp_path / "image.jpg", size=(300, 260))
    preprocess = Preprocess(resize=256, crop=224, **IMAGENET)
    assert torch.equal(load(path, preprocess)[0], by_torchvision(path, preprocess))


def test_all_256_grey_values_are_exact(tmp_path):
    path = tmp_path / "ramp.png"
    Image.frombytes("L", (16, 16), bytes(range(256))).save(path)
    preprocess = Preprocess(channels=1)
    assert torch.equal(load(path, preprocess)[0], by_torchvision(path, preprocess))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_every_format_is_read(tmp_path, save_image, suffix):
    path = save_image(tmp_path / f"image.{suffix}", size=(10, 7))
    assert decode(path, 3).size == (10, 7)
    assert decode(path, 3).mode == "RGB"
    assert decode(path, 1).mode == "L"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_truncated_image_is_named(tmp_path, save_image, suffix):
    path = save_image(tmp_path / f"image.{suffix}", size=(40, 40))
    whole = path.read_bytes()
    for length in (0, 3, 20, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError) as caught:
            decode(path, 3)
        assert caught.value.where == str(path)
        assert caught.value.facts == ["is no image, or a damaged one"]


def test_text_named_png_is_named(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("this is no image\n")
    with pytest.raises(ImageError, match="is no image, or a damaged one") as caught:
        load(path, Preprocess())
    assert caught.value.where == str(path)


def test_lost_image_is_named_with_the_reason(tmp_path):
    with pytest.raises(ImageError, match="cannot be read: No such file or directory") as caught:
        load(tmp_path / "lost.png", Preprocess())
    assert caught.value.where == str(tmp_path / "lost.png")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_image_with_too_many_pixels_is_refused(tmp_path, save_image, claim_size, side):
    path = claim_size(save_image(tmp_path / "bomb.png"), side)
    with pytest.raises(ImageError, match="has more than 89,478,485 pixels") as caught:
        load(path, Preprocess())
    assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["mean", "std"])
def test_values_for_another_number_of_channels_are_refused(name):
    with pytest.raises(ValidationError, match=f"{name} has 3 values for 1 channels"):
        Preprocess(channels=1, **{name: IMAGENET[name]})
