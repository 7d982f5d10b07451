"""The photo set of `make bench-accuracy`: crops of photographs that PyPI serves.

`photos.tsv` lists them: the package, the file in it, whether it calibrates or evaluates, and how
many crops are drawn of it. The name of a photograph is the seed of its crops. No photograph does
both. Nothing of them is committed; the packages' digests are in sample_models.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from PIL import Image

from sample_models.efficientnet_lite0.fetch import (
    ONE_PLATFORM,
    SCIKIT_IMAGE,
    SCIKIT_LEARN,
    crops,
)
from sample_models.imagenet.fetch import PHOTOGRAPHS, wheel

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
    finished = folder / "complete"
    if finished.exists():
        return
    with LIST.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for package in dict.fromkeys(row["package"] for row in rows):
        (requirement, _, digest), options = _PACKAGES[package]
        archive = wheel(requirement, digest, *options)
        for row in rows:
            if row["package"] != package:
                continue
            (folder / row["set"]).mkdir(parents=True, exist_ok=True)
            stem = Path(row["file"]).stem
            with Image.open(io.BytesIO(archive.read(row["file"]))) as photograph:
                drawn = crops(photograph.convert("RGB"), stem, int(row["crops"]))
            for i, crop in enumerate(drawn):
                crop.save(folder / row["set"] / f"{stem}_{i:02}.png")
    finished.touch()
