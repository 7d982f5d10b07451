"""`qconvert analyze`: which operators it says cost accuracy, what it writes, and when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from isa_here import ISA
from PIL import Image
from project import Project

INT8 = {"decide": "int8", "isa": ISA}


@pytest.fixture(scope="module")
def analyzed(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project with a layer that one scale for all of its weights ruins."""
    project = make_project(tmp_path_factory.mktemp("analyze") / "project")
    weights = torch.load(project.folder / "weights.pt", weights_only=True)
    weights["2.conv1.weight"][0, 0, 0, 0] = 20.0
    torch.save(weights, project.folder / "weights.pt")
    rule = {"match": "2.conv1", "weights": {"observer": "minmax"}}
    project.qconfig(quantization={**INT8, "layers": [rule]})
    result = project.run("analyze")
    assert result.code == 0, result.err
    (project.folder / "said.txt").write_text(result.out + result.err)
    return project


def test_ruined_layer_is_found_with_its_weight_to_blame(analyzed: Project) -> None:
    record = analyzed.record("analysis.json")
    worst = next(place for place in record["places"] if place["rank_alone"] == 1)
    assert worst["name"] == "2.conv1"
    assert worst["rank_gain"] == 1
    assert worst["weight_share"] > 0.9
    # One weight is large: the other channels have hardly a step.
    assert worst["weight"]["worst"]["channel"] != 0
    assert worst["weight"]["worst"]["range_share"] < 0.1
    assert worst["gain_db"]["value"] > 3
    operators = {place["name"]: place for place in record["places"]}
    assert {"0", "2.conv1", "2.conv2", "2.add", "5"} <= operators.keys()
    assert operators["2.conv1"]["macs_share"] == pytest.approx(
        max(place["macs_share"] for place in record["places"])
    )


def test_rule_that_helps_is_told_with_what_it_gives(analyzed: Project) -> None:
    said = (analyzed.folder / "said.txt").read_text()
    record = analyzed.record("analysis.json")
    rule = {"match": "2.conv1", "precision": "float32"}
    (trial,) = (trial for trial in record["trials"] if trial["rule"] == rule)
    assert trial["gain_db"]["low"] > 1
    best = max(record["trials"], key=lambda trial: trial["gain_db"]["value"])
    assert f"what to do: quantization.layers: [{json.dumps(best['rule'])}]" in said
    # What it promises is what is found with the rule.
    layers = [{"match": "2.conv1", "weights": {"observer": "minmax"}}, rule]
    path = analyzed.qconfig(quantization={**INT8, "layers": layers})
    result = analyzed.run("analyze", "--json", "--quiet", "--output", "other")
    assert result.code == 0, result.err
    after = json.loads(result.out)["analysis"]["int8_db"]["value"]
    assert trial["after_db"]["value"] == pytest.approx(after, abs=1e-3)
    analyzed.qconfig(quantization={**INT8, "layers": layers[:1]})
    assert path.exists()


def test_it_is_told_as_table_json_and_picture(analyzed: Project) -> None:
    said = (analyzed.folder / "said.txt").read_text()
    assert "What int8 costs, the worst first (18 of 18 calibration images)" in said
    assert "judged on calibration images" in said
    record = analyzed.record("analysis.json")
    assert f"everything in int8, simulated: {record['int8_db']['value']:.1f} dB" in said
    svg = ElementTree.parse(analyzed.output / "analysis.svg")
    texts = [element.text for element in svg.iter() if element.text]
    assert "2.conv1" in texts
    assert any("everything in int8" in text for text in texts)


def test_nothing_is_done_twice_and_changes_are_seen(analyzed: Project) -> None:
    before = analyzed.state()
    result = analyzed.run("analyze", "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert analyzed.state() == before
    assert "each operator alone" not in result.err
    assert told["analysis"]["places"] == analyzed.record("analysis.json")["places"]
    result = analyzed.run("analyze", "--images", "3")
    assert "analyze: its inputs have changed" in result.err
    assert "(3 of 18 calibration images)" in result.out
    assert analyzed.record("analysis.json")["images"] == 3
    assert analyzed.run("analyze", "--images", "0").code == 2


def test_images_of_any_size(project: Project) -> None:
    generator = np.random.default_rng(1)
    for i, size in enumerate([(16, 16), (20, 24), (33, 17)]):
        pixels = generator.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(project.folder / "images" / "cat" / f"{i}.png")
    project.qconfig(quantization=INT8)
    result = project.run("analyze", "--quiet")
    assert result.code == 0, result.err
    places = project.record("analysis.json")["places"]
    assert next(p for p in places if p["name"] == "2.conv1")["result"]["worst"] is not None


def test_model_without_int8_has_nothing_to_tell(project: Project) -> None:
    layers = [{"match": "*", "precision": "float32"}]
    project.qconfig(quantization={**INT8, "layers": layers})
    result = project.run("analyze")
    assert result.code == 0, result.err
    assert "what to do: nothing, for nothing is rounded" in result.out
    assert project.record("analysis.json")["places"] == []
