"""A user's mistakes: exit code, one message with place and fix, no traceback, nothing left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from project import Project

UNTRACEABLE = """
from torch import nn

class Network(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x.flatten(1)
        return -x.flatten(1)
"""


def wrong_keys(project: Project) -> None:
    project.qconfig(quantization={"activations": {"observer": "histgram"}}, modle={})


def wrong_checkpoint(project: Project) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, project.folder / "weights.pt")


def no_images(project: Project) -> None:
    (project.folder / "empty").mkdir()
    project.qconfig(data={"calibration": "empty"})


def broken_image(project: Project) -> None:
    (project.folder / "images" / "cat" / "0.png").write_text("no image")


def wrong_class_count(project: Project) -> None:
    project.qconfig(model={"source": "network.py:network", "kwargs": {"classes": 5}})


def control_flow(project: Project) -> None:
    (project.folder / "network.py").write_text(UNTRACEABLE)
    project.qconfig(model={"source": "network.py:Network"})


def other_size(project: Project) -> None:
    (project.folder / "other" / "cat").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(project.folder / "other" / "cat" / "0.png")
    project.qconfig(data={"calibration": "images", "evaluation": "other", "labels": "none"})


def untrained(project: Project) -> None:
    state = torch.load(project.folder / "weights.pt", weights_only=True)
    torch.save({k: torch.zeros_like(v) for k, v in state.items()}, project.folder / "weights.pt")


def no_such_layer(project: Project) -> None:
    project.qconfig(quantization={"layers": [{"match": "2.conv9", "precision": "float32"}]})


def raising_source(project: Project) -> None:
    (project.folder / "network.py").write_text("def network():\n    raise RuntimeError('oh')\n")


CASES: list[tuple[Callable[[Project], None], int, list[str]]] = [
    (wrong_keys, 2, [
        "my.yaml: quantization.activations.observer: unknown observer 'histgram'; "
        "did you mean 'histogram'?",
        "my.yaml: modle: unknown key; did you mean 'model'?",
    ]),
    (no_such_layer, 2, ["2.conv9 matches no operator; did you mean '2.conv"]),
    (wrong_checkpoint, 3, ["weights.pt: ", "conv.weight is not in the model", "fix: "]),
    (raising_source, 3, ["raised RuntimeError: oh", "network.py:2"]),
    (no_images, 4, ["there is no image in this folder", "fix: "]),
    (broken_image, 4, ["0.png: is no image, or a damaged one"]),
    (wrong_class_count, 4, ["there are 3 classes, the model has 5 outputs"]),
    (other_size, 4, ["the inputs are 20 x 20, those of the calibration images 16 x 16"]),
    (control_flow, 5, ["torch.fx cannot trace the model", "network.py:6: if x.sum() > 0"]),
    (untrained, 5, ["same output for all images", "give the trained weights"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "code", "said"), CASES, ids=lambda c: getattr(c, "__name__", None)
)
def test_mistake_is_one_message(
    project: Project, mistake: Callable[[Project], None], code: int, said: list[str]
) -> None:
    mistake(project)
    result = project.run("convert", "--quiet")
    assert result.code == code, result.err
    # Where the terminal breaks a line does not matter.
    message = " ".join(result.err.split())
    for text in said:
        assert text in message
    assert "Traceback" not in result.err
    assert result.out == ""
    left = {path.name for path in project.output.iterdir()} if project.output.exists() else set()
    assert "model.int8.pt" not in left
    assert not any(name.startswith(".") for name in left)


def test_evaluation_images_are_checked_on_every_run(project: Project) -> None:
    """Also when no step is stale: they may have been exchanged since."""
    assert project.run("convert", "--quiet").code == 0
    other_size(project)
    result = project.run("benchmark", "--quiet")
    assert result.code == 4, result.err
    assert "the inputs are 20 x 20" in result.err


def test_debug_shows_the_traceback(project: Project) -> None:
    no_images(project)
    result = project.run("fuse", "--debug")
    assert result.code == 4
    assert "Traceback" in result.err


def test_missed_budgets_are_named_and_exit_1(project: Project) -> None:
    project.qconfig(budgets={"min_speedup": 1000, "min_int8_macs": 0.5})
    result = project.run("benchmark", "--quiet", "--set", "data.evaluation=images")
    assert result.code == 1
    assert "min_speedup: " in result.err
    assert "the budget is 1000" in result.err
    assert "min_int8_macs" not in result.err
    assert project.record("report.json")["verdict"] == "budgets missed"


def test_unlabelled_images_give_all_but_top1(project: Project) -> None:
    project.qconfig()
    result = project.run("benchmark", "--quiet", "--set", "data.labels=none", "--output", "other")
    assert result.code == 0, result.err
    assert "top-1" not in result.out
    assert "same answer as float" in result.out
    assert (project.folder / "other" / "report.json").exists()
    assert not project.output.exists()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys, qconvert.cli\n"
        f"sys.argv = ['qconvert', *{arguments}]\n"
        "try:\n    qconvert.cli.main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_bad_qconfig_is_answered_without_torch(project: Project) -> None:
    wrong_keys(project)
    code = (
        "import sys, qconvert.cli\n"
        "sys.argv = ['qconvert', 'convert', 'my.yaml']\n"
        "try:\n    qconvert.cli.main()\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
