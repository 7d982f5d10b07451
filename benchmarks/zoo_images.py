"""The pictures of the zoo, drawn so that the same ones are there on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SEED = 7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FRAMES = 16


def write_pictures(folder: Path, pixels: int, indices: Sequence[int]) -> None:
    """The pictures as files; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        path = folder / f"{index:02}.png"
        if not path.exists():
            written = path.with_suffix(".part")  # another worker may draw the same
            Image.fromarray(picture(index, pixels)).save(written, format="png")
            written.replace(path)


def pixels_of(index: int, pixels: int) -> Tensor:
    """A picture as (3, pixels, pixels) in 0 to 1."""
    return torch.from_numpy(picture(index, pixels)).permute(2, 0, 1).float() / 255


def normalized(image: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Channels first, with mean 0 and variance 1 where the mean and the deviation are right."""
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def clip(image: Image.Image) -> Tensor:
    """`data.transform` of the video models: (3, 16, side, side), as of a camera that moves over the
    picture from one corner to the other; `side` is 7/8 of the picture's."""
    return frames(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)


def frames(image: Tensor) -> Tensor:
    """The clip of a picture (3, height, width) in 0 to 1; see `clip`."""
    side = image.shape[-1] * 7 // 8
    step = (image.shape[-1] - side) // FRAMES
    moved = [
        normalized(image[:, i : i + side, i : i + side]) for i in range(0, FRAMES * step, step)
    ]
    return torch.stack(moved, dim=1)


def picture(index: int, pixels: int) -> np.ndarray:
    """An RGB image (pixels, pixels, 3) of uint8: fields with waves in some discs and half-planes,
    the texture of photographs over them, and the grain of a sensor.

    An index gives the same picture at every size, but for texture and grain. Without these a random
    network's filters of high frequency see next to nothing, and batch norms make noise of it.
    """
    generator = np.random.default_rng([SEED, index])
    steps = (np.arange(pixels) + 0.5) / pixels
    y, x = np.meshgrid(steps, steps, indexing="ij")
    image = _field(generator, x, y)
    for shape in range(8):
        if shape % 2:
            (a, b), radius = generator.uniform(0, 1, 2), generator.uniform(0.05, 0.3)
            inside = (x - a) ** 2 + (y - b) ** 2 < radius**2
        else:
            angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(0.1, 0.5)
            inside = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) > distance
        image = np.where(inside[..., None], _field(generator, x, y), image)
    image = image + 0.1 * _texture(generator, pixels) + generator.normal(0, 0.02, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _texture(generator: np.random.Generator, pixels: int) -> np.ndarray:
    """Noise of variance 1 with amplitudes as 1 / frequency, as in photographs (Field 1987)."""
    frequencies = np.fft.fftfreq(pixels)
    radius = np.hypot(frequencies[:, None], frequencies[None])
    radius[0, 0] = np.inf  # no mean
    noise = generator.normal(size=(pixels, pixels, 3))
    spectrum = np.fft.fft2(noise, axes=(0, 1)) / radius[..., None]
    texture = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return texture / texture.std()


def _field(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A colour and waves around it; as in photographs, the shorter a wave the weaker it is."""
    image = np.broadcast_to(generator.uniform(0.1, 0.9, 3), (*x.shape, 3)).copy()
    for _ in range(12):
        frequency = 2 ** generator.uniform(0, 5)
        angle, phase = generator.uniform(0, 2 * np.pi, 2)
        wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        tint = generator.normal(1, 0.3, 3)
        image += 0.15 / frequency**0.5 * wave[..., None] * tint
    return image
