"""Reads the idx files of Fashion-MNIST as Debian's `dataset-fashion-mnist` installs them."""

import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")
# The order of the labels in the idx files, as folder names.
CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
MEAN = 0.2860
STD = 0.3530


def load(split: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (N, 28, 28) uint8 and labels (N,) uint8 of `train` or `t10k`."""
    images = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8),
    )
