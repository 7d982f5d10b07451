"""`qconvert finetune`: with labels, without, in several processes; and what convert takes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from isa_here import ISA
from project import Project
from team import torchrun

# Ranges that are far too narrow: what is cut off is learned again.
INT8 = {
    "decide": "int8",
    "isa": ISA,
    "activations": {"observer": "percentile", "percentile": 0.8},
}
BRIEF = {
    "epochs": 6,
    "minutes": None,
    "batch_size": 5,
    "scale_learning_rate": 0.1,
    "held_out": 0.25,
}


@pytest.fixture(scope="module")
def make_hard(make_project: Callable[[Path], Project]) -> Callable[[Path], Project]:
    """Lays out a project whose int8 form is bad, with nothing recovered."""

    def make(folder: Path) -> Project:
        project = make_project(folder)
        project.qconfig(quantization=INT8, finetune=BRIEF)
        return project

    return make


@pytest.fixture(scope="module")
def tuned(
    make_hard: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, Any]]:
    """A project after `finetune`, and what that printed."""
    project = make_hard(tmp_path_factory.mktemp("finetune") / "project")
    result = project.run("finetune", "--json", "--quiet")
    assert result.code == 0, result.err
    return project, json.loads(result.out)


def manifest(project: Project) -> dict[str, Any]:
    extra = {"manifest.json": ""}
    torch.jit.load(str(project.output / "model.int8.pt"), _extra_files=extra)
    return json.loads(extra["manifest.json"])


def test_int8_comes_nearer_to_float(tuned: tuple[Project, dict[str, Any]]) -> None:
    project, printed = tuned
    training = project.record("finetune.json")["training"]
    assert training["best_epoch"] > 0
    assert training["after"]["sqnr_db"] > training["before"]["sqnr_db"]
    before = printed["finetune"]["before"]["sqnr_db"]["value"]
    assert printed["accuracy"]["sqnr_db"]["value"] > before
    assert not list(project.output.glob("*checkpoint*"))


def test_how_it_was_trained_is_told(tuned: tuple[Project, dict[str, Any]]) -> None:
    project, _ = tuned
    told = manifest(project)
    training = project.record("convert.json")["finetune"]
    assert (training["teacher"], training["epochs"]) == ("float", 6)
    assert told["finetune"] == {k: v for k, v in training.items() if k != "seconds"}
    assert told["qconfig"]["finetune"]["scale_learning_rate"] == 0.1
    assert project.run("benchmark", "--quiet").code == 0
    assert project.record("report.json")["finetune"] == training
    assert "## Fine-tuning" in (project.output / "report.md").read_text()


def test_nothing_is_done_twice(tuned: tuple[Project, dict[str, Any]]) -> None:
    project, _ = tuned
    before = (project.output / "model.int8.pt").read_bytes()
    result = project.run("finetune")
    assert result.code == 0
    assert "epoch 1" not in result.err
    assert "int8 before" in result.out
    result = project.run("convert", "--force")
    assert "convert: with what was trained" in result.err
    assert (project.output / "model.int8.pt").read_bytes() == before


def test_it_can_be_left_out(
    make_hard: Callable[[Path], Project], tuned: tuple[Project, dict[str, Any]]
) -> None:
    project, _ = tuned
    trained = (project.output / "model.int8.pt").read_bytes()
    result = project.run("convert", "--set", "finetune.apply=off")
    assert result.code == 0, result.err
    assert "finetuned.safetensors is left out (finetune.apply: off)" in result.err
    assert project.record("convert.json")["finetune"] is None
    assert (project.output / "model.int8.pt").read_bytes() != trained
    result = project.run("convert", "--set", "calibration.averaging=0.5")
    assert result.code == 0, result.err
    result = project.run("convert", "--set", "quantization.weights.observer=histogram")
    assert "finetuned.safetensors is left out: its inputs have changed" in result.err
    result = project.run("convert", "--quiet")
    assert (project.output / "model.int8.pt").read_bytes() == trained


def test_no_epoch_begins_for_which_there_is_no_time(
    make_hard: Callable[[Path], Project], tmp_path: Path
) -> None:
    """There is always one; then weights are rounded."""
    project = make_hard(tmp_path / "project")
    result = project.run("finetune", "--quiet", "--set", "finetune.minutes=0.0001")
    assert result.code == 0, result.err
    training = project.record("finetune.json")["training"]
    assert (training["epochs"], training["ended"]) == (1, "minutes")


def test_labels_teach(make_hard: Callable[[Path], Project], tmp_path: Path) -> None:
    project = make_hard(tmp_path / "project")
    result = project.run("finetune", "--quiet", "--set", "finetune.teacher=both")
    assert result.code == 0, result.err
    training = project.record("finetune.json")["training"]
    assert training["teacher"] == "both"
    assert training["after"]["top1"] >= training["before"]["top1"]
    assert training["after"]["cross_entropy"] is not None


def test_processes_share_the_batches(
    make_hard: Callable[[Path], Project], tuned: tuple[Project, dict[str, Any]], tmp_path: Path
) -> None:
    """The same steps, but for the order in which float sums are added."""
    project = make_hard(tmp_path / "project")
    result = torchrun(project, 2, "finetune", "my.yaml", "--quiet")
    assert result.code == 0, result.err
    training = project.record("finetune.json")["training"]
    alone = tuned[0].record("finetune.json")["training"]
    assert training["processes"] == 2
    assert training["after"]["sqnr_db"] == pytest.approx(alone["after"]["sqnr_db"], abs=0.5)
    assert training["before"] == alone["before"]


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["finetune.images=few"], 5, "are fewer than"),
        (["data.labels=none", "finetune.teacher=labels"], 2, "finetune.teacher: labels needs"),
        (["finetune.epoch=3"], 2, "did you mean 'epochs'"),
        (["finetune.images=nowhere"], 2, "there is no folder"),
        (["quantization.layers=[{match: '*', precision: float32}]"], 5, "no layer of the plan"),
    ],
)
def test_mistakes(
    make_hard: Callable[[Path], Project], tmp_path: Path, settings: list[str], code: int, words: str
) -> None:
    project = make_hard(tmp_path / "project")
    few = project.folder / "few"
    few.mkdir()
    for path in (project.folder / "images" / "cat").iterdir():
        (few / path.name).write_bytes(path.read_bytes())
    options = [part for setting in settings for part in ("--set", setting)]
    result = project.run("finetune", *options)
    assert (result.code, words in result.err) == (code, True), result.err
    assert "Traceback" not in result.err
