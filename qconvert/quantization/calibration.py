"""Calibration: the distributions of every tensor that a plan may quantize, in one pass."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save
from torch import Tensor

from qconvert.errors import NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Others, Progress, Receiver, lend, map_numbered, no_progress
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import is_tensor, kind_of, operator_name
from qconvert.quantization.audit.facts import (
    ImageFacts,
    SetFacts,
    picture_of,
    profile_of,
    profiled,
)
from qconvert.quantization.distribution import (
    Distribution,
    Growing,
    Histogram,
    NotFiniteError,
    averaging_to,
    moved,
    outside,
    sampled_of,
)
from qconvert.quantization.watched import watched

_Ranges = dict[str, tuple[float, float]]
# What is kept of one image by itself: the range of each tensor, which the moving average needs in
# the order of the images, and what the audit needs; or the name of a tensor that is not finite.
_Found = tuple[_Ranges, ImageFacts] | str
# Each fourth image is held out of the ranges that it is compared with; of the result it is part.
_HELD_OUT = 4


@dataclass(frozen=True)
class Calibration:
    """Distributions by the name of the graph's value; the same for any order of the images,
    but for the moving average, which goes by sorted file name."""

    images: int
    tensors: dict[str, Distribution]

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        arrays: dict[str, np.ndarray] = {}
        scalars: dict[str, Any] = {}
        for name, seen in self.tensors.items():
            histogram = seen.histogram
            arrays[f"{name}.counts"] = histogram.counts
            scalars[name] = [
                seen.minimum, seen.maximum, seen.average_min, seen.average_max,
                histogram.exponent, histogram.first,
            ]  # fmt: skip
        metadata = {"images": str(self.images), "tensors": json.dumps(scalars)}
        # safetensors writes its metadata in a random order: one entry has one order.
        return safetensors_save(arrays, {"qconvert": json.dumps(metadata)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Calibration:
        """Reads what `to_bytes` wrote."""
        arrays = safetensors_load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])["__metadata__"]
        metadata = json.loads(header["qconvert"])
        images = int(metadata["images"])
        tensors = {}
        for name, scalars in json.loads(metadata["tensors"]).items():
            minimum, maximum, average_min, average_max, exponent, first = scalars
            tensors[name] = Distribution(
                images, minimum, maximum, average_min, average_max,
                Histogram(exponent, first, arrays[f"{name}.counts"]),
            )  # fmt: skip
        return cls(images, tensors)


def observed_values(model: FusedModel, split: frozenset[str] = frozenset()) -> set[str]:
    """The values that a plan may hold in int8: all tensors, but those between a layer and a ReLU or
    clip that is not `split` from it."""
    followers = {n.name: kind_of(model.graph, n) for n in model.graph.graph.nodes}
    inside = {
        layer for layer, follower in model.pairs.items() if followers[follower] in ("relu", "clip")
    }
    return {
        node.name
        for node in model.graph.graph.nodes
        if node.op != "output"
        and is_tensor(node)
        and followers[node.name] != "two_terms"
        and node.name not in inside - split
    }


def calibrate(
    model: FusedModel,
    images: ImageSet,
    read: Reader,
    *,
    batch_size: int,
    averaging: float,
    split: frozenset[str] = frozenset(),
    progress: Progress = no_progress,
    others: Others | None = None,
    facts: SetFacts | None = None,
) -> Calibration:
    """Runs the images one by one and adds up the distributions.

    Memory does not grow with the number of images, and the result does not depend on
    `batch_size`, on threads, on `others`, who call `lend_calibration` with the same, or (the moving
    average apart) on the order. `split` names layers whose result is observed before the activation
    that is paired with them. What the audit needs to know of the images is added to `facts`.

    Raises NotFiniteImageError naming the image whose tensors are not finite.
    """
    sums = _Sums(model, observed_values(model, split), averaging, sampled_of(len(images)))
    averages: dict[str, tuple[float, float]] = {}
    found = map_numbered(
        sums.add, images, read, batch_size=batch_size, progress=progress, others=others
    )
    with closing(found) as results:
        for path, seen in zip(images.files, results, strict=True):
            if isinstance(seen, str):
                raise NotFiniteImageError(
                    f"the float model computes NaN or infinity in {seen} on this image",
                    where=str(path),
                )
            ranges, of_image = seen
            for name, new in ranges.items():
                averages[name] = moved(averages.get(name, new), new, averaging)
            if facts is not None:
                facts.add(of_image)
    fitted, held_out = sums.found
    for rank in others.others if others is not None else ():
        for own, theirs in zip((fitted, held_out), others.take(rank), strict=True):  # type: ignore[union-attr]
            _merge(own, theirs)
    if facts is not None:
        facts.clipped = {n: outside(held_out[n], fitted[n]) for n in fitted if n in held_out}
    total = fitted
    _merge(total, held_out)
    tensors = {name: averaging_to(total[name], averages[name]) for name in sorted(total)}
    return Calibration(len(images), tensors)


def _merge(total: dict[str, Distribution], part: dict[str, Distribution]) -> None:
    for name, seen in part.items():
        total[name] = total[name] + seen if name in total else seen


def lend_calibration(
    model: FusedModel,
    images: ImageSet,
    read: Reader,
    receiver: Receiver,
    *,
    batch_size: int,
    averaging: float,
    split: frozenset[str] = frozenset(),
) -> None:
    """This rank's share of what rank 0 does in `calibrate`: the ranges and facts of each image, and
    in the end the distributions of all of them together."""
    sums = _Sums(model, observed_values(model, split), averaging, sampled_of(len(images)))
    lend(sums.add, images, read, receiver, batch_size=batch_size)
    receiver.give(sums.found)


class _Sums:
    """The distributions of the images so far, added up by whichever thread has another one: counts
    and extremes do not depend on the order. Those that are held out are added up apart."""

    def __init__(self, model: FusedModel, wanted: set[str], averaging: float, sampled: int) -> None:
        self._averaging = averaging
        self._names = {n.name: operator_name(n) for n in model.graph.graph.nodes}
        self._growing = tuple({name: Growing(sampled) for name in wanted} for _ in range(2))
        self._profiled = profiled([name for name in self._names if name in wanted])
        # The ranges of the image that a thread is at.
        self._at = threading.local()
        self._run = watched(model, wanted, self._see)

    def add(self, inputs: Inputs, place: int) -> _Found:
        """Runs the model on the image at a place in the set."""
        self._at.ranges, self._at.facts = {}, ImageFacts(picture=picture_of(inputs))
        self._at.growing = self._growing[place % _HELD_OUT == _HELD_OUT - 1]
        try:
            self._run(*inputs)
        except NotFiniteError as error:
            return self._names[str(error)]
        return self._at.ranges, self._at.facts

    def _see(self, name: str, value: Tensor) -> None:
        at = self._at
        try:
            new = at.growing[name].add(value)
        except NotFiniteError:
            raise NotFiniteError(name) from None
        at.ranges[name] = moved(at.ranges.get(name, new[:2]), new[:2], self._averaging)
        at.facts.see(name, new)
        if name in self._profiled:
            at.facts.profiles[name] = profile_of(value)

    @property
    def found(self) -> tuple[dict[str, Distribution], dict[str, Distribution]]:
        """What was seen of each tensor that was seen, without averages; and apart, in the images
        that are held out."""
        fitted, held_out = (
            {name: g.distribution for name, g in growing.items() if g.images}
            for growing in self._growing
        )
        return fitted, held_out


def observed_in(model: FusedModel, inputs: Inputs) -> dict[str, Distribution]:
    """The distributions of every value for one image.

    Raises NotFiniteError.
    """
    sums = _Sums(model, {node.name for node in model.graph.graph.nodes}, 1.0, sampled_of(1))
    found = sums.add(inputs, 0)
    if isinstance(found, str):
        raise NotFiniteError(found)
    return {name: averaging_to(seen, found[0][name]) for name, seen in sums.found[0].items()}
