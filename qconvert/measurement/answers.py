"""What a model's output says, and how sure the model is of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert.errors import LabelError, MetricError
from qconvert.user_code import guarded

# How far from 1 the sum of a row of shares may be.
_ROUNDING = 1e-3


class Answer(NamedTuple):
    """The answer to one image, a class's index or a text, and the probability that the model gives
    it, from 0 to 1; NaN where that is not known."""

    value: Any
    confidence: float


class Decoder:
    """From the output for one image to its answer."""

    def __call__(self, output: Tensor) -> Answer:
        """`output` has the axis of images, of length 1."""
        raise NotImplementedError

    def check(self, shape: Sequence[int]) -> None:
        """Raises LabelError when it does not read outputs of this shape for one image."""


class Classes(Decoder):
    """The largest output of (1, classes); of equals the first. Its confidence is its softmax, or
    the output itself where outputs are shares already."""

    def __call__(self, output: Tensor) -> Answer:
        """See `Decoder`."""
        row = output[0].double()
        # Sorted as top-k is: torch's argmax promises no order of equals.
        best = int(torch.sort(row, descending=True, stable=True).indices[0])
        return Answer(best, float(_logarithms(row).exp()[best]))


@dataclass(frozen=True)
class Ctc(Decoder):
    """Text from the outputs of connectionist temporal classification (Graves et al. 2006):
    (1, steps, classes) or (steps, 1, classes), logits, their logarithms or shares.

    The text is that of the best path: the likeliest class of each step, repeats taken once, blanks
    left out. Its confidence is the probability of the text, the sum over all paths that spell it.
    `alphabet` are the classes in order without the blank; `blank` is its index, -1 the last.
    """

    alphabet: Sequence[str]
    blank: int = 0

    def __call__(self, output: Tensor) -> Answer:
        """See `Decoder`."""
        steps = _logarithms(output.reshape(-1, output.shape[-1]).double())
        blank = self.blank % steps.shape[1]
        path = torch.unique_consecutive(steps.argmax(1))
        found = path[path != blank]
        text = "".join(self.alphabet[i - (i > blank)] for i in found.tolist())
        # Zeros have a logarithm of minus infinity, which would make a sum of them NaN.
        finite = steps.clamp(min=torch.finfo(torch.float32).min)
        loss = F.ctc_loss(
            finite.unsqueeze(1),
            found.unsqueeze(0),
            torch.tensor([len(steps)]),
            torch.tensor([len(found)]),
            blank=blank,
            reduction="sum",
        )
        return Answer(text, float(torch.exp(-loss).clamp(0, 1)))

    def check(self, shape: Sequence[int]) -> None:
        """See `Decoder`."""
        if len(shape) != 3 or 1 not in shape[:2]:
            raise LabelError(
                f"the output has shape {list(shape)}, which CTC does not read",
                where="benchmark.decoder",
                fix="let the model return (images, steps, classes) or (steps, images, classes), or "
                "choose another output with `model.output`",
            )
        if len(self.alphabet) + 1 != shape[-1]:
            raise LabelError(
                f"data.classes names {len(self.alphabet)} characters, the model has {shape[-1]} "
                "outputs at each step",
                where="benchmark.decoder",
                fix="name every output but the blank, in the model's order, one a line (a line "
                "with a space is a space)",
            )
        if not -1 <= self.blank < shape[-1]:
            raise LabelError(
                f"the model has {shape[-1]} outputs at each step, none has the place {self.blank}",
                where="benchmark.ctc_blank",
                fix="count from 0; -1 is the last",
            )


@dataclass(frozen=True)
class Users(Decoder):
    """The user's own: from the output for one image to a text, or to a text and its confidence."""

    function: Callable[[Tensor], Any]

    def __call__(self, output: Tensor) -> Answer:
        """See `Decoder`; raises MetricError for what is no answer."""
        with guarded("calling it", MetricError, "benchmark.decoder"):
            found = self.function(output)
        known = isinstance(found, tuple) and len(found) == 2
        value, confidence = found if known else (found, math.nan)
        sure = isinstance(confidence, (int, float)) and 0 <= confidence <= 1
        if not isinstance(value, (str, int)) or (known and not sure):
            raise MetricError(
                f"returned {found!r:.100}",
                where="benchmark.decoder",
                fix="return a text or a class's index, or that and a confidence from 0 to 1",
            )
        return Answer(value, float(confidence))


def _logarithms(rows: Tensor) -> Tensor:
    """The logarithm of the shares along the last axis, of logits, of logarithms or of shares."""
    if bool((rows >= 0).all()) and bool(((rows.sum(-1) - 1).abs() <= _ROUNDING).all()):
        return rows.log()
    return F.log_softmax(rows, -1)
