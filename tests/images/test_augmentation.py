"""What is done to images in training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from qconvert.images.augmentation import change_of
from qconvert.qconfig import AugmentationSection

ALL = AugmentationSection(flip=True, crop=0.4, color=0.3)
PATH = Path("images/cat/0.png")


def picture() -> Image.Image:
    """A ramp of red from left to right."""
    image = Image.new("RGB", (40, 30))
    image.putdata([(6 * x, 50, 90) for _ in range(30) for x in range(40)])
    return image


def test_nothing_is_asked_for() -> None:
    nothing = AugmentationSection(flip=False, crop=1.0, color=0.0)
    assert change_of(nothing, 0, 1, PATH) is None


def test_same_draw_for_the_same_seed_epoch_and_file() -> None:
    def drawn(seed: int, epoch: int, path: Path) -> bytes:
        return change_of(ALL, seed, epoch, path)(picture()).tobytes()

    first = drawn(0, 1, PATH)
    assert drawn(0, 1, Path("/elsewhere") / PATH) == first
    others = [drawn(1, 1, PATH), drawn(0, 2, PATH), drawn(0, 1, PATH.with_name("1.png"))]
    assert first not in others
    assert len(set(others)) == 3


@pytest.mark.parametrize("epoch", range(1, 9))
def test_size_and_kind_stay(epoch: int) -> None:
    image = change_of(ALL, 0, epoch, PATH)(picture())
    assert (image.size, image.mode) == ((40, 30), "RGB")


def test_flips_half_of_the_images() -> None:
    mirrored = AugmentationSection(flip=True, crop=1.0, color=0.0)
    firsts = [change_of(mirrored, 0, e, PATH)(picture()).getpixel((0, 0))[0] for e in range(1, 201)]
    assert set(firsts) == {0, 6 * 39}
    assert 70 < firsts.count(0) < 130


def test_crops_have_at_least_their_share() -> None:
    """Of a ramp, what is left of its width is seen in its ends."""
    section = AugmentationSection(flip=False, crop=0.5, color=0.0)
    spans = []
    for epoch in range(1, 101):
        image = change_of(section, 0, epoch, PATH)(picture())
        spans.append(image.getpixel((39, 0))[0] - image.getpixel((0, 0))[0])
    # Half of the area at a ratio of 3 to 4: 0.61 of the width.
    assert min(spans) > 0.55 * 6 * 39
    assert max(spans) > 0.95 * 6 * 39


def test_channels_that_are_no_colours_stay() -> None:
    """Five channels, of which nobody knows what they are."""
    section = AugmentationSection(flip=False, crop=1.0, color=0.5)
    image = torch.rand(5, 8, 8)
    assert torch.equal(change_of(section, 0, 1, PATH)(image), image)
