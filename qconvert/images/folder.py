"""Lists the images of a folder, with their labels, in an order that does not change."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.errors import BadImageError, NoImagesError
from qconvert.images.labels import (
    Label,
    Labelled,
    from_csv,
    from_folders,
    read_alphabet,
    read_classes,
)
from qconvert.images.masks import from_masks
from qconvert.qconfig import LabelKind, is_csv
from qconvert.workspace import digest, file_digest

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
# Arrays are images where there are no others: beside images they are usually something else.
ARRAYS = frozenset({".npy"})


@dataclass(frozen=True)
class ImageSet:
    """Image files, sorted by their path below `root`, with a label each or none.

    `classes` are the class names in the model's order, or the characters of texts, if they are
    named. `digest` is of names, contents and labels. `notes` are decisions that a user should know
    of; `skipped` counts the files that were left out because they cannot be read.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[Label, ...] | None
    classes: tuple[str, ...] | None
    digest: str
    notes: tuple[str, ...] = ()
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, count: int, seed: int) -> ImageSet:
        """At most `count` images drawn by `seed`, in sorted order; the same on every machine."""
        if count >= len(self):
            return self
        return self._only(sorted(random.Random(seed).sample(range(len(self)), count)))

    def without(self, paths: Collection[Path]) -> ImageSet:
        """The other images.

        Raises NoImagesError when there are none.
        """
        kept = [i for i, path in enumerate(self.files) if path not in paths]
        if not kept:
            raise NoImagesError(
                f"none of the {len(self)} images can be read",
                where=str(self.root),
                fix="name another folder; with `data.on_bad_image: error` each is named",
            )
        if len(kept) == len(self):
            return self
        return replace(self._only(kept), skipped=len(self) - len(kept))

    def _only(self, chosen: Sequence[int]) -> ImageSet:
        return replace(
            self,
            files=tuple(self.files[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            digest=digest([self.digest, list(chosen)]),
        )


def read_folder(
    root: Path, labels: str | Path, classes_file: Path | None, kind: LabelKind = "classes"
) -> ImageSet:
    """Lists a folder, at any depth; hidden files and those of other endings are left out.

    `labels` is `folders` (see `labels.from_folders`), `none`, a CSV file (`labels.from_csv`) with
    what `kind` says, or a folder of masks (`masks.from_masks`).

    Raises NoImagesError when there is no image, LabelError when labels are wrong.
    """
    files, notes = _image_files(root)
    if isinstance(labels, Path) and not is_csv(str(labels)):
        masks, _ = _image_files(labels)
        labelled = from_masks(root, files, labels, masks, classes_file)
    elif isinstance(labels, Path):
        texts = kind == "texts"
        labelled = from_csv(root, files, labels, classes_file, texts=texts)
    elif labels == "folders":
        labelled = from_folders(root, files, classes_file)
    else:
        names = read_alphabet if kind == "texts" else read_classes
        classes = None if classes_file is None else names(classes_file)
        contents = digest([_digest(root, files, None), classes])
        return ImageSet(root, tuple(files), None, classes, contents, notes)
    return _with_labels(root, labelled, notes)


def _with_labels(root: Path, labelled: Labelled, notes: tuple[str, ...]) -> ImageSet:
    contents = digest([_digest(root, labelled.files, labelled.labels), labelled.classes])
    return ImageSet(
        root,
        labelled.files,
        labelled.labels,
        labelled.classes,
        contents,
        (*notes, *labelled.notes),
    )


def _image_files(root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Every image below a folder, and what was left out; links are followed, each folder once."""
    by_suffix: dict[str, list[Path]] = {}
    visited = {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unlisted):
        folders[:] = [
            f for f in folders if os.path.realpath(os.path.join(folder, f)) not in visited
        ]
        visited.update(os.path.realpath(os.path.join(folder, f)) for f in folders)
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                by_suffix.setdefault(path.suffix.lower(), []).append(path)
    wanted = SUFFIXES if SUFFIXES & by_suffix.keys() else ARRAYS
    files = [path for suffix in wanted for path in by_suffix.get(suffix, ())]
    others = Counter({s: len(paths) for s, paths in by_suffix.items() if s not in wanted})
    endings = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in
                        sorted(others.items()))  # fmt: skip
    if not files:
        there = f"; it has other files: {endings}" if others else ""
        raise NoImagesError(
            f"there is no image in this folder{there}",
            where=str(root),
            fix="name a folder with " + ", ".join(sorted(SUFFIXES | ARRAYS)) + " files",
        )
    files.sort(key=lambda path: path.relative_to(root).as_posix())
    notes = (f"files that are no images are left out: {endings}",) if others else ()
    return files, notes


def _unlisted(error: OSError) -> None:
    raise NoImagesError(
        f"the folder cannot be listed: {error.strerror}",
        where=str(error.filename),
        fix="let this user read it, or name another folder",
    )


def _digest(root: Path, files: Sequence[Path], labels: tuple[Label, ...] | None) -> str:
    masks = [label for label in labels or () if isinstance(label, Path)]
    try:
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
            contents = list(pool.map(file_digest, files))
            if masks:
                labels = tuple(pool.map(file_digest, masks))
    except OSError as error:
        raise BadImageError(
            f"cannot be read: {error.strerror}",
            where=str(error.filename),
            fix="let this user read it, or remove it",
        ) from None
    names = [path.relative_to(root).as_posix() for path in files]
    summary = hashlib.sha256()
    for row in zip(names, contents, labels or [-1] * len(names), strict=True):
        summary.update(repr(row).encode())
    return summary.hexdigest()
