"""Names that a qconfig may use, each with what it stands for, free of torch.

An entry says where its code lives, so that the schema, `--help` and the docs can list the
choices without loading anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """`target` is `module:name` inside qconvert; `about` is one line for people."""

    target: str
    about: str

    def load(self) -> Callable[..., Any]:
        """Imports and returns what the entry names."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(module), name)


_OBSERVERS = "qconvert.quantization.observers"
_WEIGHTS = "qconvert.quantization.weights"

ACTIVATION_OBSERVERS: Mapping[str, Entry] = {
    "auto": Entry(
        f"{_OBSERVERS}:least_squares",
        "the range that loses least on the tensor's own distribution; today as `histogram`",
    ),
    "minmax": Entry(f"{_OBSERVERS}:minmax", "the smallest and the largest value seen"),
    "moving_average": Entry(
        f"{_OBSERVERS}:moving_average",
        "each image's smallest and largest value, averaged exponentially by sorted file name",
    ),
    "percentile": Entry(f"{_OBSERVERS}:percentile", "the range that holds a share of the values"),
    "histogram": Entry(
        f"{_OBSERVERS}:least_squares", "the range with the least mean squared error in 8 bits"
    ),
}

WEIGHT_OBSERVERS: Mapping[str, Entry] = {
    "auto": Entry(
        f"{_WEIGHTS}:auto",
        "as `histogram` in channels where clipping takes away at least a quarter of the squared "
        "error, as `per_channel_minmax` in others",
    ),
    "minmax": Entry(f"{_WEIGHTS}:minmax", "one range for the tensor"),
    "per_channel_minmax": Entry(f"{_WEIGHTS}:minmax", "one range for each output channel"),
    "percentile": Entry(f"{_WEIGHTS}:percentile", "the range that holds a share of the values"),
    "histogram": Entry(
        f"{_WEIGHTS}:least_squares", "the range with the least mean squared error in 8 bits"
    ),
}

# The words before the colon of `model.source` that name a library.
MODEL_SOURCES: Mapping[str, Entry] = {
    "torchvision": Entry(
        "qconvert.models.source:torchvision", "a model of `torchvision.models.list_models()`"
    ),
    "timm": Entry(
        "qconvert.models.source:timm",
        "a model of `timm.list_models()`, with its own preprocessing as default "
        "(`pip install 'qconvert[timm]'`)",
    ),
}


_METRICS = "qconvert.measurement.metrics"
_ANSWERS = "qconvert.measurement.answers"

# What an output says, and how sure the model is.
DECODERS: Mapping[str, Entry] = {
    "ctc": Entry(
        f"{_ANSWERS}:Ctc",
        "text: the best path of connectionist temporal classification, whose probability is the "
        "confidence; outputs are (images, steps, characters + 1) or (steps, images, characters "
        "+ 1), `data.classes` names the characters, `benchmark.ctc_blank` the other output",
    ),
}

METRICS: Mapping[str, Entry] = {
    "top1": Entry(
        f"{_METRICS}:TopK",
        "share of images whose class has the largest output; `topK` for any number: the K largest",
    ),
    "per_class": Entry(f"{_METRICS}:TopK", "top-1 of the images of each class"),
    "exact_match": Entry(f"{_METRICS}:ExactMatch", "share of texts without a mistake"),
    "character_error_rate": Entry(
        f"{_METRICS}:CharacterErrorRate",
        "characters to insert, delete or replace, over the characters of the right texts",
    ),
    "mean_iou": Entry(
        f"{_METRICS}:MeanIou",
        "intersection over union of each class's pixels in all images, mean over the classes",
    ),
    "cosine": Entry(
        f"{_METRICS}:Cosine", "of the angle between float's output and the model's; needs no label"
    ),
}


def choices(registry: Mapping[str, Entry]) -> tuple[str, ...]:
    """The names of a registry, for a `Literal`."""
    return tuple(registry)
