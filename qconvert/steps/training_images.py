"""The images that a model is trained with, and those of them that judge it."""

from __future__ import annotations

from collections.abc import Sequence

from qconvert.errors import LabelError, TrainingError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.stream import unreadable
from qconvert.quantization.training.learner import Example
from qconvert.steps.session import Session
from qconvert.workspace import file_digest

# Fewer teach nothing, and judge nothing.
_FEWEST, _FEWEST_HELD_OUT = 8, 2


def training_images(session: Session) -> ImageSet:
    """Those of `finetune.images`, or of calibration; with labels if a teacher is.

    Raises LabelError when the labels are not those of the evaluation images."""
    data, section = session.config.data, session.config.finetune
    labelled = section.teacher != "float"
    root = section.images or data.calibration
    labels, classes = (data.labels, data.classes) if labelled else ("none", None)
    found = read_folder(root, labels, classes, "classes" if labelled else "none")
    if section.images is None:
        found = found.without(set(found.files) - set(session.calibration_images.files))
    elif data.on_bad_image == "skip":
        wrong = unreadable(found, session.read)
        for path, error in wrong.items():
            session.voice.say(f"finetune: skipped {path}: {error.facts[0]}")
        found = found.without(wrong)
    if labelled and found.classes != session.evaluation_images.classes:
        raise LabelError(
            f"the classes are {_some(found)}, those of the evaluation images "
            f"{_some(session.evaluation_images)}",
            where=str(root),
            fix="name all classes in `data.classes`, in the model's order",
        )
    return found


def divided(images: ImageSet, held_out: float) -> tuple[list[Example], list[Example]]:
    """Images to train with and images to judge by: of different contents, in the order of their
    digests, each n-th is held out.

    Raises TrainingError when there are too few."""
    every = round(1 / held_out)
    digests = [file_digest(path) for path in images.files]
    order = {found: i for i, found in enumerate(sorted(set(digests)))}
    training, judging = list[Example](), list[Example]()
    for i, path in enumerate(images.files):
        label = None if images.labels is None else images.labels[i]
        example = Example(path, label if isinstance(label, int) else None)
        (judging if order[digests[i]] % every == every - 1 else training).append(example)
    if len(training) < _FEWEST or len(judging) < _FEWEST_HELD_OUT:
        raise TrainingError(
            f"{len(training)} images to train with and {len(judging)} held out are fewer than "
            f"{_FEWEST} and {_FEWEST_HELD_OUT}",
            where=str(images.root),
            fix="name a folder with more images in `finetune.images`; they need no labels",
        )
    return training, judging


def _some(images: ImageSet) -> str:
    names: Sequence[str] = images.classes or ()
    return f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''} ({len(names)})"
