"""The outputs of a model have names, one of them is measured, and it holds answers or numbers."""

from __future__ import annotations

from collections import OrderedDict, namedtuple

import pytest
import torch

from qconvert.errors import ModelOutputError
from qconvert.models.outputs import are_answers, choose, only, tensors

A, B, C = torch.zeros(1), torch.ones(1), torch.arange(3)
Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (A, {"output": A}),
        ((A, B), {"0": A, "1": B}),
        ([B], {"0": B}),
        (Pair(A, B), {"0": A, "1": B}),
        ({"out": A, "aux": B}, {"out": A, "aux": B}),
        (OrderedDict(z=A, a=B), {"z": A, "a": B}),
        ({"boxes": [A, B], "maps": {"p2": C}}, {"boxes.0": A, "boxes.1": B, "maps.p2": C}),
        ((A, (B, {"x": [C]})), {"0": A, "1.0": B, "1.1.x.0": C}),
        ({3: A, "": B}, {"3": A, "": B}),
    ],
    ids=["tensor", "tuple", "list", "named tuple", "dict", "ordered", "nested", "deep", "keys"],
)
def test_outputs_are_named_by_their_place(value, names):
    found = tensors(value)
    assert list(found) == list(names)
    assert all(found[name] is tensor for name, tensor in names.items())


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        (None, "its result is NoneType, no tensor, which TorchScript cannot return"),
        ("cat", "its result is str, no tensor, which TorchScript cannot return"),
        ((A, None), "output '1' is NoneType, no tensor, which TorchScript cannot return"),
        (
            {"logits": A, "info": {"loss": 3.5}},
            "output 'info.loss' is float, no tensor, which TorchScript cannot return",
        ),
        ((), "the model returns no tensor"),
        ({"a": []}, "the model returns no tensor"),
    ],
    ids=["None", "str", "tuple", "nested", "empty", "nested empty"],
)
def test_result_that_torchscript_cannot_return_is_refused(value, fact):
    with pytest.raises(ModelOutputError) as caught:
        tensors(value)
    assert caught.value.facts == [fact]
    assert caught.value.where == "model.source"


FOUND = {"mask": C, "out": A, "aux": B}


@pytest.mark.parametrize(("wanted", "name"), [(None, "out"), ("aux", "aux"), ("out", "out")])
def test_measured_output_is_the_one_asked_for_or_the_first_of_floats(wanted, name):
    assert choose(FOUND, wanted) == name


@pytest.mark.parametrize(
    ("wanted", "fact"),
    [
        ("auxiliary", "the model has no output 'auxiliary'; did you mean 'aux'?"),
        ("7", "the model has no output '7'"),
        ("mask", "the model has no output 'mask'"),
    ],
)
def test_output_that_is_not_there_is_refused_with_those_that_are(wanted, fact):
    with pytest.raises(ModelOutputError) as caught:
        choose(FOUND, wanted)
    assert caught.value.facts == [fact]
    assert caught.value.where == "model.output"
    assert caught.value.fix == "choose one of out, aux"


def test_model_without_float_outputs_is_refused():
    with pytest.raises(ModelOutputError, match="the model returns no float tensor"):
        choose({"0": C}, None)


def test_only_runs_the_model_with_one_of_its_outputs():
    model = only(lambda x, y: {"sum": x + y, "both": (x, y)}, "both.1")
    assert model(A, B) is B


UNIT = torch.nn.functional.normalize(torch.rand(4, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("output", "auto", "classes"),
    [
        (torch.rand(1, 10), True, True),
        (torch.rand(1, 21, 4, 4), True, True),
        (UNIT, False, True),
        # The softmax of a sure model is of unit length too, and adds up to 1.
        (torch.eye(3), True, True),
        (UNIT * 1.01, True, True),
        (torch.cat([UNIT, 2 * UNIT]), True, True),
        # Unit length means something for rows only.
        (torch.nn.functional.normalize(torch.rand(1, 5, 3, 3)), True, True),
        (torch.rand(1, 1), False, None),
        (torch.rand(1, 1, 8, 8), False, None),
        (torch.rand(10), False, None),
        (torch.rand(1, 5, 10), False, None),
    ],
    ids=["classes", "map", "embedding", "one-hot", "longer", "some longer", "unit map", "score",
         "depth", "row", "tokens"],
)  # fmt: skip
def test_largest_value_is_an_answer(output, auto, classes):
    assert are_answers(output, "auto") is auto
    if classes is not None:
        assert are_answers(output, "classes") is classes
    assert are_answers(output, "none") is False


@pytest.mark.parametrize("sure", [0.5, 0.99, 0.9999, 1.0])
def test_shares_are_answers_however_sure_the_model_is(sure):
    """A softmax that is nearly 1 has unit length, as an embedding does."""
    row = torch.tensor([[sure, (1 - sure) / 2, (1 - sure) / 2]])
    assert are_answers(row, "auto") is True
    assert are_answers(torch.tensor([[0.6, -0.8, 0.0]]), "auto") is False


@pytest.mark.parametrize("shape", [(1, 1), (1, 5, 7), (4,)])
def test_classes_that_the_shape_cannot_hold_are_refused(shape):
    with pytest.raises(ModelOutputError, match="holds no classes along axis 1"):
        are_answers(torch.zeros(shape), "classes")
