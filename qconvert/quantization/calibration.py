"""Calibration: the distributions of every tensor that a plan may quantize, in one pass."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load as safetensors_load
from safetensors.numpy import save as safetensors_save
from torch.fx import GraphModule, Interpreter, Node

from qconvert.errors import NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Others, Progress, Receiver, lend, map_images, no_progress
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import is_tensor, kind_of, operator_name
from qconvert.quantization.distribution import (
    Distribution,
    Histogram,
    NotFiniteError,
    averaged,
    observe,
)

# What is kept of one image by itself: the range of each tensor, which the moving average needs in
# the order of the images; or the name of a tensor that is not finite.
_Ranges = dict[str, tuple[float, float]] | str


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
            arrays[f"{name}.channel_min"] = seen.channel_min
            arrays[f"{name}.channel_max"] = seen.channel_max
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
                arrays[f"{name}.channel_min"], arrays[f"{name}.channel_max"],
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
        if node.op != "output" and is_tensor(node) and node.name not in inside - split
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
) -> Calibration:
    """Runs the images one by one and adds up the distributions.

    Memory does not grow with the number of images, and the result does not depend on
    `batch_size`, on threads, on `others`, who call `lend_calibration` with the same, or (the moving
    average apart) on the order. `split` names layers whose result is observed before the activation
    that is paired with them.

    Raises NotFiniteImageError naming the image whose tensors are not finite.
    """
    sums = _Sums(model, observed_values(model, split), averaging)
    averages: dict[str, tuple[float, float]] = {}
    found = map_images(
        sums.add, images, read, batch_size=batch_size, progress=progress, others=others
    )
    with closing(found) as results:
        for path, ranges in zip(images.files, results, strict=True):
            if isinstance(ranges, str):
                raise NotFiniteImageError(
                    f"the float model computes NaN or infinity in {ranges} on this image",
                    where=str(path),
                )
            for name, new in ranges.items():
                old = averages.get(name, new)
                low, high = (averaged(a, b, averaging) for a, b in zip(old, new, strict=True))
                averages[name] = (low, high)
    if others is not None:
        for rank in others.others:
            sums.merge(others.take(rank))
    tensors = {
        name: replace(total, average_min=averages[name][0], average_max=averages[name][1])
        for name, total in sorted(sums.total.items())
    }
    return Calibration(len(images), tensors)


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
    """This rank's share of what rank 0 does in `calibrate`: the ranges of each image, and in the
    end the distributions of all of them together."""
    sums = _Sums(model, observed_values(model, split), averaging)
    lend(lambda inputs, _: sums.add(inputs), images, read, receiver, batch_size=batch_size)
    receiver.give(sums.total)


class _Sums:
    """The distributions of the images so far, added up by whichever thread has another one: counts
    and extremes do not depend on the order. The averages in them are of no use."""

    def __init__(self, model: FusedModel, wanted: set[str], averaging: float) -> None:
        self._model = model
        self._wanted = wanted
        self._averaging = averaging
        self._lock = threading.Lock()
        self.total: dict[str, Distribution] = {}

    def add(self, inputs: Inputs) -> _Ranges:
        """Runs the model on an image."""
        seen = _Seen(self._wanted, self._averaging)
        try:
            seen.run(self._model, inputs)
        except NotFiniteError:
            return seen.at
        self.merge(seen.distributions)
        return {name: (d.average_min, d.average_max) for name, d in seen.distributions.items()}

    def merge(self, found: dict[str, Distribution]) -> None:
        """Adds what was observed on other images."""
        with self._lock:
            for name, distribution in found.items():
                before = self.total.get(name)
                self.total[name] = (
                    before.merged(distribution, self._averaging) if before else distribution
                )


def observed_in(model: FusedModel, inputs: Inputs) -> dict[str, Distribution]:
    """The distributions of every value for one image.

    Raises NotFiniteError.
    """
    seen = _Seen({node.name for node in model.graph.graph.nodes}, 1.0)
    seen.run(model, inputs)
    return seen.distributions


class _Seen:
    """What was observed on one image; a part that runs several times adds up."""

    def __init__(self, wanted: set[str], averaging: float) -> None:
        self._wanted = wanted
        self._averaging = averaging
        self.distributions: dict[str, Distribution] = {}
        self.at = ""

    def run(self, model: FusedModel, inputs: Inputs) -> None:
        """Runs the model and observes the wanted values as they are computed."""
        observed = model.assembly.eager(model.graph, lambda part: _Observing(part, self).run)
        with torch.inference_mode():
            observed(*inputs)

    def see(self, node: Node, value: Any) -> None:
        """Adds a value, if it is wanted."""
        if node.name in self._wanted and isinstance(value, torch.Tensor) and value.numel():
            self.at = operator_name(node)
            found, before = observe(value), self.distributions.get(node.name)
            self.distributions[node.name] = (
                before.merged(found, self._averaging) if before else found
            )


class _Observing(Interpreter):
    """Runs a part and shows its values as they are computed."""

    def __init__(self, part: GraphModule, seen: _Seen) -> None:
        super().__init__(part)
        self._seen = seen

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        self._seen.see(node, value)
        return value
