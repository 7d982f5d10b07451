"""Which images are unlike the others, by what the model makes of them.

Each image is a point: what it shows of each tensor, and of channels, as the model sees it from the
first layer to the last. Its distance from the others is that of Mahalanobis (1936), with a
covariance that is shrunk, for there are more features than images; without the image itself.
Foreign images must not become what is usual, so it is taken from the images that are closest
together, as in the minimum covariance determinant of Rousseeuw and Van Driessen (1999), and then
from all that are not far. Images that are far together and alike, and more than a few, are a kind
of their own, which belongs to the set: frames of one film, crops of one photograph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qconvert.images.stream import one_thread
from qconvert.quantization.audit.facts import SetFacts

# Among fewer images nothing is usual.
FEWEST = 40
# So many images are compared with one another; of more, each n-th.
_COMPARED = 1000
# Features are held within so many deviations.
_CLIP = 8.0
# Share of the images that are taken for usual at first, and rounds until it is settled.
_USUAL, _ROUNDS = 0.92, 8
# Variance that is added in each direction, as a share of all variance.
_SHRINKAGE = 0.005
# What is far: so many deviations of the logarithm of distances beyond their median; more of few
# images, whose deviation is not known well.
_FAR, _FAR_OF_FEW = 3.1, 25.0
_LEAST_DEVIATION = 0.05
# Images with such a cosine between them are alike; a larger share of all is a kind of its own.
_ALIKE, _GROUP = 0.4, 0.05
# A channel with less than this share of what it usually has is silent.
_SILENT = 0.1


@dataclass(frozen=True)
class Distances:
    """How far each image is from the others, and beyond what each is named."""

    values: np.ndarray
    limits: np.ndarray

    @property
    def far(self) -> list[int]:
        """The images beyond their limit, the farthest first."""
        ratio = self.values / self.limits
        beyond = np.flatnonzero(ratio > 1)
        return [int(i) for i in beyond[np.argsort(-ratio[beyond], kind="stable")]]


def distances(facts: SetFacts) -> Distances | None:
    """None where there are too few images, or all are the same."""
    count = len(facts)
    if count < FEWEST:
        return None
    values, limits = np.empty(count), np.empty(count)
    parts = -(-count // _COMPARED)
    for part in range(parts):
        points = standardized(features(facts, part, parts))
        if not points.size:
            return None
        with one_thread():  # the same sums, however many threads there are
            found, limit = _judged(torch.from_numpy(points))
        values[part::parts], limits[part::parts] = found.exp().numpy(), math.exp(limit)
    return Distances(values, limits)


def features(facts: SetFacts, part: int, parts: int) -> np.ndarray:
    """(images, features), float64, of one of so many `parts` of the images.

    Of each tensor the logarithms of the size of its values and of its range, and its balance; of
    channels the logarithm of the size, the balance, and the mean beside the size of all of them.
    """
    blocks = [np.zeros((len(range(part, len(facts), parts)), 0))]
    for rows in facts.tensors.values():
        low, high, mean, size = rows[part::parts].astype(np.float64).T
        blocks.append(np.stack([_log(size), _log(high - low), _ratio(mean, size)], 1))
    for rows in facts.profiles.values():
        means, sizes = np.split(rows[part::parts].astype(np.float64), 2, axis=1)
        whole = np.broadcast_to(sizes.mean(1, keepdims=True), sizes.shape)
        blocks.append(np.hstack([_log(sizes), _ratio(means, sizes), _ratio(means, whole)]))
    return np.hstack(blocks)


def _log(x: np.ndarray) -> np.ndarray:
    """The logarithm, in which next to nothing is like nothing."""
    usual = np.median(x, axis=0)
    floor = _SILENT * np.where(usual > 0, usual, x.mean(0))
    return np.log(x + np.where(floor > 0, floor, 1.0))


def _ratio(x: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Of values to their absolute values: from -1, where all are negative, to 1."""
    return np.divide(x, size, out=np.zeros_like(x), where=size > 0)


def standardized(x: np.ndarray, first: int | None = None) -> np.ndarray:
    """Each feature by its median and spread, of the `first` images or of all, within limits;
    without those that hardly vary."""
    usual = x[:first]
    middle = np.median(usual, axis=0)
    spread = 1.4826 * np.median(np.abs(usual - middle), axis=0)
    spread = np.where(spread > 0, spread, usual.std(0))
    varies = spread > 1e-6
    found: np.ndarray = ((x - middle)[:, varies] / spread[varies]).clip(-_CLIP, _CLIP)
    return found


def distances_from(points: Tensor, usual: Tensor) -> Tensor:
    """The logarithm of each point's distance from the `usual` ones, by their indexes."""
    return _from(points @ points.T, usual)[0]


def _judged(points: Tensor) -> tuple[Tensor, float]:
    """The logarithm of each point's distance, and beyond what it is far."""
    products = points @ points.T
    usual = _closest(_to_neighbours(points))
    for _ in range(3):
        again = _closest(_from(products, usual)[0])
        if torch.equal(again, usual):
            break
        usual = again
    of_a_kind = torch.zeros(len(points), dtype=torch.bool)
    for _ in range(_ROUNDS):
        found, between = _from(products, usual)
        limit = _limit(found)
        far = (found > limit).nonzero()[:, 0]
        alike = _cosines(between[far][:, far]) > _ALIKE
        of_a_kind[far[alike.sum(1) > math.ceil(_GROUP * len(points))]] = True
        again = ((found <= limit) | of_a_kind).nonzero()[:, 0]
        if torch.equal(again, usual):
            break
        usual = again
    return torch.where(of_a_kind, found.clamp(max=limit), found), limit


def _limit(logs: Tensor) -> float:
    middle = logs.median()
    deviation = 1.4826 * float((logs - middle).abs().median())
    times = _FAR + _FAR_OF_FEW / len(logs)
    return float(middle) + times * max(deviation, _LEAST_DEVIATION)


def _closest(values: Tensor) -> Tensor:
    """The indexes of the lowest values."""
    count = int(_USUAL * len(values))
    return values.argsort(stable=True)[:count].sort().values


def _to_neighbours(points: Tensor) -> Tensor:
    """The distance to the point than which a tenth of the others are nearer."""
    return torch.cdist(points, points).kthvalue(1 + len(points) // 10, dim=1).values


def _from(products: Tensor, usual: Tensor) -> tuple[Tensor, Tensor]:
    """From the inner products of points with one another: the logarithm of each one's distance from
    the `usual` ones, of these without itself; and the inner products in the metric of that."""
    means = products[:, usual].mean(1)
    centred = products - means[:, None] - means + means[usual].mean()
    own, theirs = centred[usual][:, usual], centred[:, usual]
    # Woodbury: what is needed of the features' covariance is among the points.
    added = float(own.diagonal().sum()) * _SHRINKAGE or 1.0
    shrunk = own + added * torch.eye(len(own), dtype=own.dtype)
    between = (centred - theirs @ torch.linalg.solve(shrunk, theirs.T)) / added
    found = between.diagonal().clone()
    # Without itself: Sherman and Morrison.
    found[usual] = found[usual] / (1 - found[usual]).clamp(min=1e-9)
    return (found * len(usual)).clamp(min=1e-12).log() / 2, between


def _cosines(between: Tensor) -> Tensor:
    sizes = between.diagonal().clamp(min=1e-12).sqrt()
    return between / sizes[:, None] / sizes
