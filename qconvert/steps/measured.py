"""Which output of the model is measured, and against which file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qconvert.models.outputs import ONLY, are_answers, choose, only
from qconvert.steps.session import Session

# The user's model as it was, in TorchScript.
FLOAT = "float.pt"


@dataclass(frozen=True)
class Measured:
    """Which output of the model is measured, its shape for one image, and whether its largest
    values are answers; or that all of it are `detections`."""

    name: str
    shape: tuple[int, ...]
    answers: bool
    detections: bool = False

    def of(self, model: Callable[..., Any]) -> Callable[..., Tensor]:
        """The model with this output alone."""
        return only(model, self.name)


def measured(record: dict[str, Any]) -> Measured:
    """Which output is measured, from a record of `fuse`."""
    name = record["measured_output"]
    shape = tuple(record["outputs"][name])
    return Measured(name, shape, record["answers"], record["detections"])


def measured_of(session: Session, outputs: dict[str, Tensor], detections: bool) -> Measured:
    """Which of the float model's outputs is measured.

    Raises ModelOutputError when there is none as the qconfig says."""
    section = session.config.model
    name = choose(outputs, section.output_name)
    shape = tuple(outputs[name].shape)
    if detections and section.output is None:
        return Measured(name, shape, answers=False, detections=True)
    return Measured(name, shape, are_answers(outputs[name], section.answers))


def say_what_is_measured(session: Session, outputs: dict[str, Tensor], seen: Measured) -> None:
    """A line where a user could expect another."""
    say, section = session.voice.say, session.config.model
    if seen.detections:
        say("model: its outputs are detections: boxes with labels and scores are compared")
    elif len(outputs) > 1 and section.output is None:
        others = ", ".join(f"{name!r}" for name in outputs if name != seen.name)
        say(f"model: of its outputs {seen.name!r} is measured, not {others} (model.output)")
    elif len(outputs) == 1 and seen.name != ONLY:
        say(f"model: its output is {seen.name!r}")
    decoded = session.config.benchmark.decoder is not None
    if section.answers == "auto" and not (seen.answers or seen.detections or decoded):
        say(
            f"model: outputs of shape {list(seen.shape)} are taken for numbers, not classes: "
            "cosine and SQNR are measured (model.answers)"
        )
