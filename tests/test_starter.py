"""The options of `qconvert init`, and the text of a starter qconfig."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qconvert.errors import QConfigError
from qconvert.starter import Findings, Request, Setting, request, to_yaml


def asked(folder: Path, kwargs: str = "{}", target: str = "q.yaml", **paths: Path) -> Request:
    options = {"images": folder, "checkpoint": None, "evaluation": None, **paths}
    return request(folder / target, "a:b", kwargs=kwargs, overwrite=False, **options)


@pytest.mark.parametrize(
    ("kwargs", "fact"),
    [
        ("{1: 2}", "has the key 1, which is no name of an argument"),
        ("{a: 2020-13-45}", "is not valid YAML: month must be in 1..12"),
        ("{a: 2020-12-05}", "holds NaN, infinity or what JSON cannot hold"),
        ("{a: .nan}", "holds NaN, infinity or what JSON cannot hold"),
        ("{a: 1, a: 2}", "is not valid YAML: the key 'a' stands twice"),
        ("{a: [", "is not valid YAML: expected the node content, but found '<stream end>'"),
        ("[3]", "is no mapping in YAML, as {num_classes: 10}"),
    ],
)
def test_wrong_arguments_are_a_fact(tmp_path, kwargs, fact):
    with pytest.raises(QConfigError) as caught:
        asked(tmp_path, kwargs)
    assert caught.value.facts == [f"--kwargs: {kwargs!r} {fact}"]


def test_arguments_are_yaml_as_in_a_qconfig(tmp_path):
    assert asked(tmp_path, "{rate: 1e-3, name: x}").kwargs == {"rate": 0.001, "name": "x"}


def test_paths_that_cannot_be_looked_at_are_facts(tmp_path):
    long = tmp_path / ("x" * 300)
    with pytest.raises(QConfigError) as caught:
        asked(tmp_path, images=long, checkpoint=long, evaluation=long, target=long.name)
    places = ("--images", "--checkpoint", "--evaluation", "the file to write")
    reason = "cannot be reached: File name too long"
    assert caught.value.facts == [f"{place}: {long} {reason}" for place in places]


@pytest.mark.parametrize("name", ["[v2] x/net.py", "a: b/net.py", "it's #1/net.py", "net.py"])
def test_source_is_read_back_as_it_was(tmp_path, name):
    nothing = Setting(None)
    found = Findings(
        source=f"{tmp_path / name}:f", kwargs={}, checkpoint=None, checkpoint_remark="",
        output=None, calibration=tmp_path, evaluation=nothing, labels=Setting("none"),
        classes=nothing, preprocess={},
    )  # fmt: skip
    text = to_yaml(found, tmp_path / "q.yaml")
    assert yaml.safe_load(text)["model"]["source"] == f"{name}:f"
