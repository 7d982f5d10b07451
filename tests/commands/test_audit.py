"""What a user is told of her calibration images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from project import Project


@pytest.fixture
def audited(project: Project) -> Project:
    """48 images of two kinds; one is there twice, one is blank, and two are checkerboards of full
    contrast among soft shapes."""
    random = np.random.default_rng(0)
    folder = project.folder / "calibration"
    for i in range(48):
        coarse = random.integers(90 + 20 * (i % 2), 150 + 20 * (i % 2), (4, 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((16, 16), Image.Resampling.BICUBIC)
        name = folder / f"{'cat' if i % 6 else 'cow'}" / f"{i:02}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        image.save(name)
    board = np.indices((16, 16)).sum(0) % 2
    for i in (7, 19):
        pixels = np.repeat(255 * (board ^ (i == 7))[..., None], 3, 2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "cat" / f"{i:02}.png")
    Image.new("RGB", (16, 16), (120, 120, 120)).save(folder / "cat" / "31.png")
    shutil.copy(folder / "cat" / "05.png", folder / "cow" / "99.png")
    project.qconfig(
        data={
            "calibration": "calibration",
            "evaluation": "images",
            "preprocess": {"mean": [0.5], "std": [0.25]},
        },
    )
    return project


def test_verdicts_are_told_and_recorded(audited: Project) -> None:
    result = audited.run("calibrate")
    assert result.code == 0, result.err
    audit = json.loads((audited.output / "calibration.json").read_text())["audit"]
    boards = {"cat/07.png", "cat/19.png"}
    assert boards <= {found["image"] for found in audit["foreign"]}
    assert len(audit["foreign"]) <= 4
    assert {found["image"] for found in audit["stretching"]} == boards
    assert audit["duplicates"] == [["cat/05.png", "cow/99.png"]]
    assert audit["blank"] == ["cat/31.png"]
    assert audit["classes"] == {"cat": 40, "cow": 9}
    assert audit["images"] == len(audit["rows"]) == 49
    bright = {row["image"]: row["brightness"] for row in audit["rows"]}
    assert bright["cat/31.png"] == pytest.approx(120 / 255, abs=1e-4)
    for verdict in audit["verdicts"]:
        mark = "audit" if verdict["fine"] else "audit, look"
        assert f"{mark}: {verdict['topic']}: {verdict['text']}" in result.out
    fine = {verdict["topic"]: verdict["fine"] for verdict in audit["verdicts"]}
    assert not any(fine[topic] for topic in ("stretching", "foreign", "blank", "classes"))
    stretching = next(v["text"] for v in audit["verdicts"] if v["topic"] == "stretching")
    assert "these 2 images widen" in stretching


def test_report_has_verdicts_and_picture(audited: Project) -> None:
    result = audited.run("benchmark", "--quiet")
    assert result.code == 0, result.err
    text = (audited.output / "report.md").read_text()
    report = json.loads((audited.output / "report.json").read_text())
    recorded = json.loads((audited.output / "calibration.json").read_text())["audit"]
    assert report["audit"] == {**recorded, "rows": []}
    assert all(verdict["text"] in text for verdict in recorded["verdicts"])
    assert "](audit.svg)" in text
    picture = (audited.output / "audit.svg").read_text()
    assert all(word in picture for word in ("brightness", "range, as a share", "named"))
    assert "width of the file" not in picture  # all are of one size


def test_few_images_are_too_few(project: Project) -> None:
    project.qconfig(calibration={"images": 1})
    result = project.run("calibrate")
    assert result.code == 0, result.err
    assert "audit, look: number: too few: 1 image; take some hundreds" in result.out
    assert "too few to tell which of them are foreign" in result.out
