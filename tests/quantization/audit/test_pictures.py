"""What calibration images look like."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from qconvert.quantization.audit.facts import Picture, picture_of
from qconvert.quantization.audit.pictures import Scale, blank, duplicates, light


def photograph(seed: int) -> Image.Image:
    """Shapes, not noise: what compression leaves as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def pictures(images: list[Image.Image]) -> list[Picture]:
    found = [picture_of((F.pil_to_tensor(image).unsqueeze(0) / 255,)) for image in images]
    return [picture for picture in found if picture is not None]


def test_same_image_is_found_compressed_and_scaled() -> None:
    images = [photograph(seed) for seed in range(12)]
    compressed = io.BytesIO()
    images[3].save(compressed, format="jpeg", quality=60)
    images += [Image.open(compressed), images[8].resize((64, 64)), images[3].copy()]
    assert duplicates(pictures(images)) == [[3, 12, 14], [8, 13]]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.point(lambda value: value * 0.8),
        lambda image: Image.merge("RGB", image.split()[::-1]),
    ],
    ids=["mirrored", "darker", "other colours"],
)
def test_changed_image_is_another(change) -> None:
    images = [photograph(seed) for seed in range(4)]
    assert duplicates(pictures([*images, change(images[2])])) == []


def test_brightness_and_contrast_are_in_shares_of_white() -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[..., 4:] = 1
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    normalized = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    found = picture_of((normalized,))
    assert found is not None
    scale = Scale(tuple(mean.tolist()), tuple(std.tolist()))
    brightness, contrast = light([found], scale)
    assert brightness == pytest.approx([0.5])
    assert contrast == pytest.approx([0.5])


def test_images_of_one_colour_are_blank() -> None:
    images = [photograph(0), Image.new("RGB", (8, 8), (9, 99, 200)), photograph(1)]
    found = light(pictures(images), Scale())
    assert blank(*found, in_shares=True) == blank(*found, in_shares=False) == [1]


@pytest.mark.parametrize("inputs", [torch.zeros(1, 7), torch.zeros(1, 9, 4, 4)])
def test_other_inputs_are_no_pictures(inputs: torch.Tensor) -> None:
    assert picture_of((inputs,)) is None
