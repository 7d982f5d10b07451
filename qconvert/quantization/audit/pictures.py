"""What calibration images look like: how bright they are, which are blank, which are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.quantization.audit.facts import Picture

# Images that differ by less than this share of their contrast look the same: one that was
# compressed or scaled again does.
_ALIKE = 0.03
# Less contrast than half a step of 8 bits is none; where the scale is not known, than a rounding.
_BLANK, _ROUNDED = 0.5 / 255, 1e-6


@dataclass(frozen=True)
class Scale:
    """From the units of the model's input to shares of white: `value * std + mean`, by channel."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def light(pictures: Sequence[Picture], scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Brightness and contrast of each."""
    mean, std = np.array(scale.mean), np.array(scale.std)
    brightness = np.array([(p.means * std + mean).mean() for p in pictures])
    contrast = np.array([np.sqrt(((p.deviations * std) ** 2).mean()) for p in pictures])
    return brightness, contrast


def blank(brightness: np.ndarray, contrast: np.ndarray, in_shares: bool) -> list[int]:
    """The images of one colour; of those that are not in shares of white, exactly so."""
    limit = _BLANK if in_shares else _ROUNDED * np.abs(brightness)
    return [int(i) for i in np.flatnonzero(contrast <= limit)]


def duplicates(pictures: Sequence[Picture]) -> list[list[int]]:
    """Groups of images that look the same, reduced to a few pixels, each of two at least."""
    flat = np.stack([p.small.ravel() for p in pictures]).astype(np.float64)
    middle, strength = flat.mean(1), flat.std(1)
    order = np.argsort(middle, kind="stable")
    middle = middle[order]
    group = np.arange(len(flat))
    for i, image in enumerate(order):
        # Pictures differ at least by as much as their means do.
        limit = _ALIKE * strength[image]
        end = int(np.searchsorted(middle, middle[i] + limit, side="right"))
        others = order[i + 1 : end]
        if len(others):
            difference = np.sqrt(((flat[others] - flat[image]) ** 2).mean(1))
            same = others[difference <= np.minimum(limit, _ALIKE * strength[others])]
            merged = np.isin(group, group[np.append(same, image)])
            group[merged] = group[merged].min()
    found = [np.flatnonzero(group == g) for g in np.unique(group)]
    return [members.tolist() for members in found if len(members) > 1]
