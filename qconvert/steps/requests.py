"""What rank 0 asks the other ranks for, and how it asks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from qconvert.quantization.plan import Plan
from qconvert.quantization.training.learner import Example
from qconvert.ranks.team import First
from qconvert.steps.readable import Skipped


@dataclass(frozen=True)
class Base:
    """How another rank makes the float model that int8 is made of: the fused model, `equalized` or
    not, whose tensors in `two_terms` are read so (scale, zero point and readers by value)."""

    equalized: bool = False
    two_terms: Mapping[str, tuple[float, int, tuple[str, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """How another rank makes the model that is judged: it loads the `file` with this digest; or it
    makes the `base` and simulates the `plan` in float."""

    file: str | None = None
    plan: Plan | None = None
    base: Base = field(default_factory=Base)


@dataclass(frozen=True)
class Kept:
    """A file of rank 0's output folder, which others need not see; it is kept by its digest."""

    digest: str
    content: bytes


@dataclass(frozen=True)
class Calibrating:
    """The share of `calibrate`, of the model as it is or `equalized`."""

    skipped: frozenset[Skipped]
    equalized: bool = False


@dataclass(frozen=True)
class Judging:
    """The share of `judge`: the model of the recipe beside the float model in the file of digest
    `original`; `fused` is the record of `fuse`, which says what is measured."""

    skipped: frozenset[Skipped]
    fused: dict[str, Any]
    original: str
    recipe: Recipe


@dataclass(frozen=True)
class Learning:
    """The student and its teacher, that each rank makes of the `base`: the student with the weights
    in the file of digest `weights` by the `plan`, which it `rounds` or not. `powers` are what
    losses are measured in proportion to, `fused` is the record of `fuse`."""

    skipped: frozenset[Skipped]
    fused: dict[str, Any]
    plan: Plan
    weights: str
    base: Base
    rounds: bool
    powers: dict[str, float]


@dataclass(frozen=True)
class Step:
    """The share of a step of training: what was learned so far, and the images of the batch."""

    state: list[Tensor]
    examples: tuple[Example, ...]
    epoch: int


def send_file(others: First, path: Path) -> str:
    """Gives all others a file, each content once, and returns its digest."""
    return send_content(others, path.read_bytes())


def send_content(others: First, content: bytes) -> str:
    """As `send_file`, of what may be in no file yet."""
    key = hashlib.sha256(content).hexdigest()
    if key not in others.sent:
        others.sent.add(key)
        others.ask(Kept(key, content))
    return key


def file_recipe(others: First, path: Path) -> Recipe:
    """That of a model in a file of the output folder; all others are given the file."""
    return Recipe(file=send_file(others, path))
