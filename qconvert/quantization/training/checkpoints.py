"""Where training is after each epoch, so that it can go on from there."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qconvert.quantization.training.history import Epoch


@dataclass(frozen=True)
class Checkpoint:
    """After the epochs of `history` (the first is the start): what was learned, the best of it, the
    optimizer's state, and how far the learning rate's schedule has come, from 0 to 1."""

    history: tuple[Epoch, ...]
    state: list[Tensor]
    best: list[Tensor]
    best_epoch: int
    optimizer: dict[str, Any]
    progress: float

    def to_bytes(self) -> bytes:
        """As torch.save writes it."""
        content = {**vars(self), "history": [epoch.model_dump() for epoch in self.history]}
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """What `to_bytes` made; nothing in it is executed."""
        found = torch.load(io.BytesIO(content), weights_only=True)
        history = tuple(map(Epoch.model_validate, found.pop("history")))
        return cls(history=history, **found)


# Writes one.
Keep = Callable[[Checkpoint], None]
