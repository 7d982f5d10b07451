"""An error says what, where and how to fix it: to people in lines, to programs as values."""

from __future__ import annotations

import pytest

from qconvert.errors import (
    BadImageError,
    ConversionError,
    ImageError,
    LabelError,
    ModelError,
    QConfigError,
    QConvertError,
    UntraceableError,
    did_you_mean,
    kinds,
)


def test_every_fact_has_its_place_and_the_fix_comes_last():
    error = LabelError(["a is no class", "b is no class"], where="labels.csv", fix="name them")
    assert str(error) == ("labels.csv: a is no class\nlabels.csv: b is no class\nfix: name them")
    assert error.to_json() == {
        "kind": "labels",
        "exit_code": 4,
        "facts": ["a is no class", "b is no class"],
        "where": "labels.csv",
        "fix": "name them",
    }


def test_kind_has_its_remedy_unless_there_is_a_better_one():
    assert "data.on_bad_image: skip" in BadImageError("is damaged").fix
    assert BadImageError("is damaged", fix="shrink it").fix == "shrink it"
    assert str(ConversionError("no place, no remedy")) == "no place, no remedy"


@pytest.mark.parametrize(("count", "more"), [(20, []), (21, ["and 1 more, which --json lists"])])
def test_people_are_shown_twenty_facts_and_programs_all(count, more):
    error = QConfigError([f"fact {i}" for i in range(count)], where="q.yaml")
    lines = str(error).splitlines()
    assert lines[:20] == [f"q.yaml: fact {i}" for i in range(20)]
    assert lines[20:-1] == more
    assert lines[-1].startswith("fix: ")
    assert error.to_json()["facts"] == [f"fact {i}" for i in range(count)]


@pytest.mark.parametrize(
    ("group", "code"), [(QConfigError, 2), (ModelError, 3), (ImageError, 4), (ConversionError, 5)]
)
def test_kinds_of_a_group_share_its_exit_code(group, code):
    assert {kind.exit_code for kind in kinds() if issubclass(kind, group)} == {code}


def test_every_kind_has_a_name_of_its_own_a_cause_and_a_remedy():
    found = kinds()
    assert len({kind.name for kind in found}) == len(found)
    assert UntraceableError in found
    assert not {QConvertError, ModelError, ImageError, ConversionError} & set(found)
    for kind in found:
        assert kind.__doc__ != QConvertError.__doc__
        assert kind.remedy


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("resnet81", ["resnet18", "vgg11"], "; did you mean 'resnet18'?"),
        ("zzz", ["resnet18"], ""),
        ("a", [], ""),
    ],
)
def test_nearest_name_is_a_hint(name, known, hint):
    assert did_you_mean(name, known) == hint
