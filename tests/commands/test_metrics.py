"""Metrics, decoders and confidence, as a user asks for them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from project import Project, figures

SAMPLE = Path(__file__).parents[2] / "sample_models" / "textline"
# What a user writes beside her model.
FIGURES = """
def longer(text, label):
    return abs(len(text) - len(label))

def in_words(output):
    return "AB" if float(output.sum()) > 0 else "A", 0.5

def broken(text, label):
    return [][1]

def many(text, label):
    return text
"""
PIXELS = """
import torch
from torch import nn

class Pixels(nn.Module):
    '''The brightness says which of three classes a pixel is of.'''

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        # Largest at 0, 0.5 and 1.
        self.conv.weight.data = torch.tensor([0.0, 4.0, 8.0]).reshape(3, 1, 1, 1)
        self.conv.bias.data = torch.tensor([0.0, -1.0, -4.0])

    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture
def lines(tmp_path: Path) -> Project:
    """The sample with 24 lines of its test set, of several widths."""
    for folder, count in (("calibration", 16), ("test", 24)):
        (tmp_path / folder).mkdir()
        with (SAMPLE / folder / "labels.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))[: count + 1]
        with (tmp_path / folder / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
        for name, _ in rows[1:]:
            shutil.copy(SAMPLE / folder / name, tmp_path / folder)
    for name in ("network.py", "weights.pt", "characters.json"):
        shutil.copy(SAMPLE / name, tmp_path)
    (tmp_path / "figures.py").write_text(FIGURES)
    project = Project(tmp_path)
    project.qconfig(
        model={"source": "network.py:text_line", "checkpoint": "weights.pt"},
        data={
            "calibration": "calibration",
            "evaluation": "test",
            "labels": "test/labels.csv",
            "classes": "characters.json",
            "preprocess": {"channels": 1, "mean": [0.75], "std": [0.25]},
        },
        benchmark={"threads": [1], "seconds": 0.05, "decoder": "ctc"},
        budgets={"max_accuracy_drop": 0.1, "max_automation_drop": 0.5},
    )
    return project


def test_lines_of_text_are_read_at_any_width(lines: Project) -> None:
    result = lines.run("benchmark")
    assert result.code == 0, result.err
    report = lines.record("report.json")
    accuracy = report["accuracy"]
    assert min(figures(accuracy, "exact_match")) > 0.9
    assert max(figures(accuracy, "character_error_rate")) < 0.02
    assert accuracy["agreement"]["value"] > 0.9
    confidence = accuracy["confidence"]
    assert confidence["required_accuracy"] == 0.99
    assert 0.5 < confidence["measured"]["rate"]["value"] <= 1
    assert [budget["met"] for budget in report["budgets"]] == [True, True]
    widths = [shape[3] for shape in report["latency"][0]["shapes"]]
    assert widths == sorted(widths)
    assert len(set(widths)) > 3

    plan = {o["name"]: o["precision"] for o in lines.record("plan.json")["operators"]}
    assert plan["rows"] == "dynamic"
    assert {plan[f"features.{i}.0"] for i in range(5)} == {"int8"}
    extra = {"manifest.json": ""}
    file = torch.jit.load(str(lines.output / "model.int8.pt"), _extra_files=extra)
    assert json.loads(extra["manifest.json"])["inputs"][0]["shape"] == [None, 1, 32, None]
    assert [file(torch.zeros(2, 1, 32, w)).shape[1] for w in (20, 333)] == [5, 83]

    assert "| exact match |" in (lines.output / "report.md").read_text()
    assert "](automation.svg)" in (lines.output / "report.md").read_text()
    assert (
        b"share of images that the model decides alone"
        in (lines.output / "automation.svg").read_bytes()
    )
    assert "Decided alone at an accuracy of 0.99" in result.out


def test_metrics_and_decoders_of_ones_own(lines: Project) -> None:
    options = ("--json", "--quiet", "--set", "benchmark.metrics=[figures.py:longer, exact_match]")
    found = json.loads(lines.run("fuse", *options).out)["accuracy"]
    assert [m["name"] for m in found["metrics"]] == ["figures.py:longer", "exact_match"]
    assert figures(found, "figures.py:longer")[0] < 0.2

    own = ("--set", "benchmark.decoder=figures.py:in_words")
    found = json.loads(lines.run("fuse", *options, *own).out)["accuracy"]
    assert figures(found, "exact_match") == (0, 0)
    assert figures(found, "figures.py:longer")[0] > 3
    assert found["confidence"]["reference"]["threshold"] is None


def test_another_metric_is_measured_anew(lines: Project) -> None:
    """Of the same file: `convert` has its figures in the record."""
    assert lines.run("convert", "--quiet").code == 0
    first = lines.record("convert.json")
    options = ("--quiet", "--set", "benchmark.metrics=[figures.py:longer]")
    assert lines.run("convert", *options).code == 0
    again = lines.record("convert.json")
    assert [m["name"] for m in again["accuracy"]["metrics"]] == ["figures.py:longer"]
    assert again["plan"] == first["plan"]


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("benchmark.metrics=[figures.py:broken]", ["raised IndexError", "return [][1]"]),
        ("benchmark.metrics=[figures.py:many]", ["returned", "fix: return a number"]),
        ("benchmark.metrics=[figures.py:mean]", ["has no 'mean'; did you mean 'many'?"]),
        ("benchmark.metrics=[exact_mach]", ["unknown metric 'exact_mach'; did you mean 'exact_"]),
        ("benchmark.metrics=[top1]", ["top1 needs classes", "and no benchmark.decoder"]),
        ("benchmark.metrics=[mean_iou]", ["mean_iou needs a folder of masks"]),
        ("benchmark.decoder=ctcc", ["unknown decoder 'ctcc'; did you mean 'ctc'?"]),
        ("benchmark.decoder=figures.py:lost", ["figures.py has no 'lost'"]),
        ("data.labels=folders", ["benchmark.decoder makes texts"]),
        ("data.classes=null", ["the decoder ctc does not know the characters", "data.classes"]),
        ("benchmark.ctc_blank=44", ["none has the place 44", "benchmark.ctc_blank"]),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    lines: Project, setting: str, facts: list[str]
) -> None:
    result = lines.run("fuse", "--quiet", "--set", setting)
    assert result.code in (2, 4), result.err
    assert "Traceback" not in result.err
    for fact in facts:
        assert fact in result.err


def test_too_few_characters_are_counted(lines: Project) -> None:
    (lines.folder / "few.txt").write_text("A\nB\n \n")
    result = lines.run("fuse", "--quiet", "--set", "data.classes=few.txt")
    assert result.code == 4
    assert "data.classes names 3 characters, the model has 44 outputs at each step" in result.err


def test_pixels_are_judged_by_masks(tmp_path: Path) -> None:
    """Half of each image is of class 0, of which the mask calls a quarter class 2; the last image
    has no mask."""
    for i in range(5):
        image = np.zeros((8, 16), np.uint8)
        image[:, 8:] = 128
        mask = (image > 0).astype(np.uint8)
        mask[:2, :8] = 2
        mask[7, 8:] = 255
        for folder, values in (("images", image + i), ("masks", mask)):
            (tmp_path / folder / "a").mkdir(parents=True, exist_ok=True)
            if folder == "images" or i < 4:
                Image.fromarray(values).save(tmp_path / folder / "a" / f"{i}.png")
    (tmp_path / "pixels.py").write_text(PIXELS)
    project = Project(tmp_path)
    data: dict[str, Any] = {"calibration": "images", "labels": "masks/"}
    steps = {"channels": 1}
    project.qconfig(
        model={"source": "pixels.py:Pixels"}, data={**data, "preprocess": steps}, budgets=None
    )
    result = project.run("fuse", "--json")
    assert result.code == 0, result.err
    assert "1 of 5 images have no mask in masks and are left out" in result.err
    found = json.loads(result.out)["accuracy"]
    # Class 0: 48 of 64 pixels; class 1: all; class 2: none.
    assert figures(found, "mean_iou") == pytest.approx(((0.75 + 1 + 0) / 3,) * 2)
    assert (found["images"], found["confidence"]) == (4, None)


def test_classes_one_by_one_and_the_best_two(project: Project) -> None:
    options = ("--set", "benchmark.metrics=[top2, per_class, cosine]")
    result = project.run("fuse", "--json", "--quiet", *options)
    found = json.loads(result.out)["accuracy"]
    assert [metric["name"] for metric in found["metrics"]] == ["top2", "cosine"]
    assert sum(group["images"] for group in found["per_class"]) == found["images"]
    assert found["confidence"]["reference_curve"][-1][0] == 1
    refused = project.run("fuse", "--quiet", "--set", "benchmark.metrics=[top4]")
    assert refused.code == 4
    assert "top4 is of so many classes, the model returns outputs of shape [1, 3]" in refused.err
