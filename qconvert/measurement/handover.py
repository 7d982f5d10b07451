"""Hands tensors to another process, through a file or a pipe."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import torch

_LENGTH_BYTES = 8


def write_tensors(path: Path, value: Any) -> None:
    """Writes what `torch.load` reads; raises OSError where torch.save has a RuntimeError."""
    path.write_bytes(_saved(value))


def write_message(pipe: IO[bytes], value: Any) -> None:
    """Writes what `read_message` reads at the other end."""
    content = _saved(value)
    pipe.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(content)
    pipe.flush()


def read_message(pipe: IO[bytes]) -> Any:
    """What `write_message` wrote; None where the other end has closed."""
    length = pipe.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    content = pipe.read(int.from_bytes(length, "little"))
    return torch.load(io.BytesIO(content), weights_only=True)


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
