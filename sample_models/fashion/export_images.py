"""Writes the sample's PNG folders from the idx files: calibration (training set), test (t10k).

python sample_models/fashion/export_images.py
"""

import argparse
from pathlib import Path

import numpy as np
from dataset import CLASSES, FOLDER, load
from PIL import Image

HERE = Path(__file__).parent
# Folder, split, number of images.
SETS = (("calibration", "train", "512"), ("test", "t10k", "2000"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument(
        "--set", nargs=3, metavar=("FOLDER", "SPLIT", "NUMBER"), help="another set instead"
    )
    options = parser.parse_args()
    (options.out / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for folder, split, count in [options.set] if options.set else SETS:
        images, labels = load(split, options.data)
        chosen = np.random.default_rng(0).permutation(len(images))[: int(count)]
        for i in sorted(chosen.tolist()):
            path = options.out / folder / CLASSES[labels[i]] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[i]).save(path, optimize=True)


if __name__ == "__main__":
    main()
