"""Tries a traced model at another height and width than it was traced at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from qconvert import torchscript
from qconvert.errors import VerificationError
from qconvert.images.preprocess import Inputs
from qconvert.quantization.lowering.verification import NOT_KEPT, difference_from

# How much larger: first height and width, then width alone (lines of text have a fixed height).
# Multiples of 32, by which many networks must divide.
_LARGER = ((64, 32), (0, 32))


@dataclass(frozen=True)
class OtherSize:
    """Inputs of which the image, at `place`, has another height and width, which the float model
    accepts, and why the int8 model does not compute there what it should (None: it does)."""

    inputs: Inputs
    place: int
    why_not: str | None

    def record(self) -> dict[str, Any]:
        """For the step's record."""
        return {"shape": list(self.shape), "why_not": self.why_not}

    @property
    def shape(self) -> torch.Size:
        """The image's."""
        return self.inputs[self.place].shape


def try_other_size(
    original: Callable[..., Any],
    lowered: Callable[..., Any],
    script: Callable[..., Any],
    example: Inputs,
) -> OtherSize | None:
    """The example at another size; None when the float model `original` accepts none, or more or
    less than one input is an image.

    `script` was traced from `lowered`, which is bound to no size.
    """
    images = [i for i, x in enumerate(example) if _is_image(x)]
    if len(images) != 1:
        return None
    place = images[0]
    x = example[place]
    for height, width in _LARGER:
        size = (x.shape[2] + height, x.shape[3] + width)
        larger = _resized(x, size)
        inputs = (*example[:place], larger, *example[place + 1 :])
        try:
            with torch.inference_mode():
                original(*inputs)
        except Exception:  # the user's model says in its own way that it works at one size only
            continue
        return OtherSize(inputs, place, why_not_at(script, lowered, inputs))
    return None


def _is_image(x: torch.Tensor) -> bool:
    return x.dim() == 4 and (x.is_floating_point() or x.dtype == torch.uint8)


def _resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    larger = F.interpolate(x.float(), size=size, mode="bilinear", antialias=True)
    return larger if x.is_floating_point() else larger.round().to(x.dtype)


def why_not_at(
    script: Callable[..., Any], lowered: Callable[..., Any], inputs: Inputs
) -> str | None:
    """Why a traced module does not compute here what its source does; None if it does."""
    try:
        with torch.inference_mode():
            difference_from(lowered, inputs, script(*inputs))
    except VerificationError as error:
        return error.facts[0].removesuffix(NOT_KEPT)
    except torchscript.RUN_ERRORS as error:
        return str(error).strip().splitlines()[-1]
    return None
