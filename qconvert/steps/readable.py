"""Which images of a run can be read."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path

from qconvert.errors import FACTS_SHOWN
from qconvert.images.decode import is_rotated
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Preprocessed, Reader
from qconvert.images.stream import unreadable
from qconvert.qconfig import QConfig
from qconvert.steps.voice import Voice

# An image that is skipped: of which set, and its path there.
Skipped = tuple[str, str]


def same_images(config: QConfig) -> bool:
    """Whether accuracy is measured on the images that set the ranges."""
    return config.evaluation == config.data.calibration


class Readable:
    """Looks for images that cannot be read, if the qconfig wants them skipped, and says what a user
    must know of the others. A rank that is `told` what rank 0 skips does not look."""

    def __init__(self, config: QConfig, voice: Voice, told: Set[Skipped] | None) -> None:
        self._config = config
        self._voice = voice
        self._told = told
        self._said: set[str] = set()
        self.skipped: set[Skipped] = set()

    def only(self, name: str, images: ImageSet, read: Reader) -> ImageSet:
        """The images that can be read; `name` is that of the set.

        Raises NoImagesError when there are none."""
        # Of both sets: what is said of them is said once.
        role = "images" if same_images(self._config) else name
        for note in images.notes:
            self._say_once(f"{role}: {note}")
        if self._told is not None:
            told = {path for path in images.files if _skipped(name, images, path) in self._told}
            images = images.without(told)
        elif self._config.data.on_bad_image == "skip":
            images = self._skip(name, role, images, read)
        if isinstance(read, Preprocessed) and read.steps.exif == "ignore":
            rotated = sum(map(is_rotated, images.files))
            if rotated:
                self._say_once(
                    f"{role}: rotation marks of the camera are ignored, as torchvision does, in "
                    f"{rotated} of {len(images)} images (data.preprocess.exif: apply turns them)"
                )
        return images

    def _skip(self, name: str, role: str, images: ImageSet, read: Reader) -> ImageSet:
        with self._voice.progress(f"{role}: looking for unreadable images") as progress:
            wrong = unreadable(images, read, progress)
        for path, error in list(wrong.items())[:FACTS_SHOWN]:
            self._say_once(f"{role}: skipped {path}: {error.facts[0]}")
        if wrong:
            self._say_once(f"{role}: {len(wrong)} of {len(images)} images skipped")
        self.skipped.update(_skipped(name, images, path) for path in wrong)
        return images.without(wrong)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._voice.say(text)


def _skipped(name: str, images: ImageSet, path: Path) -> Skipped:
    return name, path.relative_to(images.root).as_posix()
