"""What is kept of each calibration image while it is run: some kilobytes, whatever its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from qconvert.images.preprocess import Inputs
from qconvert.quantization.distribution import Glimpse

# Tensors whose channels are looked at one by one: the first, which see colours and edges, and some
# from there to the last; and channels of each.
_FIRST, _SPREAD, _CHANNELS = 6, 16, 64
# Rows and columns of a map at which they are looked at.
_PLACES = 32
# Images with more channels are no pictures that one could look at.
_COLOURS = 4
# Height and width of the small picture that is kept of each.
SIDE = 12


@dataclass(frozen=True)
class Picture:
    """The model's input, if it is an image: mean and standard deviation of each channel, and all of
    it reduced to (channels, SIDE, SIDE); float32, in the units of the input."""

    means: np.ndarray
    deviations: np.ndarray
    small: np.ndarray


@dataclass
class ImageFacts:
    """What one image showed of each tensor, and of the channels of some."""

    tensors: dict[str, Glimpse] = field(default_factory=dict)
    profiles: dict[str, np.ndarray] = field(default_factory=dict)
    picture: Picture | None = None

    def see(self, name: str, found: Glimpse) -> None:
        """Adds what was found in a tensor, which may be computed several times for one image."""
        before = self.tensors.get(name)
        if before is not None:
            low, high = min(before.low, found.low), max(before.high, found.high)
            mean, size = (before.mean + found.mean) / 2, (before.size + found.size) / 2
            found = Glimpse(low, high, mean, size)
        self.tensors[name] = found


def profiled(names: Sequence[str]) -> frozenset[str]:
    """The tensors whose channels are looked at, of `names` in the order of the graph."""
    last = len(names) - 1
    spread = {round(i * last / (_SPREAD - 1)) for i in range(_SPREAD)} if names else set()
    return frozenset(names[:_FIRST]) | {names[i] for i in spread}


def profile_of(value: Tensor) -> np.ndarray:
    """The mean and the mean absolute value of at most `_CHANNELS` channels of an image's tensor
    (float32, one row after the other), on a grid of places. Channels are the second axis of maps,
    otherwise the last."""
    if value.dim() == 4:
        channels, height, width = (
            -(-length // most)
            for length, most in zip(value.shape[1:], (_CHANNELS, _PLACES, _PLACES), strict=True)
        )
        seen = value[:, ::channels, ::height, ::width].float().transpose(0, 1).flatten(1)
    else:
        flat = value.reshape(-1, value.shape[-1] if value.dim() else 1)
        seen = flat[:, :: -(-flat.shape[1] // _CHANNELS)].float().T
    return torch.cat([seen.mean(1), seen.abs().mean(1)]).numpy()


def picture_of(inputs: Inputs) -> Picture | None:
    """What the first input looks like, where it is an image of a few channels."""
    first = inputs[0]
    is_image = first.dim() == 4 and first.shape[1] <= _COLOURS and first.numel() > 0
    if not is_image or first.is_complex():
        return None
    pixels = first[0].float()
    means = pixels.mean((1, 2), keepdim=True)
    deviations = (pixels - means).square().mean((1, 2)).sqrt()  # torch.std takes ten times as long
    small = F.interpolate(pixels[None], (SIDE, SIDE), mode="bilinear", antialias=True)
    return Picture(means.flatten().numpy(), deviations.numpy(), small[0].numpy())


class SetFacts:
    """The facts of all images, in their order, as arrays."""

    def __init__(self) -> None:
        self._tensors: dict[str, list[np.ndarray]] = {}
        self._profiles: dict[str, list[np.ndarray]] = {}
        self._pictures: list[Picture | None] = []
        # The share of each tensor's values, in images that were held out, which lie outside the
        # range of the others.
        self.clipped: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, image: ImageFacts) -> None:
        """Adds the next image."""
        for name, found in image.tensors.items():
            self._tensors.setdefault(name, []).append(np.array(found, np.float32))
        for name, profile in image.profiles.items():
            self._profiles.setdefault(name, []).append(profile)
        self._pictures.append(image.picture)

    def only(self, places: Sequence[int]) -> SetFacts:
        """Those of the images at these places, in this order, of what all images have."""
        found = SetFacts()
        for name, rows in self.tensors.items():
            found._tensors[name] = [rows[i] for i in places]
        for name, rows in self.profiles.items():
            found._profiles[name] = [rows[i] for i in places]
        found._pictures = [self._pictures[i] for i in places]
        return found

    def with_more(self, other: SetFacts) -> SetFacts:
        """Those of both sets of images, one after the other."""
        found = self.only(range(len(self)))
        for name, rows in other._tensors.items():
            found._tensors.setdefault(name, []).extend(rows)
        for name, rows in other._profiles.items():
            found._profiles.setdefault(name, []).extend(rows)
        found._pictures += other._pictures
        return found

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """By the name of each tensor that every image has: (images, 4), the fields of `Glimpse`."""
        rows = {name: rows for name, rows in self._tensors.items() if len(rows) == len(self)}
        return {name: np.stack(rows[name]) for name in sorted(rows)}

    @property
    def profiles(self) -> dict[str, np.ndarray]:
        """By name: (images, features), where all images have the same channels."""
        found = {}
        for name, rows in sorted(self._profiles.items()):
            if len(rows) == len(self) and len({row.shape for row in rows}) == 1:
                found[name] = np.stack(rows)
        return found

    @property
    def pictures(self) -> list[Picture] | None:
        """Those of all images; None where inputs are no pictures, or not all alike."""
        found = [picture for picture in self._pictures if picture is not None]
        alike = len({len(picture.means) for picture in found}) == 1
        return found if alike and len(found) == len(self) else None
