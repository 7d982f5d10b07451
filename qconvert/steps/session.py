"""What the steps of one run share: settings, images, models built once, and a voice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qconvert import __version__, torchscript
from qconvert.errors import ImageError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import load
from qconvert.images.stream import Progress, input_shape
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.models.source import FloatModel, build
from qconvert.qconfig import QConfig
from qconvert.workspace import Workspace

# Images that prove a model equal to another; enough for every layer to be used.
PROOF_IMAGES = 16


class Voice(Protocol):
    """How a step talks while it works; results are returned, not said."""

    def say(self, text: str) -> None:
        """One line: a decision, a fallback, a warning."""
        ...

    def progress(self, title: str) -> AbstractContextManager[Progress]:
        """A progress display for one loop over images."""
        ...

    def busy(self, title: str) -> AbstractContextManager[None]:
        """A sign of life for work that cannot be counted."""
        ...


@dataclass(frozen=True)
class Session:
    """One run of one command on one qconfig. What is expensive is made when first asked for."""

    config: QConfig
    config_path: Path
    voice: Voice
    force: bool = False

    @cached_property
    def workspace(self) -> Workspace:
        """The output folder."""
        return Workspace(self.config.output)

    @cached_property
    def calibration_images(self) -> ImageSet:
        """The images that set the ranges, at most `calibration.images` of them."""
        # Ranges need no labels: the folder may be flat while the evaluation folder is not.
        found = read_folder(self.config.data.calibration, "none", None)
        section = self.config.calibration
        if len(found) > section.images:
            self.voice.say(
                f"calibration: {section.images} of {len(found)} images, drawn with seed "
                f"{section.seed} (calibration.images)"
            )
        return found.sample(section.images, section.seed)

    @cached_property
    def evaluation_images(self) -> ImageSet:
        """The images that accuracy is measured on."""
        data = self.config.data
        return read_folder(self.config.evaluation, data.labels, data.classes)

    @property
    def judged_on_calibration_images(self) -> bool:
        """Whether accuracy is measured on the images that set the ranges."""
        return self.config.evaluation == self.config.data.calibration

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input: (1, channels, height, width)."""
        return input_shape(self.calibration_images, self.config.data.preprocess)

    def check_images(self) -> None:
        """Fails before the slow work when the evaluation images cannot be judged by.

        Raises ImageError.
        """
        found = input_shape(self.evaluation_images, self.config.data.preprocess)
        if found != self.shape:
            raise ImageError(
                f"the inputs are {found[2]} x {found[3]}, those of the calibration images "
                f"{self.shape[2]} x {self.shape[3]}",
                where=str(self.evaluation_images.root),
                fix="set `data.preprocess.resize: [height, width]`, or a `crop`",
            )

    @cached_property
    def example(self) -> Tensor:
        """One real input."""
        return load(self.calibration_images.files[0], self.config.data.preprocess)

    @cached_property
    def proof_images(self) -> Tensor:
        """Real inputs, (at least 3, channels, height, width), drawn evenly from calibration."""
        images = self.calibration_images
        step = max(1, len(images) // PROOF_IMAGES)
        chosen = list(images.files[::step][:PROOF_IMAGES])
        while len(chosen) < 3:
            chosen.append(chosen[0])
        return torch.cat([load(path, self.config.data.preprocess) for path in chosen])

    @cached_property
    def float_model(self) -> FloatModel:
        """The user's model with its checkpoint."""
        if self.config.model.checkpoint is None:
            self.voice.say(
                "model: no `model.checkpoint`: the weights are those that the source builds"
            )
        with self.voice.busy("building the float model"):
            return build(self.config.model)

    @cached_property
    def fused(self) -> FusedModel:
        """The user's model with its batch norms folded."""
        groups = None if self.config.fuse.modules == "auto" else self.config.fuse.modules
        with torchscript.quiet():
            return fuse(capture(self.float_model.module, self.example), groups)

    @property
    def versions(self) -> dict[str, str]:
        """What else a result depends on."""
        return {"qconvert": __version__, "torch": torch.__version__}

    def fresh(
        self, step: str, name: str, key_of: Callable[[dict[str, Any]], str]
    ) -> dict[str, Any] | None:
        """The record of a step that need not run (see `Workspace.why_stale`); or None, and the
        reason why it runs is said."""
        reason = self.workspace.why_stale(name, key_of)
        if reason is None and not self.force:
            return self.workspace.read(name)
        self.voice.say(f"{step}: {reason or '--force'}")
        return None
