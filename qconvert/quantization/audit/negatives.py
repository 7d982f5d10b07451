"""Which images are negatives: those that would be more usual if they were inverted.

A negative has the edges of a photograph and may be as bright, so among few images it is hardly
farther from the others than the oddest of them. But what is foreign about it goes when it is
inverted again, and what is odd about others does not. So the model is shown the negatives of the
farthest images, and their distances are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from qconvert.images.stream import one_thread
from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.audit.foreign import Distances, distances_from, features, standardized

# Of the images, the farthest are looked at: this share, no more than so many, and none that is
# nearer than this share of the limit.
_SHARE, _MOST, _LEAST = 1 / 8, 64, 0.62
# Others that they are compared with.
_COMPARED = 500
# By how much the logarithm of the distance must fall. Measured on 96 crops of photographs: 0.4 to
# 0.9 for negatives, 0.09 at most for others.
_FALLS = 0.3
# Usual images whose negatives are looked at, too, and by how much the logarithm of their distance
# must grow: where inverting makes nothing odder, no negative can be told.
_CONTROLS, _GROWS = 16, 0.1


def suspects(found: Distances) -> list[int]:
    """The images whose negatives are to be looked at."""
    ratio = found.values / found.limits
    order = np.argsort(-ratio, kind="stable")[: min(round(_SHARE * len(ratio)), _MOST)]
    return [int(i) for i in order if ratio[i] >= _LEAST]


def negatives(
    facts: SetFacts, found: Distances, run: Callable[[Sequence[int]], SetFacts]
) -> list[int]:
    """The suspects that are negatives, in order; `run` shows the model the negatives of images and
    returns what it finds, image by image in the order of their places."""
    asked = sorted(suspects(found))
    if not asked:
        return []
    far = set(found.far)
    usual = [i for i in range(len(facts)) if i not in far and i not in asked]
    usual = usual[:: -(-len(usual) // _COMPARED)] if usual else []
    if not usual:
        return []
    controls = usual[:: -(-len(usual) // _CONTROLS)]
    shown = sorted([*asked, *controls])
    joined = facts.only([*usual, *asked]).with_more(run(shown))
    points = torch.from_numpy(standardized(features(joined, 0, 1), len(usual)))
    if not points.numel():
        return []
    with one_thread():  # the same sums, however many threads there are
        logs = distances_from(points, torch.arange(len(usual))).tolist()
    own = dict(zip([*usual, *asked], logs, strict=False))
    inverted = dict(zip(shown, logs[len(own) :], strict=True))
    falls = {i: own[i] - inverted[i] for i in shown}
    if median(falls[i] for i in controls) > -_GROWS:
        return []
    return [i for i in asked if falls[i] > _FALLS]
