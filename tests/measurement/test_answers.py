"""Answers of outputs that were made by hand, with the probability that a model gives them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert.errors import LabelError, MetricError
from qconvert.measurement.answers import Answer, Classes, Ctc, Decoder, Users

BLANK = "-"


def test_class_has_the_softmax_of_the_outputs_as_confidence() -> None:
    """e^0, e^1 and e^3 of the three classes."""
    value, confidence = Classes()(torch.tensor([[0.0, 3.0, 1.0]]))
    assert value == 1
    assert confidence == pytest.approx(math.e**3 / (1 + math.e + math.e**3), abs=1e-9)


def test_shares_are_the_confidence_as_they_are() -> None:
    value, confidence = Classes()(torch.tensor([[0.2, 0.7, 0.1]]))
    assert (value, confidence) == (1, pytest.approx(0.7, abs=1e-6))


def test_share_of_one_beside_zeros_is_certain() -> None:
    assert Classes()(torch.tensor([[0.0, 0.0, 1.0]])) == (2, 1.0)


@pytest.mark.parametrize(
    "row",
    [[0.2, 0.7, 0.2], [-0.1, 0.7, 0.4]],
    ids=["more than one together", "one of them negative"],
)
def test_outputs_that_are_no_shares_are_logits(row: list[float]) -> None:
    value, confidence = Classes()(torch.tensor([row]))
    exponents = [math.exp(x) for x in row]
    assert (value, confidence) == (1, pytest.approx(exponents[1] / sum(exponents), abs=1e-6))


def test_log_probabilities_are_read() -> None:
    value, confidence = Classes()(torch.tensor([[0.2, 0.7, 0.1]]).log())
    assert (value, confidence) == (1, pytest.approx(0.7, abs=1e-6))


def test_large_logits_do_not_overflow() -> None:
    assert Classes()(torch.tensor([[1e4, -1e4, 1e4 - 800]])) == (0, 1.0)


@pytest.mark.parametrize(
    ("row", "first", "confidence"),
    [([1.0] * 1000, 0, 0.001), ([0, 2, 2, -50], 1, None), ([0.1, 0.1, 0.4, 0.4], 2, 0.4)],
    ids=["all of a thousand", "two logits", "two shares"],
)
def test_of_equal_outputs_the_first_class_is_the_answer(
    row: list[float], first: int, confidence: float | None
) -> None:
    answer = Classes()(torch.tensor([row], dtype=torch.float32))
    assert answer.value == first
    if confidence is not None:
        assert answer.confidence == pytest.approx(confidence, abs=1e-6)


def alphabet_with(characters: str, blank: int) -> str:
    """The characters of all classes in order, the blank among them."""
    place = blank % (len(characters) + 1)
    return characters[:place] + BLANK + characters[place:]


def steps_of(path: str, characters: str, blank: int) -> Tensor:
    """Logits (1, steps, classes) whose best path is spelled by `path`."""
    classes = alphabet_with(characters, blank)
    places = torch.tensor([classes.index(c) for c in path])
    return 9.0 * F.one_hot(places, len(classes)).float().unsqueeze(0)


def collapsed(path: str) -> str:
    """Repeats taken once, then blanks left out: the rule of Graves et al. (2006), section 3.1."""
    return "".join(c for c, _ in itertools.groupby(path) if c != BLANK)


def by_all_paths(shares: Tensor, classes: str, text: str) -> float:
    """The probability of a text: the sum over all paths that spell it."""
    total = 0.0
    for path in itertools.product(range(len(classes)), repeat=len(shares)):
        if collapsed("".join(classes[i] for i in path)) == text:
            total += math.prod(float(shares[step, i]) for step, i in enumerate(path))
    return total


@pytest.mark.parametrize("blank", [0, -1, 3, 1, 2], ids=lambda blank: f"blank {blank}")
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("AAB-B", "ABB"),
        ("AABBB", "AB"),
        ("A-A-A", "AAA"),
        ("-CC--", "C"),
        ("B", "B"),
        ("CBA", "CBA"),
        ("-----", ""),
    ],
)
def test_repeats_and_blanks_collapse(path: str, text: str, blank: int) -> None:
    answer = Ctc("ABC", blank)(steps_of(path, "ABC", blank))
    assert answer.value == text
    assert 0.9 < answer.confidence <= 1


def random_logits(seed: int, steps: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(1, steps, classes, generator=generator)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("blank", [0, -1, 1], ids=["first", "last", "in the middle"])
@pytest.mark.parametrize(("steps", "characters"), [(1, "AB"), (5, "AB"), (4, "ABC"), (6, "A")])
def test_confidence_is_the_sum_over_all_paths_of_the_text(
    steps: int, characters: str, blank: int, seed: int
) -> None:
    classes = alphabet_with(characters, blank)
    logits = random_logits(seed, steps, len(classes))
    answer = Ctc(characters, blank)(logits)
    shares = logits[0].double().softmax(1)
    best = "".join(classes[i] for i in shares.argmax(1).tolist())
    assert answer.value == collapsed(best)
    assert answer.confidence == pytest.approx(by_all_paths(shares, classes, answer.value), abs=1e-9)
    # More than the best path alone, wherever there is another one.
    assert answer.confidence >= float(shares.amax(1).prod()) - 1e-12


def test_confidence_of_two_steps_by_hand() -> None:
    """A is spelled by AA, A- and -A."""
    shares = torch.tensor([[[0.6, 0.4], [0.7, 0.3]]])
    answer = Ctc("A", blank=-1)(shares)
    assert answer == ("A", pytest.approx(0.6 * 0.7 + 0.6 * 0.3 + 0.4 * 0.7, abs=1e-6))


def test_empty_text_is_as_sure_as_all_steps_are_blank() -> None:
    shares = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.5, 0.5 - 1e-6]]])
    assert Ctc("A")(shares) == ("", pytest.approx(0.9 * 0.8 * 0.5, abs=1e-5))


@pytest.mark.parametrize("blank", [0, -1])
@pytest.mark.parametrize("steps", [1, 6])
def test_axis_of_images_may_be_first_or_second(steps: int, blank: int) -> None:
    logits = random_logits(7, steps, 4)
    decoder = Ctc("ABC", blank)
    assert decoder(logits) == decoder(logits.transpose(0, 1))
    assert decoder(logits) == decoder(logits.transpose(0, 1).contiguous())


@pytest.mark.parametrize("seed", range(3))
def test_logits_their_logarithms_and_shares_say_the_same(seed: int) -> None:
    logits = random_logits(seed, 6, 4)
    decoder = Ctc("ABC")
    want = decoder(logits)
    for output in (logits.log_softmax(2), logits.softmax(2), logits + 3):
        found = decoder(output)
        assert found.value == want.value
        assert found.confidence == pytest.approx(want.confidence, abs=1e-6)


@pytest.mark.parametrize(("path", "text"), [("AAB-B", "ABB"), ("-----", ""), ("ABABA", "ABABA")])
def test_shares_of_exactly_zero_leave_one_certain_text(path: str, text: str) -> None:
    one_hot = steps_of(path, "AB", 0) / 9
    assert Ctc("AB")(one_hot) == (text, 1.0)


def test_some_shares_of_zero_take_their_paths_away() -> None:
    shares = torch.tensor([[[0.0, 0.6, 0.4], [0.5, 0.0, 0.5 - 1e-7], [0.1, 0.0, 0.9]]])
    answer = Ctc("AB")(shares)
    assert answer.value == "AB"
    want = by_all_paths(shares[0].double(), "-AB", "AB")
    assert want == pytest.approx(0.6 * 0.5 * 0.9 + 0.6 * 0.5 * (0.9 + 0.1), abs=1e-6)
    assert answer.confidence == pytest.approx(want, abs=1e-6)


def test_long_line_has_a_probability() -> None:
    """Logarithms are added, so that four hundred factors below one do not vanish to NaN."""
    answer = Ctc("AB")(torch.zeros(1, 400, 3) + torch.tensor([0.0, 1e-3, 0.0]))
    assert answer.value == "A"
    assert 0 <= answer.confidence < 1e-100


def test_space_is_a_character() -> None:
    answer = Ctc("A B")(steps_of("A--  -B", "A B", 0))
    assert answer.value == "A B"


def test_classes_of_several_characters_are_written_whole() -> None:
    logits = 9.0 * torch.eye(3).unsqueeze(0)
    assert Ctc(("ch", "o"))(logits).value == "cho"


def test_check_passes_what_is_read() -> None:
    for shape, blank in (((1, 9, 4), 0), ((9, 1, 4), -1), ((1, 1, 4), 3)):
        Ctc("ABC", blank).check(shape)


@pytest.mark.parametrize("shape", [(1, 4), (1, 9, 4, 4), (2, 9, 4), (9, 4, 1), (4,)], ids=str)
def test_check_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(LabelError, match="which CTC does not read") as error:
        Ctc("ABC").check(shape)
    assert str(list(shape)) in error.value.facts[0]
    assert error.value.where == "benchmark.decoder"
    assert "model.output" in (error.value.fix or "")


@pytest.mark.parametrize("characters", ["AB", "ABCD"])
def test_check_refuses_another_number_of_characters(characters: str) -> None:
    """The blank has no character."""
    with pytest.raises(LabelError) as error:
        Ctc(characters).check((1, 9, 4))
    assert error.value.facts == [
        f"data.classes names {len(characters)} characters, the model has 4 outputs at each step"
    ]
    assert error.value.where == "benchmark.decoder"


@pytest.mark.parametrize("blank", [4, -2, 100])
def test_check_refuses_a_blank_outside(blank: int) -> None:
    with pytest.raises(LabelError, match=f"none has the place {blank}") as error:
        Ctc("ABC", blank).check((1, 9, 4))
    assert error.value.where == "benchmark.ctc_blank"


def test_decoders_without_a_check_read_every_shape() -> None:
    for decoder in (Classes(), Users(str), Decoder()):
        decoder.check((3, 1, 4, 1, 5))


OUTPUT = torch.tensor([[1.0, 2.0]])


def users(returned: Any) -> Answer:
    return Users(lambda output: returned)(OUTPUT)


def test_users_decoder_is_given_the_output() -> None:
    assert Users(lambda output: f"{output.sum():.0f}")(OUTPUT).value == "3"


@pytest.mark.parametrize("value", ["ABC", "", 7])
def test_users_answer_alone_has_no_confidence(value: str | int) -> None:
    answer = users(value)
    assert answer.value == value
    assert math.isnan(answer.confidence)


@pytest.mark.parametrize("confidence", [0, 0.25, 1])
def test_users_answer_may_have_a_confidence(confidence: float) -> None:
    assert users(("AB", confidence)) == ("AB", confidence)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        0.5,
        ["AB", 0.5],
        ("AB", "0.5"),
        ("AB", None),
        ("AB", 0.5, 1),
        ("AB",),
        (None, 0.5),
        OUTPUT,
    ],
    ids=repr,
)
def test_what_is_no_answer_is_an_error(returned: Any) -> None:
    with pytest.raises(MetricError, match="returned ") as error:
        users(returned)
    assert error.value.where == "benchmark.decoder"
    assert (error.value.fix or "").startswith("return a text")


@pytest.mark.parametrize("confidence", [-0.01, 1.01, 99, math.nan, math.inf, -math.inf])
def test_confidence_that_is_no_share_is_an_error(confidence: float) -> None:
    with pytest.raises(MetricError) as error:
        users(("AB", confidence))
    assert error.value.where == "benchmark.decoder"
    assert "from 0 to 1" in (error.value.fix or "")


def broken(output: Tensor) -> str:
    return "AB"[int(output.sum())]  # the line at fault


def leaves(output: Tensor) -> str:
    raise SystemExit(3)  # the line at fault


@pytest.mark.parametrize(("function", "name"), [(broken, "IndexError"), (leaves, "SystemExit")])
def test_error_of_the_users_code_names_her_line(function: Callable, name: str) -> None:
    with pytest.raises(MetricError, match=f"calling it raised {name}: ") as error:
        Users(function)(OUTPUT)
    (fact,) = error.value.facts
    line = function.__code__.co_firstlineno + 1
    assert f"({__file__}:{line}: " in fact
    assert fact.endswith("# the line at fault)")
    assert error.value.where == "benchmark.decoder"
