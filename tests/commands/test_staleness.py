"""What runs again after a change, and what does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from project import Project


@pytest.fixture(scope="module")
def shared(make_project: Callable[[Path], Project], tmp_path_factory) -> Project:
    """A converted project; each test changes one thing and converts again."""
    project = make_project(tmp_path_factory.mktemp("stale") / "project")
    assert project.run("convert", "--quiet").code == 0
    return project


def steps_run(error: str) -> list[str]:
    """The steps that said why they run."""
    return [s for s in ("fuse", "calibrate", "convert") if f"\n{s}: " in error]


def change_weights_rule(project: Project) -> None:
    project.qconfig(quantization={"weights": {"observer": "minmax"}})


def change_calibration(project: Project) -> None:
    project.qconfig(calibration={"averaging": 0.5})


def change_batch_size(project: Project) -> None:
    project.qconfig(calibration={"averaging": 0.5, "batch_size": 3})


def fuse_less(project: Project) -> None:
    project.qconfig(calibration={"averaging": 0.5}, fuse={"modules": [["0", "1"]]})


def fuse_all(project: Project) -> None:
    project.qconfig(calibration={"averaging": 0.5})


def change_code(project: Project) -> None:
    source = project.folder / "network.py"
    source.write_text(source.read_text() + "\n# changed\n")


def change_image(project: Project) -> None:
    Image.new("RGB", (16, 16), "red").save(project.folder / "images" / "cat" / "0.png")


def lose_plan(project: Project) -> None:
    (project.output / "plan.json").unlink()


def touch_up_file(project: Project) -> None:
    with (project.output / "model.int8.pt").open("ab") as file:
        file.write(b"x")


# In this order: each starts from what the one before has left.
@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda project: None, []),
        (change_weights_rule, ["convert"]),
        (change_calibration, ["calibrate", "convert"]),
        (change_batch_size, []),
        (fuse_less, ["fuse", "calibrate", "convert"]),
        (fuse_all, ["fuse", "calibrate", "convert"]),
        (change_code, ["fuse"]),
        (lose_plan, ["convert"]),
        (touch_up_file, ["convert"]),
        (change_image, ["fuse", "calibrate", "convert"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_what_depends_on_a_change_runs_again(
    shared: Project, change: Callable[[Project], None], again: list[str]
) -> None:
    change(shared)
    result = shared.run("convert")
    assert result.code == 0, result.err
    assert steps_run(result.err) == again


def test_force_runs_everything(shared: Project) -> None:
    result = shared.run("convert", "--force")
    assert steps_run(result.err) == ["fuse", "calibrate", "convert"]
    assert "convert: --force" in result.err


def test_operators_are_timed_once(make_project: Callable[[Path], Project], tmp_path: Path) -> None:
    """What was timed is an input from then on: a plan depends on the record, not on a stopwatch."""
    project = make_project(tmp_path / "project")
    project.qconfig(quantization={"decide": "measure"})
    first = project.run("convert")
    assert first.code == 0, first.err
    assert "\ntimings: timings.json is missing" in first.err
    times = project.record("timings.json")["nanoseconds"]
    assert any("classic" in ways and ways["float32"] > 0 for ways in times.values())
    again = project.run("convert")
    assert "timings:" not in again.err
    assert steps_run(again.err) == []
    assert project.run("convert", "--force").err.count("timing the model's operators") == 1
    assert steps_run(project.run("convert").err) == []
    # With other times there is another plan.
    record = project.record("timings.json")
    for ways in record["nanoseconds"].values():
        ways.update({way: 1e9 for way in ways if way != "float32"})
    (project.output / "timings.json").write_text(json.dumps(record))
    slower = project.run("convert")
    assert steps_run(slower.err) == ["convert"]
    layers = [o for o in project.record("plan.json")["operators"] if o["macs"]]
    assert {layer["precision"] for layer in layers} == {"float32"}
