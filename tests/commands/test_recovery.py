"""Recovery: what methods are tried, what is kept of them, and where it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from isa_here import ISA
from project import Project

from qconvert.quantization.recovery.trial import METHODS

INT8 = {"decide": "int8", "isa": ISA}


@pytest.fixture(scope="module")
def recovered(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project whose channels differ in size, with every method on `auto`."""
    project = make_project(tmp_path_factory.mktemp("recovery") / "project")
    weights = torch.load(project.folder / "weights.pt", weights_only=True)
    weights["0.weight"] *= torch.logspace(0, -2, 8).view(8, 1, 1, 1)
    torch.save(weights, project.folder / "weights.pt")
    project.qconfig(quantization=INT8, recovery=dict.fromkeys(METHODS, "auto"))
    result = project.run("benchmark", "--quiet")
    assert result.code == 0, result.err
    return project


def test_what_is_kept_helps_on_images_that_it_did_not_see(recovered: Project) -> None:
    trials = recovered.record("convert.json")["recovery"]
    assert [trial["method"] for trial in trials] == [m for m in METHODS if m != "two_terms"]
    for trial in trials:
        assert trial["kept"] == (trial["after_db"] > trial["before_db"])
    assert any(trial["kept"] for trial in trials)


def test_it_is_told_in_report_and_manifest(recovered: Project) -> None:
    trials = recovered.record("convert.json")["recovery"]
    assert recovered.record("report.json")["recovery"] == trials
    assert "## Recovery" in (recovered.output / "report.md").read_text()
    extra = {"manifest.json": ""}
    torch.jit.load(str(recovered.output / "model.int8.pt"), _extra_files=extra)
    # Seconds are never the same, a file's bytes are.
    told = [{k: v for k, v in trial.items() if k != "seconds"} for trial in trials]
    assert json.loads(extra["manifest.json"])["recovery"] == told


def test_nothing_is_tried_again(recovered: Project) -> None:
    before = (recovered.output / "model.int8.pt").read_bytes()
    result = recovered.run("convert")
    assert result.code == 0
    assert "recovery: rounding:" in result.out
    assert (recovered.output / "model.int8.pt").read_bytes() == before
    result = recovered.run("convert", "--force", "--quiet")
    assert result.code == 0, result.err
    assert (recovered.output / "model.int8.pt").read_bytes() == before


def test_switches_are_words_of_yaml(project: Project) -> None:
    """`on` and `off` without quotes, which YAML reads as true and false."""
    path = project.qconfig(quantization=INT8, recovery=None)
    with path.open("a") as file:
        file.write("recovery: {equalization: off, rounding: on, bias_correction: off}\n")
    result = project.run("convert", "--quiet")
    assert result.code == 0, result.err
    (trial,) = project.record("convert.json")["recovery"]
    assert (trial["method"], trial["kept"]) == ("rounding", True)


def test_too_few_images_are_said(project: Project) -> None:
    project.qconfig(quantization=INT8, calibration={"images": 5}, recovery=None)
    result = project.run("convert")
    assert result.code == 0, result.err
    assert "recovery: not tried: 5 calibration images are fewer than 8" in result.err
    assert project.record("convert.json")["recovery"] == []
