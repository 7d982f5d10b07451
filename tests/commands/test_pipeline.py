"""The four commands as a user runs them, each in a process that is new from the start."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
from project import Project

COMMANDS = ("fuse", "calibrate", "convert", "benchmark")
WRITTEN = {
    "fuse": {"float.pt", "fused.pt", "fused.json"},
    "calibrate": {"calibration.safetensors", "calibration.json", "audit.svg", "overflow.json"},
    "convert": {"plan.json", "model.int8.pt", "convert.json"},
    "benchmark": {"report.json", "report.md", "report.html", "automation.svg"},
}


@pytest.fixture(scope="module")
def finished(make_project, tmp_path_factory) -> tuple[Project, dict[str, object]]:
    """A project after the four commands, one after the other, and what they printed."""
    project = replace(make_project(tmp_path_factory.mktemp("finished") / "project"), cold=True)
    project.qconfig(quantization=None)
    return project, {command: project.run(command) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_ends_well_with_its_figures_and_files(finished, command: str) -> None:
    project, results = finished
    result = results[command]
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert "Warning" not in result.err
    assert "same answer as float" in result.out
    assert "Latency, batch 1, 1 thread" in result.out
    for name in WRITTEN[command]:
        assert (project.output / name).stat().st_size > 0
        if command != "benchmark" or name != "model.int8.pt":
            assert f"wrote {project.output / name}" in result.out
    following = dict(itertools.pairwise(COMMANDS)).get(command)
    if following:
        assert f"next: qconvert {following} my.yaml" in result.out


def test_nothing_is_left_over(finished) -> None:
    project, _ = finished
    assert set(project.state()) == set().union(*WRITTEN.values())


def test_settings_are_echoed_first_and_talk_goes_to_stderr(finished) -> None:
    _, results = finished
    lines = results["convert"].err.splitlines()
    assert lines[0].startswith("qconvert 0.1.0 convert my.yaml")
    assert any(line.startswith("  quantization:") and "isa=portable" in line for line in lines)
    assert "quantization:" not in results["convert"].out


def test_second_benchmark_only_measures(finished) -> None:
    project, _ = finished
    before = project.state()
    result = project.run("benchmark")
    after = project.state()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"report.json", "report.md", "report.html"}
    assert "building the float model" not in result.err
    assert not any(f"\n{step}: " in result.err for step in ("fuse", "calibrate", "convert"))


def test_benchmark_alone_does_the_whole_job_and_makes_the_same_file(finished, tmp_path) -> None:
    """One process against four; the bytes are the same, but for the report's measurements."""
    project, _ = finished
    copy = Project(tmp_path / "copy", cold=True)
    shutil.copytree(project.folder, copy.folder, ignore=shutil.ignore_patterns("out"))
    result = copy.run("benchmark")
    assert result.code == 0, result.err
    for reason in ("fuse: fused.json is missing", "convert: convert.json is missing"):
        assert reason in result.err
    one, four = copy.state(), project.state()
    for name in ("fused.pt", "calibration.safetensors", "plan.json", "model.int8.pt"):
        assert one[name] == four[name], name


def test_report_is_the_same_in_every_format(finished) -> None:
    project, results = finished
    report = project.record("report.json")
    assert report["version"] == 2
    assert report["coverage"]["int8_macs_share"] == 1.0
    shown = f"{report['accuracy']['agreement']['value']:.4f}"
    assert shown in (project.output / "report.md").read_text()
    assert shown in results["benchmark"].out
    assert report["verdict"] == "no budgets set"
    assert any("calibration images" in note for note in report["notes"])


def test_manifest_travels_in_the_file(finished) -> None:
    project, _ = finished
    extra = {"manifest.json": ""}
    torch.jit.load(str(project.output / "model.int8.pt"), _extra_files=extra)
    manifest = json.loads(extra["manifest.json"])
    assert manifest["classes"] == ["cat", "cow", "dog"]
    # The network averages over whatever is left of height and width.
    assert manifest["inputs"] == [{"shape": [None, 3, None, None], "dtype": "float32"}]
    assert project.record("fused.json")["input_shapes"] == [[1, 3, 16, 16]]
    assert manifest["preprocess"]["mean"] == [0.5]
    assert manifest["isa"] == "portable"
    assert manifest["qconfig"]["model"]["source"] == "network.py:network"
    assert manifest["accuracy"]["images"] == 18
    assert str(project.folder) not in extra["manifest.json"].decode()


def test_plan_has_a_line_for_every_operator(finished) -> None:
    project, _ = finished
    operators = {o["name"]: o for o in project.record("plan.json")["operators"]}
    assert list(operators) == ["0", "2.conv1", "2.conv2", "2.add", "3", "4", "5"]
    assert operators["0"]["activation"] == "saturation"
    assert operators["2.add"]["with_activation"] == "2.relu:2"
    assert operators["5"]["float_output"] is True


def test_json_is_the_whole_of_stdout(finished) -> None:
    project, _ = finished
    for command, key in (("convert", "record"), ("benchmark", "report")):
        result = project.run(command, "--json", "--quiet")
        content = json.loads(result.out)
        assert content["command"] == command
        assert key in content
        assert result.err == ""
