"""Lays out a user's project: network, weights, images, qconfig."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from project import NETWORK, Project


@pytest.fixture(scope="session")
def make_project() -> Callable[[Path], Project]:
    """Lays out a project with 3 classes of 6 images and seeded weights."""

    def make(folder: Path) -> Project:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "network.py").write_text(NETWORK)
        names: dict[str, Any] = {}
        exec(NETWORK, names)
        torch.manual_seed(0)
        torch.save(names["network"]().state_dict(), folder / "weights.pt")
        generator = np.random.default_rng(0)
        for i, name in enumerate(("cat", "cow", "dog")):
            (folder / "images" / name).mkdir(parents=True)
            for j in range(6):
                pixels = generator.normal(60 + 60 * i, 40, (16, 16, 3)).clip(0, 255)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / "images" / name / f"{j}.png")
        project = Project(folder)
        project.qconfig()
        return project

    return make


@pytest.fixture
def project(make_project: Callable[[Path], Project], tmp_path: Path) -> Project:
    """A project of the test's own."""
    return make_project(tmp_path / "project")
