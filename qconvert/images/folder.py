"""Lists the images of a folder, with their labels, in an order that does not change."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.errors import ImageError, did_you_mean
from qconvert.workspace import digest, file_digest

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageSet:
    """Image files, sorted by their path below `root`, with a class index each or none.

    `classes` are the class names in the model's order. `digest` is of names, contents and labels.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    digest: str

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, count: int, seed: int) -> ImageSet:
        """At most `count` images drawn by `seed`, in sorted order; the same on every machine."""
        if count >= len(self):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self)), count))
        return replace(
            self,
            files=tuple(self.files[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
            digest=digest([self.digest, chosen]),
        )


def read_folder(root: Path, labels: str, classes_file: Path | None) -> ImageSet:
    """Lists a folder, at any depth.

    With `labels` of `folders`, the first folder below `root` is the class. The class index is its
    place in `classes_file` (one name a line, the model's order), or among the sorted names.

    Raises ImageError when there is no image, a label is unknown, or an image has none.
    """
    files = sorted(_image_files(root), key=lambda path: path.relative_to(root).as_posix())
    if not files:
        raise ImageError(
            "there is no image in this folder",
            where=str(root),
            fix="name a folder with " + ", ".join(sorted(SUFFIXES)) + " files",
        )
    classes, indices = None, None
    if labels == "folders":
        classes, indices = _labels(root, files, classes_file)
    elif classes_file is not None:
        classes = _read_classes(classes_file)
    contents = digest([_digest(root, files, indices), classes])
    return ImageSet(root, tuple(files), indices, classes, contents)


def _image_files(root: Path) -> Iterator[Path]:
    """Every image below a folder; symbolic links are followed, each folder once."""
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [
            f for f in folders if os.path.realpath(os.path.join(folder, f)) not in visited
        ]
        visited.update(os.path.realpath(os.path.join(folder, f)) for f in folders)
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path


def _labels(
    root: Path, files: list[Path], classes_file: Path | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    relative = [path.relative_to(root) for path in files]
    flat = [path for path in relative if len(path.parts) < 2]
    if flat:
        raise ImageError(
            f"{len(flat)} images are in no class folder, the first is {flat[0]}",
            where=str(root),
            fix="put them into one folder a class, or write `labels: none`",
        )
    names = sorted({path.parts[0] for path in relative})
    classes = tuple(names) if classes_file is None else _read_classes(classes_file)
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ImageError(
            [f"folder {name!r} is not in {classes_file}{did_you_mean(name, classes)}"
             for name in unknown],
            where=str(root),
            fix="name every class in `data.classes`, one a line in the model's order",
        )  # fmt: skip
    index = {name: i for i, name in enumerate(classes)}
    return classes, tuple(index[path.parts[0]] for path in relative)


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ImageError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not names:
        fact = f"names {', '.join(twice)} twice" if twice else "names no class"
        raise ImageError(fact, where=str(path), fix="write one class a line, each once")
    return names


def _digest(root: Path, files: list[Path], labels: tuple[int, ...] | None) -> str:
    try:
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
            contents = list(pool.map(file_digest, files))
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", where=str(error.filename)) from None
    names = [path.relative_to(root).as_posix() for path in files]
    summary = hashlib.sha256()
    for row in zip(names, contents, labels or [-1] * len(names), strict=True):
        summary.update(repr(row).encode())
    return summary.hexdigest()
