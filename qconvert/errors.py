"""The errors that a user can cause: what went wrong, where, how to fix it, and the exit code.

One class for each kind of mistake, with its name, its cause (the docstring) and the usual remedy;
`docs/errors.md` is generated from them. Inner code raises the small fact; a step or the command
adds the place. Only `cli.py` turns one of these into a message and an exit code. Anything else that
is raised is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

# Where hundreds of things are wrong in the same way, a person is shown so many.
FACTS_SHOWN = 20


class QConvertError(Exception):
    """A mistake that the user can put right.

    `facts` holds one sentence for each thing that is wrong (all of them at once), `where` the
    file, folder or key they are about, `fix` what to do (by default the kind's `remedy`).
    """

    exit_code = 5
    title = "conversion"
    # What a message and docs/errors.md call this kind; empty for the groups below.
    name = ""
    remedy: str | None = None

    def __init__(
        self, facts: str | Sequence[str], *, where: str | None = None, fix: str | None = None
    ) -> None:
        self.facts = [facts] if isinstance(facts, str) else list(facts)
        self.where = where
        self.fix = fix or self.remedy
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        """The facts with their place (of very many the first), then the fix."""
        prefix = f"{self.where}: " if self.where else ""
        lines = [prefix + fact for fact in self.facts[:FACTS_SHOWN]]
        if len(self.facts) > FACTS_SHOWN:
            lines.append(f"and {len(self.facts) - FACTS_SHOWN} more, which --json lists")
        if self.fix:
            lines.append(f"fix: {self.fix}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The message as values."""
        return {
            "kind": self.name,
            "exit_code": self.exit_code,
            "facts": self.facts,
            "where": self.where,
            "fix": self.fix,
        }


# ---- 2: usage, qconfig, output folder


class QConfigError(QConvertError):
    """A key of the qconfig is unknown, missing or of the wrong type; a path in it does not exist;
    an environment variable is not set; a rule names a layer that the model does not have. All
    mistakes of the file are listed together."""

    exit_code = 2
    title = "qconfig"
    name = "qconfig"
    remedy = "correct the file, or the --set option; docs/qconfig.md has all keys"


class QConfigFileError(QConfigError):
    """The qconfig cannot be opened, or is not YAML. Indentation by tabs, and a `:` or `#` inside a
    value without quotes, are the usual reasons."""

    name = "qconfig-file"
    remedy = "correct the file; `qconvert init` writes one to start from"


class OutputError(QConvertError):
    """The output folder cannot be made or written: no permission, a full disk, a file of this name.
    Files are written whole or not at all, so earlier results are as they were."""

    exit_code = 2
    title = "output"
    name = "output"
    remedy = "make room, or name another folder with `output:` or --output"


# ---- 3: model, checkpoint


class ModelError(QConvertError):
    """The model source or its checkpoint cannot be used."""

    exit_code = 3
    title = "model"


class SourceError(ModelError):
    """`model.source` cannot be imported or called, raises, or returns something that is no
    torch.nn.Module. An error in your own code is shown with its file and line."""

    name = "model-source"
    remedy = "correct the code or the name; --debug shows the whole traceback"


class CheckpointFileError(ModelError):
    """The checkpoint is no file that torch.save or safetensors wrote, is cut off, or holds no
    state_dict (a mapping of names to tensors) where one was looked for."""

    name = "checkpoint-file"
    remedy = "save the weights again: torch.save(model.state_dict(), 'weights.pt')"


class UnsafeCheckpointError(ModelError):
    """The checkpoint is a pickle that needs more than tensors: a whole pickled module, a
    Namespace of arguments, NumPy values. Loading it would run code that it names, which qconvert
    never does; nothing in it was executed."""

    name = "checkpoint-unsafe"
    remedy = (
        "where you trust the file, save its weights alone: "
        "torch.save(model.state_dict(), 'weights.pt')"
    )


class CheckpointKeysError(ModelError):
    """The weights are those of another model: names are missing or unexpected, or shapes differ.
    All of them are listed, with the nearest names."""

    name = "checkpoint-keys"
    remedy = (
        "give the checkpoint of this model (its `model.kwargs` too), or name the right part with "
        "`model.checkpoint_key`"
    )


class ModelInputError(ModelError):
    """The model raises on the images as they are prepared: other channels or another size than it
    expects, several inputs where there is one, or a mistake in its code, which is shown with file
    and line."""

    name = "model-input"
    remedy = "correct `data.preprocess` (channels, resize, crop), `data.transform` or the model"


class ModelOutputError(ModelError):
    """What the model returns holds no tensor, or none under the name in `model.output`, or values
    that TorchScript cannot return."""

    name = "model-output"
    remedy = "name a callable that wraps the model and returns tensors"


class ModelFileError(ModelError):
    """A file that `inspect` is to look at cannot be read, is no TorchScript archive, is damaged, or
    needs operators that this torch does not have."""

    name = "model-file"
    remedy = "name a qconfig (.yaml), or a file that torch.jit.save wrote, as model.int8.pt"


# ---- 4: images, labels


class ImageError(QConvertError):
    """The images or their labels cannot be used."""

    exit_code = 4
    title = "images"


class NoImagesError(ImageError):
    """A folder of images holds none, or cannot be listed."""

    name = "no-images"
    remedy = "name a folder of images in `data.calibration` and `data.evaluation`"


class BadImageError(ImageError):
    """Files that are named like images are none, are damaged or cut off, are unreasonably large, or
    have a form of pixels that is not read."""

    name = "bad-image"
    remedy = "repair or remove the file, or write `data.on_bad_image: skip`"


class ImageSizeError(ImageError):
    """Inputs differ in height or width, and the model works at one size only."""

    name = "image-size"
    remedy = "set `data.preprocess.resize: [height, width]`, or a `crop`"


class LabelError(ImageError):
    """An image has no label, a label is no class, a CSV names files that are not there, or the
    number of classes is not the model's."""

    name = "labels"
    remedy = "name all classes in `data.classes`, in the model's order, or write `labels: none`"


class TransformError(ImageError):
    """`data.transform` cannot be imported, raises, or returns something that is no float tensor."""

    name = "transform"
    remedy = "correct the callable; --debug shows the whole traceback"


class MetricError(ImageError):
    """A metric of `benchmark.metrics` or the `benchmark.decoder` cannot be imported, raises, or
    returns what is no figure or answer; or it does not go with the model's outputs."""

    name = "metric"
    remedy = "correct the callable; --debug shows the whole traceback"


class NotFiniteImageError(ImageError):
    """The float model itself computes NaN or infinity on an image."""

    name = "not-finite"
    remedy = "remove the image; if all are named, correct the weights or `data.preprocess`"


# ---- 5: conversion, verification


class ConversionError(QConvertError):
    """The model cannot be converted, or the result failed its verification."""


class UntraceableError(ConversionError):
    """torch.fx cannot trace the model's code, which depends on what is in the tensors, and nothing
    below it can be converted, or `model.scripted` does not list it. The line of your code is
    shown."""

    name = "untraceable"
    remedy = (
        "move the layers into modules of their own, which this code calls; or, if it goes the same "
        "way for all images, write `model.fixed: all`"
    )


class UnsupportedError(ConversionError):
    """The model does something that this version does not convert."""

    name = "unsupported"
    remedy = "name a callable that builds the model without it"


class FusionError(ConversionError):
    """The model with its batch norms folded differs from the original on real images, or the source
    builds other weights each time."""

    name = "fusion"
    remedy = "list the modules that may be fused in `fuse.modules`, or report this as a bug"


class TrainingError(ConversionError):
    """The model cannot be fine-tuned: its code is kept as it is written in places, nothing in it is
    int8 with fixed ranges, or there are too few images to train with and to judge by."""

    name = "training"
    remedy = "see docs/finetune.md for what can be trained; `qconvert convert` works without"


class VerificationError(ConversionError):
    """The int8 file does not run in a fresh process, or its answers are not those of the model
    that was saved, or not what its plan predicts. Such a file is not kept."""

    name = "verification"
    remedy = "report this with the model; `precision: float32` for the layers at fault works around"


class TimingError(ConversionError):
    """The float and the int8 model do not run side by side, so that there is no latency to
    report."""

    name = "timing"
    remedy = "run the files alone with torch.jit.load to see which one fails, and report it"


# ---- 6: several processes


class RankError(QConvertError):
    """The processes that torchrun has started cannot work together. Every one of them says so."""

    exit_code = 6
    title = "ranks"


class RankSetupError(RankError):
    """RANK and WORLD_SIZE are set, and the other variables of torchrun are not or make no sense; or
    the processes did not find each other in time."""

    name = "rank-setup"
    remedy = "start the command with torchrun (docs/cluster.md), or unset RANK and WORLD_SIZE"


class RankDiffersError(RankError):
    """A process has another qconfig, other images, another checkpoint, other versions or another
    kind of CPU than rank 0, or builds another model from them: figures would be of a mixture."""

    name = "rank-differs"
    remedy = "give every machine the same files under the same paths, and the same packages"


class RankLostError(RankError):
    """A process has ended, was killed, ran out of memory, or its machine does not answer any more.
    What was finished before is whole."""

    name = "rank-lost"
    remedy = (
        "look at what that process said last, and whether its machine was out of memory; the same "
        "command goes on from where it was"
    )


# A bug of qconvert: its traceback is shown. Not 1, which Python would give it.
BUG = 70
# Exit code 1 is not an error: the work is done, and a budget of the qconfig is missed.
BUDGETS_MISSED = 1


def kinds() -> list[type[QConvertError]]:
    """Every kind of error that has a name, by exit code."""

    def below(kind: type[QConvertError]) -> list[type[QConvertError]]:
        return [kind, *(k for child in kind.__subclasses__() for k in below(child))]

    return sorted((k for k in below(QConvertError) if k.name), key=lambda k: k.exit_code)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the nearest known name, or an empty string.

    >>> did_you_mean("histgram", ["minmax", "histogram"])
    "; did you mean 'histogram'?"
    >>> did_you_mean("zzz", ["minmax"])
    ''
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
