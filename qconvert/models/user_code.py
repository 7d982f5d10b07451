"""Where in the user's own code something went wrong."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import torch

import qconvert

# Frames of these are not the user's.
_INSTALLED = (
    Path(torch.__file__).parent,
    Path(qconvert.__file__).parent,
    Path(sys.base_prefix),
)


def is_users(file: str) -> bool:
    """Whether a file is the user's own: no part of Python, torch or qconvert, and a real file."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_absolute() or not path.is_file():
        return False
    return not any(path.is_relative_to(folder) for folder in _INSTALLED)


def place_of(error: BaseException) -> str:
    """` (file:line: code)` of the user's innermost frame, or an empty string."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    if not frames:
        return ""
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})"
