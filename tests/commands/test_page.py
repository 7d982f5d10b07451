"""report.html as `benchmark` writes it, for models and images of several kinds."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from isa_here import ISA
from PIL import Image
from project import NETWORK, Project

HOSTILE = "<img src=x onerror=alert(1)>"
# Ranges that hold a part of the values only: int8 gives other answers.
CLIPPED = {"isa": ISA, "activations": {"observer": "percentile", "percentile": 0.6}}


def undecided(project: Project) -> None:
    """Weights with which no class is likelier than the others over all images."""
    names: dict[str, Any] = {}
    exec(NETWORK, names)
    model = names["network"]().eval()
    model.load_state_dict(torch.load(project.folder / "weights.pt"))
    paths = sorted((project.folder / "images").glob("*/*.png"))
    images = [torch.from_numpy(np.array(Image.open(path))) for path in paths]
    pixels = torch.stack(images).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        model[-1].bias -= model((pixels - 0.5) / 0.25).mean(0)
    torch.save(model.state_dict(), project.folder / "weights.pt")


@pytest.fixture(scope="module")
def finished(make_project: Callable[[Path], Project], tmp_path_factory) -> Project:
    """A project whose int8 file gives other answers, of a class and of images with bad names."""
    project = make_project(tmp_path_factory.mktemp("page") / "project")
    undecided(project)
    project.qconfig(quantization=CLIPPED)
    images = project.folder / "images"
    (images / "cow").rename(images / HOSTILE)
    for path in images.glob("*/0.png"):
        path.rename(path.with_name("a\udcff'b\".png"))
    result = project.run("benchmark")
    assert result.code == 0, result.err
    assert f"wrote {project.output / 'report.html'}" in result.out
    return project


def page(project: Project) -> str:
    return (project.output / "report.html").read_text(encoding="utf-8")


def test_pictures_are_those_of_the_images(finished: Project) -> None:
    text = page(finished)
    flips = finished.record("report.json")["accuracy"]["flipped"]
    assert len(flips) > 3
    assert any("\\xff" in flip["image"] for flip in flips)
    shown = re.findall(r'<img src="data:image/png;base64,([^"]*)"[^>]* alt="([^"]*)"', text)
    assert [unescape(name).replace("\\\\", "\\") for _, name in shown] == [
        flip["image"] for flip in flips
    ]
    for data, name in shown:
        path = unescape(name).replace("\\xff", "\udcff")
        small = Image.open(io.BytesIO(base64.b64decode(data)))
        assert small.tobytes() == Image.open(finished.folder / "images" / path).tobytes()
    for flip in flips:
        assert f">sure {flip['measured_confidence']:.3f}<" in text


def test_name_of_a_class_is_text(finished: Project) -> None:
    assert HOSTILE not in page(finished)
    assert "&lt;img src=x onerror=alert(1)&gt;" in page(finished)


def test_distributions_are_measured(finished: Project) -> None:
    (latency,) = finished.record("report.json")["latency"]
    for timing in (latency["baseline"], latency["models"]["int8"]):
        calls = timing["percentiles_s"]
        assert len(calls) == 101
        assert calls == sorted(calls)
        assert calls[50] == pytest.approx(timing["median_s"]["value"], abs=1e-9)
        assert calls[99] == pytest.approx(timing["p99_s"], abs=1e-9)
    assert page(finished).count("<svg") == 3  # and those of automation and audit


def test_without_labels(finished: Project, tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(finished.folder, project.folder, ignore=shutil.ignore_patterns("out"))
    data = {"calibration": "images", "labels": "none"}
    preprocess = {"mean": [0.5], "std": [0.25]}
    project.qconfig(data={**data, "preprocess": preprocess}, quantization=CLIPPED)
    result = project.run("benchmark", "--set", "budgets.max_accuracy_drop=0.1")
    assert result.code == 1, result.err
    text = page(project)
    assert "budgets missed" in text
    assert "<strong>max_accuracy_drop</strong>: not measurable, the budget is 0.1" in text
    assert "Confidence and automation" not in text
    assert "have another answer in int8. Those come first" in text
    assert ">label<" not in text
