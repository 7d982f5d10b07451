"""How many of the foreign images in a calibration set the audit names, and how many of the others.

    python benchmarks/foreign.py docs/audit.md

Of three calibration sets, others are made in which 5 % of the images are foreign: noise,
inverted images of the set, pages of text, in turn; and such of one kind only, and none. Each is
calibrated with and audited as a user's is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from accuracy import write_qconfig
from generated import replace
from peers import ROOT
from photos import fetch_photos
from PIL import Image, ImageChops, ImageDraw, ImageFont

from qconvert import torchscript
from qconvert.console import Console
from qconvert.images.folder import read_folder
from qconvert.measurement.environment import here
from qconvert.measurement.statistics import proportion
from qconvert.qconfig_file import load
from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.calibration import calibrate
from qconvert.steps.auditing import found_in
from qconvert.steps.session import Session

# Sets of each mixture, and the share of each that is foreign.
_SEEDS = 5
_SHARE = 0.05
# Above each mixture of kinds.
_MIXED, _NONE = "all three", "none"
_LETTERS = list("etaoinshrdlucmfwypvbgk")


def foreign(kind: str, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A foreign image of a kind, in the size and mode of an image of the set."""
    return KINDS[kind](image, generator)


def _noise(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Each pixel by chance: evenly, or around a grey as strongly as it comes."""
    shape = np.asarray(image).shape
    if generator.random() < 0.5:
        pixels = generator.integers(0, 256, shape)
    else:
        pixels = generator.normal(generator.uniform(60, 196), generator.uniform(20, 80), shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), image.mode)


def _inverted(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A negative."""
    return ImageChops.invert(image)


def _page(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Dark words on white paper, from edge to edge; as many lines as fit a page of the size."""
    width, height = image.size
    size = float(generator.uniform(0.045, 0.08)) * max(min(width, height), 150)
    font = ImageFont.load_default(size)
    page = Image.new("L", image.size, int(generator.integers(235, 256)))
    draw = ImageDraw.Draw(page)
    y = float(generator.uniform(0, size))
    while y < height:
        x = float(generator.uniform(0, size))
        while x < width:
            word = "".join(generator.choice(_LETTERS, int(generator.integers(2, 10))))
            draw.text((x, y), word, fill=int(generator.integers(0, 60)), font=font)
            x += draw.textlength(word + " ", font=font)
        y += 1.35 * size
    return page.convert(image.mode)


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "noise": _noise,
    "inverted": _inverted,
    "text": _page,
}


def main() -> None:
    """Measures, and writes the table."""
    photos = ROOT / "build/accuracy/photos"
    fetch_photos(photos)
    fetch = [sys.executable, "-m", "sample_models.imagenet.fetch", "build/imagenet"]
    subprocess.run(fetch, check=True, cwd=ROOT)
    qconfigs = {
        "fashion": ROOT / "configs/fashion.yaml",
        "textline": ROOT / "configs/textline.yaml",
        "mobilenet_v2": write_qconfig("mobilenet_v2", photos),
    }
    machine = here()
    lines = [
        "| model | images | foreign ones are | foreign named | of the others named |",
        "| --- | --- | --- | --- | --- |",
        *(row for name, path in qconfigs.items() for row in rows(name, path)),
        "",
        f"Measured on {time.strftime('%Y-%m-%d')} by `make bench-foreign`: {_SEEDS} sets a row, "
        f"torch {machine.torch}, {machine.cpu}. In brackets: 95 % intervals (Wilson).",
    ]
    replace(Path(sys.argv[1]), "foreign", ["", *lines, ""])


def rows(name: str, qconfig: Path) -> list[str]:
    """A line for each mixture of foreign images in one model's set."""
    with tempfile.TemporaryDirectory() as folder:
        session = Session(load(qconfig, [f"output={folder}"]), qconfig, Console(quiet=True))
        found = []
        for mixture in (_MIXED, *KINDS, _NONE):
            kinds = {_MIXED: tuple(KINDS), _NONE: ()}.get(mixture, (mixture,))
            counts: Counter[str] = Counter()
            for seed in range(_SEEDS if kinds else 1):
                counts += named(session, kinds, seed)
            share = _share(counts["foreign, named"], counts["foreign"])
            others = _share(counts["others, named"], counts["others"])
            size = len(session.calibration_images)
            found.append(f"| {name} | {size} | {mixture} | {share} | {others} |")
            print(found[-1], flush=True)
        return found


def named(session: Session, kinds: tuple[str, ...], seed: int) -> Mapping[str, int]:
    """How many images of a set are foreign, and others, and how many of each are named. Foreign
    ones take the places of images of the set, drawn by the seed."""
    images, generator = session.calibration_images, np.random.default_rng(seed)
    count = round(_SHARE * len(images)) if kinds else 0
    places = generator.permutation(len(images))[:count]
    with tempfile.TemporaryDirectory() as folder:
        replaced = {int(place): kinds[i % len(kinds)] for i, place in enumerate(places)}
        for i, path in enumerate(images.files):
            target = Path(folder, f"{i:05}{path.suffix}")
            if i not in replaced:
                target.symlink_to(path.resolve())
                continue
            with Image.open(path) as image:
                foreign(replaced[i], image, generator).save(target.with_suffix(".png"))
        facts, shown = SetFacts(), read_folder(Path(folder), "none", None)
        calibrate(session.fused, shown, session.read, batch_size=8, averaging=0.01, facts=facts)
        found = found_in(session, session.fused, shown, facts)
    hits = [i in replaced for i in found.foreign]
    return Counter({
        "foreign": count, "foreign, named": sum(hits),
        "others": len(images) - count, "others, named": len(hits) - sum(hits),
    })  # fmt: skip


def _share(hits: int, total: int) -> str:
    if not total:
        return ""
    found = proportion(hits, total)
    return f"{found.value:.1%} ({100 * found.low:.1f} to {100 * found.high:.1f})"


if __name__ == "__main__":
    with torchscript.quiet(), torch.inference_mode():
        main()
