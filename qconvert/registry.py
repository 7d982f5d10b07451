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


def choices(registry: Mapping[str, Entry]) -> tuple[str, ...]:
    """The names of a registry, for a `Literal`."""
    return tuple(registry)
