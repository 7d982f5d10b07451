"""Files for CPUs without VNNI: what is found out, what is shown, and what `inspect` says elsewhere.

Processes are limited to lesser CPUs by the variables of oneDNN and fbgemm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from project import Project

from qconvert.measurement.cpu_classes import can_be_shown

pytestmark = pytest.mark.skipif(not can_be_shown("avx512"), reason="this CPU shows no AVX-512")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}


def overflowing(project: Project) -> None:
    """All weights of the second convolution of the block are large and positive."""
    weights = torch.load(project.folder / "weights.pt", weights_only=True)
    weights["2.conv1.weight"] = weights["2.conv1.weight"].abs() + 1.0
    torch.save(weights, project.folder / "weights.pt")


@pytest.fixture(scope="module")
def finished(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project with the default `isa`, benchmarked on two classes."""
    project = make_project(tmp_path_factory.mktemp("portable") / "project")
    overflowing(project)
    project.qconfig(quantization={"decide": "int8"})
    result = project.run("benchmark", "--quiet", "--isa", "avx2,avx512")
    assert result.code == 0, result.err
    assert "On classes of CPUs" in result.out
    return project


def test_layers_that_gave_up_bits_are_named_everywhere(finished: Project) -> None:
    plan = finished.record("plan.json")
    given_up = {o["name"]: o["fewer_bits"] for o in plan["operators"] if o["fewer_bits"]}
    assert "2.conv1" in given_up
    assert "overflow on avx2" in given_up["2.conv1"]["reason"]
    report = finished.record("report.json")
    assert {layer["name"] for layer in report["fewer_bits"]} == set(given_up)
    text = (finished.output / "report.md").read_text()
    assert "## Fewer bits, for CPUs without VNNI" in text
    assert "| 2.conv1 | weights of 8 of 8 channels |" in text
    extra = {"manifest.json": ""}
    torch.jit.load(str(finished.output / "model.int8.pt"), _extra_files=extra)
    manifest = json.loads(extra["manifest.json"])
    assert manifest["fewer_bits"] == report["fewer_bits"]
    assert {"avx2", "avx512"} <= set(manifest["verified_isa"])


def test_classes_have_the_accuracy_of_this_cpu(finished: Project) -> None:
    report = finished.record("report.json")
    assert [found["isa"] for found in report["classes"]] == ["avx2", "avx512"]
    own = report["accuracy"]["sqnr_db"]["value"]
    for found in report["classes"]:
        assert found["accuracy"]["images"] == report["accuracy"]["images"]
        assert found["accuracy"]["sqnr_db"]["value"] > own - 1
        assert found["latency"]["models"]["int8"]["median_s"]["value"] > 0
    assert "## On classes of CPUs" in (finished.output / "report.md").read_text()


def test_file_for_vnni_is_worse_without_it(finished: Project) -> None:
    """And the classes show it: what portable files are spared."""
    other = ("--set", "quantization={isa: vnni, decide: int8}", "--set", "output=vnni")
    result = finished.run("benchmark", "--json", "--quiet", "--isa", "avx2", *other)
    assert result.code == 0, result.err
    report = json.loads(result.out)["report"]
    assert report["fewer_bits"] == []
    own, found = report["accuracy"], report["classes"][0]["accuracy"]
    if can_be_shown("vnni"):
        assert found["sqnr_db"]["value"] < own["sqnr_db"]["value"] - 3


def test_what_overflows_is_looked_for_once(finished: Project) -> None:
    """It is an input from then on: a plan depends on the record."""
    again = finished.run("convert")
    assert "looking for overflow" not in again.err
    assert finished.run("convert", "--force").err.count("looking for overflow") == 1


def test_file_outside_of_its_contract_is_found(finished: Project) -> None:
    made = finished.run("convert", "--set", "quantization.isa=vnni", "--set", "output=vnni2")
    assert made.code == 0, made.err
    limited = replace(finished, environment={**os.environ, **AVX2}, cold=True)
    for file, there in (("vnni2/model.int8.pt", False), ("out/model.int8.pt", True)):
        result = limited.call("inspect", file, "--json", "--quiet")
        needs = {need["what"]: need for need in json.loads(result.out)["needs"]}
        (cpu,) = (need for what, need in needs.items() if "CPU" in what)
        assert cpu["here"] is there
        assert ("this one is of class avx2" in cpu["remark"]) is not there


@pytest.mark.parametrize(
    ("environment", "asked", "told"),
    [
        ({}, "avx2,sse9", "unknown class of CPUs: sse9"),
        (AVX2, "avx512", "this CPU (class avx2) cannot show avx512"),
    ],
)
def test_class_that_cannot_be_shown_is_refused_first(
    finished: Project, environment: dict[str, str], asked: str, told: str
) -> None:
    limited = replace(finished, environment={**os.environ, **environment}, cold=True)
    result = limited.run("benchmark", "--quiet", "--isa", asked)
    assert result.code == 2
    assert told in result.err
    assert "Traceback" not in result.err


def test_where_a_class_cannot_be_shown_all_that_could_overflow_gives_up_bits(
    finished: Project,
) -> None:
    limited = replace(finished, environment={**os.environ, **AVX2}, cold=True)
    result = limited.run("convert", "--set", "output=limited")
    assert result.code == 0, result.err
    assert "cannot show how avx512 sums" in result.err
    plan = json.loads((finished.folder / "limited" / "plan.json").read_text())
    layers = [o for o in plan["operators"] if o["weight"] is not None]
    assert all(o["fewer_bits"] is not None for o in layers)
