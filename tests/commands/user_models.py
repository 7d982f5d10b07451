"""Networks of a user whose answers are known without training, and her transform.

A project copies this file: its qconfig says `user_models.py:Colours`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels

COLOURS = ("red", "green", "blue", "white", "black")


class Colours(nn.Module):
    """Answers with the index in COLOURS of an image's mean colour."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.pool = nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(5, 5)
        rows = [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1], [0.2] * 3, [-0.33] * 3]
        self.mix.weight.data = torch.tensor(rows).view(5, 3, 1, 1)
        self.mix.bias.data = torch.tensor([0, 0, 0, 0, 0.3])
        self.out.weight.data, self.out.bias.data = torch.eye(5), torch.zeros(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.mix(x)).flatten(1))


class Bands(nn.Module):
    """Answers with the brightest channel of an image or the part of it that is brightest."""

    def __init__(self, channels: int = 1, parts: int = 1) -> None:
        super().__init__()
        self.same = nn.Conv2d(channels, channels, 1)
        self.pool = nn.AdaptiveAvgPool2d((parts, 1))
        self.out = nn.Linear(channels * parts, channels * parts)
        self.same.weight.data = torch.eye(channels).view(channels, channels, 1, 1)
        self.out.weight.data = torch.eye(channels * parts)
        for layer in (self.same, self.out):
            layer.bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.pool(self.same(x)).flatten(1))


class Body(nn.Module):
    """Eight channels of half the size, with seeded weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(8, 4, 1)
        self.out = nn.Linear(8, 4)


class Maps(Body):
    """A dict: means first, and a dense map of four classes at the size of the image."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.body(x)
        maps = F.interpolate(self.head(found), size=x.shape[-2:], mode="bilinear")
        return {"means": found.mean((2, 3)), "map": maps}


class Embedding(Body):
    """Rows of unit length."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.out(self.body(x).mean((2, 3))), dim=1)


class ImageAndPlace(Body):
    """Two inputs; a tuple that holds a list."""

    def forward(self, image: Tensor, place: Tensor) -> tuple[Tensor, list[Tensor]]:
        found = self.body(image)
        return self.out(found.mean((2, 3)) + place), [found, self.head(found)]


class Weighted(Body):
    """Darkens its input before it looks."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x * 0.5).mean((2, 3)))


class Digits(nn.Module):
    """Grey images of one size, of 20 x 20 pixels in three classes."""

    def __init__(self, side: int = 28) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * side * side, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().flatten(1))


def image_and_place(image: Any) -> tuple[Tensor, Tensor]:
    """The image at a quarter of its pixels, and numbers from the name of its file."""
    assert isinstance(image, Image.Image)
    number = int(image.filename.rpartition("/")[2].removesuffix(".png"))
    half = pixels.resize(image, [image.height // 2, image.width // 2])
    return pixels.pil_to_tensor(half).float() / 255, torch.full((8,), number / 10)
