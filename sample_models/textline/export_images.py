"""Draws the sample's PNG folders with their `labels.csv`: calibration lines in the typefaces of the
training, test lines in others.

python sample_models/textline/export_images.py
"""

import argparse
import csv
import json
import random
from pathlib import Path

from lines import CHARACTERS, TEST_FONTS, TRAINING_FONTS, field, fonts, line
from PIL import Image

HERE = Path(__file__).parent
# Folder, fonts, number of lines, seed: no seed of the training.
SETS = (("calibration", TRAINING_FONTS, 256, 10_001), ("test", TEST_FONTS, 500, 10_002))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    characters = json.dumps(list(CHARACTERS), ensure_ascii=False) + "\n"
    (options.out / "characters.json").write_text(characters, encoding="utf-8")
    for folder, packages, count, seed in SETS:
        draw, files = random.Random(seed), fonts(packages)
        target = options.out / folder
        target.mkdir(exist_ok=True)
        rows = [("file", "label")]
        for i in range(count):
            text = field(draw)
            name = f"{i:03}.png"
            Image.fromarray(line(text, draw.choice(files), draw)).save(target / name, optimize=True)
            rows.append((name, text))
        with (target / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
