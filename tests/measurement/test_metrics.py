"""Metrics of outputs that were made by hand, and what is told of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from qconvert.errors import LabelError, MetricError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.masks import read_mask
from qconvert.images.preprocess import Inputs, Preprocessed
from qconvert.measurement.accuracy import Comparison, Judge, compare
from qconvert.measurement.answers import Answer, Classes, Ctc, Decoder
from qconvert.measurement.answers import Users as UsersDecoder
from qconvert.measurement.metrics import (
    CharacterErrorRate,
    Cosine,
    ExactMatch,
    MeanIou,
    Metric,
    Seen,
    TopK,
    Users,
)
from qconvert.measurement.statistics import proportion
from qconvert.qconfig import Preprocess

NOTHING = torch.zeros(1, 2)


def of_output(output: Tensor, label: Any) -> Seen:
    return Seen(output, None, output, label)


def of_text(text: str | int, label: str) -> Seen:
    return Seen(NOTHING, Answer(text, 0.5), NOTHING, label)


def rows_of(metric: Metric, seen: Sequence[Seen]) -> np.ndarray:
    return np.array([metric.row(one) for one in seen])


# ---- classes and texts


@pytest.mark.parametrize(("k", "right"), [(1, [3]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 2, 3, 4])])
def test_top_k_is_whether_the_class_is_among_the_largest(k: int, right: list[int]) -> None:
    """From the largest to the smallest: 3, 0, then 2 before 4, which equals it, then 1."""
    output = torch.tensor([[2.0, -1.0, 1.0, 5.0, 1.0]])
    found = [label for label in range(5) if TopK(k).row(of_output(output, label)) == (1.0,)]
    assert found == right
    assert (TopK(k).name, TopK(k).higher_is_better) == (f"top{k}", True)


def test_exact_match_is_of_the_whole_text() -> None:
    pairs = [("007", "007"), ("7", "007"), ("A B", "AB"), ("a", "A"), ("", "A"), (7, "7")]
    rows = rows_of(ExactMatch(), [of_text(*pair) for pair in pairs])
    assert rows.ravel().tolist() == [1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("metric", [TopK(1), ExactMatch()], ids=lambda metric: metric.name)
@pytest.mark.parametrize(("hits", "total"), [(0, 3), (3, 3), (90, 100), (1, 7), (29, 49)])
def test_shares_have_wilsons_interval(metric: Metric, hits: int, total: int) -> None:
    rows = np.array([[1.0]] * hits + [[0.0]] * (total - hits))
    assert metric.interval(rows) == proportion(hits, total)


@pytest.mark.parametrize(
    ("text", "label", "distance"),
    [
        ("ABC", "ABC", 0),
        ("ABXC", "ABC", 1),
        ("AC", "ABC", 1),
        ("AXC", "ABC", 1),
        ("BCA", "ABC", 2),
        ("", "ABC", 3),
        ("XYZABC", "ABC", 3),
        ("SITTING", "KITTEN", 3),
        ("abc", "ABC", 3),
        ("A  C", "A C", 1),
    ],
)
def test_characters_that_are_wrong_are_counted(text: str, label: str, distance: int) -> None:
    """Inserted, left out or another; the length is that of the right text."""
    assert CharacterErrorRate().row(of_text(text, label)) == (distance, len(label))


def test_character_error_rate_is_the_ratio_of_sums() -> None:
    """Not the mean of 1/1 and 1/9 and 0/2."""
    pairs = [("B", "A"), ("12345678", "123456789"), ("AB", "AB")]
    metric = CharacterErrorRate()
    found = metric.interval(rows_of(metric, [of_text(*pair) for pair in pairs]))
    assert found.value == 2 / 12
    assert 0 <= found.low < found.value < found.high <= 1
    assert not metric.higher_is_better


def test_character_error_rate_may_exceed_one() -> None:
    metric = CharacterErrorRate()
    assert metric.figure(rows_of(metric, [of_text("ABCD", "X")])) == 4


def test_ratio_of_nothing_is_not_a_number() -> None:
    assert math.isnan(Metric().figure(np.array([[1.0, 0.0], [2.0, 0.0]])))


# ---- masks


def maps(classes: Sequence[Sequence[int]], count: int) -> Tensor:
    """Outputs (1, count, height, width) whose largest is at these classes."""
    places = torch.tensor(classes)
    return torch.nn.functional.one_hot(places, count).permute(2, 0, 1).float().unsqueeze(0)


def iou(pairs: Sequence[tuple[Sequence, Sequence]], count: int) -> float:
    """Of (answers, mask) a image."""
    metric = MeanIou()
    seen = [of_output(maps(answer, count), torch.tensor(mask)) for answer, mask in pairs]
    return metric.figure(rows_of(metric, seen))


def test_row_of_an_image_has_intersections_and_unions() -> None:
    """Of 0: one pixel in both, of three in either; of 1: two of four."""
    seen = of_output(maps([[0, 1, 1], [1, 0, 2]], 3), torch.tensor([[0, 1, 1], [0, 1, 2]]))
    assert MeanIou().row(seen) == (1, 2, 1, 3, 4, 1)
    assert MeanIou().figure(np.array([MeanIou().row(seen)])) == pytest.approx(
        (1 / 3 + 2 / 4 + 1) / 3
    )


def test_intersections_are_summed_over_images_before_they_are_divided() -> None:
    """Of 0: 1 of 1 and 2 of 3 pixels; of 1: 1 of 1 and 1 of 2."""
    first = ([[0, 1]], [[0, 1]])
    second = ([[0, 0, 1, 1]], [[0, 0, 0, 1]])
    assert iou([first, second], 2) == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_ignored_pixels_do_not_count() -> None:
    """Whatever the model says there: neither as missed nor as wrong."""
    pair = ([[0, 1, 1, 0]], [[0, 1, 255, 255]])
    assert iou([pair], 2) == 1
    assert MeanIou().row(of_output(maps(*pair[:1], 2), torch.tensor(pair[1]))) == (1, 1, 1, 1)


def test_class_that_is_nowhere_does_not_count() -> None:
    """Class 2 is in neither; class 3 is in the answer alone, and counts as 0."""
    assert iou([([[0, 1]], [[0, 1]])], 3) == 1
    assert iou([([[0, 1, 3]], [[0, 1, 1]])], 4) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_only_ignored_pixels_have_no_figure() -> None:
    assert math.isnan(iou([([[0, 1]], [[255, 255]])], 2))
    beside = ([[0, 1]], [[0, 0]])
    assert iou([([[0, 1]], [[255, 255]]), beside], 2) == iou([beside], 2) == 0.25


def test_output_smaller_than_its_mask_is_scaled() -> None:
    """Two columns become six: bilinear, the border is in the middle."""
    mask = [[0, 0, 0, 1, 1, 1]] * 3
    assert iou([([[0, 1]], mask)], 2) == 1
    assert iou([([[1, 0]], mask)], 2) == 0


def test_outputs_are_scaled_before_the_largest_is_taken() -> None:
    """The first class falls from 3 at pixel 1 to -1 at pixel 4, and is above 0 until pixel 3."""
    output = torch.tensor([[[[3.0, -1.0]], [[0.0, 0.0]]]])
    mask = torch.tensor([[0, 0, 0, 0, 1, 1]])
    metric = MeanIou()
    assert metric.figure(rows_of(metric, [of_output(output, mask)])) == 1


@pytest.mark.parametrize("largest", [2, 254, 256, 700])
def test_class_beyond_the_outputs_is_an_error(largest: int) -> None:
    with pytest.raises(LabelError) as error:
        MeanIou().row(of_output(maps([[0, 1]], 2), torch.tensor([[0, largest]])))
    assert error.value.facts == [f"a mask holds {largest}, the model has 2 classes"]
    assert error.value.where == "data.labels"
    assert "255 is of no class" in (error.value.fix or "")


@pytest.mark.parametrize("classes", [2, 5])
def test_mean_iou_is_that_of_torchmetrics(classes: int) -> None:
    """Over images of several sizes, in which all classes occur."""
    generator = torch.Generator().manual_seed(classes)
    theirs = MulticlassJaccardIndex(classes, ignore_index=255)
    metric, seen = MeanIou(), []
    for height, width in ((9, 7), (4, 12), (16, 16)):
        output = torch.randn(1, classes, height, width, generator=generator)
        mask = torch.randint(0, classes, (height, width), generator=generator)
        mask[torch.rand(height, width, generator=generator) < 0.2] = 255
        theirs.update(output, mask.unsqueeze(0))
        seen.append(of_output(output, mask))
    found = metric.interval(rows_of(metric, seen))
    assert found.value == pytest.approx(float(theirs.compute()), abs=1e-6)
    assert found.low <= found.value <= found.high


# ---- cosine and the user's own


@pytest.mark.parametrize(
    ("reference", "output", "cosine"),
    [
        ([1, 0], [5, 0], 1),
        ([3, 0], [1, math.sqrt(3)], 0.5),
        ([0, 2], [1, 0], 0),
        ([0, 0], [0, 0], 1),
    ],
)
def test_cosine_is_to_float(reference: list, output: list, cosine: float) -> None:
    tensors = [torch.tensor([row], dtype=torch.float32) for row in (output, reference)]
    assert Cosine().row(Seen(tensors[0], None, tensors[1], None)) == (pytest.approx(cosine),)


def users(function: Callable[..., Any], of_answers: bool = False) -> Users:
    return Users("module:mine", function, of_answers)


@pytest.mark.parametrize(
    ("returned", "row"),
    [
        (0.5, (0.5,)),
        (True, (1.0,)),
        (torch.tensor(0.5), (0.5,)),
        (np.float32(0.5), (0.5,)),
        ((1, 4), (1.0, 4.0)),
        ([3, 0], (3.0, 0.0)),
    ],
    ids=repr,
)
def test_users_metric_returns_a_number_or_two(returned: Any, row: tuple[float, ...]) -> None:
    assert users(lambda output, label: returned).row(of_output(NOTHING, 0)) == row


def test_users_number_is_averaged_and_two_are_divided() -> None:
    one, two = users(lambda output, label: label), users(lambda output, label: (label, 4))
    seen = [of_output(NOTHING, label) for label in (1, 3, 8)]
    assert one.figure(rows_of(one, seen)) == 4
    assert two.figure(rows_of(two, seen)) == 1


@pytest.mark.parametrize(
    "returned",
    [None, "much", (), (1, 2, 3), (1, None), {"mine": 1}, torch.ones(2), np.ones(2)],
    ids=repr,
)
def test_users_metric_that_returns_no_number_is_an_error(returned: Any) -> None:
    with pytest.raises(MetricError, match="returned ") as error:
        users(lambda output, label: returned).row(of_output(NOTHING, 0))
    assert error.value.where == "benchmark.metrics: module:mine"
    assert (error.value.fix or "").startswith("return a number, or two")


@pytest.mark.parametrize("returned", [math.nan, math.inf, (1, math.nan), (-math.inf, 1)], ids=repr)
def test_users_metric_that_is_not_finite_is_an_error(returned: Any) -> None:
    with pytest.raises(MetricError, match="returned "):
        users(lambda output, label: returned).row(of_output(NOTHING, 0))


def test_users_metric_is_given_the_output_or_the_answer_and_the_label() -> None:
    given = []

    def mine(*arguments: Any) -> float:
        given.append(arguments)
        return 0.0

    seen = of_text("AB", "AC")
    users(mine, of_answers=True).row(seen)
    users(mine, of_answers=False).row(seen)
    assert given[0] == ("AB", "AC")
    assert given[1][0] is seen.output
    assert given[1][1] == "AC"


def broken(output: Tensor, label: Any) -> float:
    return 1 / (label - label)  # the line at fault


def test_error_of_the_users_metric_names_her_line() -> None:
    with pytest.raises(MetricError, match="calling it raised ZeroDivisionError: ") as error:
        users(broken).row(of_output(NOTHING, 3))
    (fact,) = error.value.facts
    line = broken.__code__.co_firstlineno + 1
    assert f"({__file__}:{line}: " in fact
    assert fact.endswith("# the line at fault)")


# ---- two models


class Numbered:
    """Reads `3.png` as the number 3."""

    def __call__(self, path: Path) -> Inputs:
        return (torch.tensor([int(path.stem)]),)

    def size(self, path: Path) -> None:
        return None


def image_set(labels: Sequence[str | int] | None, count: int) -> ImageSet:
    files = tuple(Path(f"{i}.png") for i in range(count))
    return ImageSet(Path("images"), files, None if labels is None else tuple(labels), None, "")


def spelled(texts: Sequence[str]) -> list[Tensor]:
    """Shares (1, steps, classes) of the blank, A, B and C that spell the texts, surely."""
    outputs = []
    for text in texts:
        path = [0, *(place for c in text for place in ("-ABC".index(c), 0))]
        outputs.append(torch.nn.functional.one_hot(torch.tensor(path), 4).float().unsqueeze(0))
    return outputs


def compared(
    reference: Sequence[Tensor], measured: Sequence[Tensor], labels: Sequence | None, judge: Judge
) -> Comparison:
    images = image_set(labels, len(reference))
    return compare(
        lambda i: reference[int(i)],
        lambda i: measured[int(i)],
        images,
        Numbered(),
        judge,
        batch_size=2,
    )


LABELS = ("ABC", "A", "BB", "CAB")
FLOAT = ("ABC", "A", "BB", "CA")
INT8 = ("AB", "A", "B", "CA")
OF_TEXTS = Judge(Ctc("ABC"), metrics=[ExactMatch(), CharacterErrorRate()])


def padded(outputs: Sequence[Tensor]) -> list[Tensor]:
    """With blanks at the end, all of one length."""
    steps = max(output.shape[1] for output in outputs)
    blank = torch.tensor([[[1.0, 0, 0, 0]]])
    return [torch.cat([o, blank.expand(1, steps - o.shape[1], 4)], dim=1) for o in outputs]


def of_texts(reference: Sequence[str], measured: Sequence[str]) -> Comparison:
    outputs = padded(spelled([*reference, *measured]))
    half = len(reference)
    return compared(outputs[:half], outputs[half:], LABELS, OF_TEXTS)


def test_texts_are_judged_by_their_labels() -> None:
    found = of_texts(FLOAT, INT8)
    match, rate = found.metric("exact_match"), found.metric("character_error_rate")
    assert (match.reference, match.measured) == (proportion(3, 4), proportion(1, 4))
    assert (rate.reference.value, rate.measured.value) == (1 / 9, 3 / 9)
    assert found.agreement == proportion(2, 4)
    assert found.metric("top1") is None


def test_drop_is_positive_where_int8_is_worse() -> None:
    """Of shares and of errors alike; the first metric's is the accuracy drop."""
    worse, better = of_texts(FLOAT, INT8), of_texts(INT8, FLOAT)
    for found, sign in ((worse, 1), (better, -1)):
        drops = [metric.drop.value for metric in found.metrics]
        assert drops == pytest.approx([sign * 0.5, sign * 2 / 9])
        assert found.accuracy_drop == drops[0]
    assert [metric.higher_is_better for metric in worse.metrics] == [True, False]
    for metric in worse.metrics:
        assert metric.drop.low <= metric.drop.value <= metric.drop.high


def test_equal_models_have_no_drop_at_all() -> None:
    found = of_texts(FLOAT, FLOAT)
    for metric in found.metrics:
        assert (metric.drop.value, metric.drop.low, metric.drop.high) == (0, 0, 0)
    assert found.agreement.value == 1


def test_texts_of_sure_outputs_have_a_confidence() -> None:
    """All are certain: the calibration error is the share of wrong texts."""
    found = of_texts(FLOAT, INT8).confidence
    assert found.reference_calibration_error.value == pytest.approx(0.25)
    assert found.calibration_error.value == pytest.approx(0.75)
    assert found.curve == ((1.0, 0.25),)


@pytest.mark.parametrize(
    ("floats", "others", "there"),
    [
        ([0.5, 0.5], [0.5, 0.5], True),
        ([0.5, None], [0.5, 0.5], False),
        ([0.5, 0.5], [None, 0.5], False),
    ],
    ids=["all", "float lacks one", "int8 lacks one"],
)
def test_confidence_needs_that_of_every_answer(floats: list, others: list, there: bool) -> None:
    known = iter([c for pair in zip(floats, others, strict=True) for c in pair])

    def said(output: Tensor) -> Any:
        confidence = next(known)
        return "A" if confidence is None else ("A", confidence)

    decoder = UsersDecoder(said)
    found = compared(
        [NOTHING] * 2, [NOTHING] * 2, ["A", "B"], Judge(decoder, metrics=[ExactMatch()])
    )
    assert (found.confidence is not None) is there
    assert found.metric("exact_match").measured.value == 0.5


@pytest.mark.parametrize(
    ("decoder", "labels"), [(Ctc("ABC"), None), (None, LABELS)], ids=["no labels", "no answers"]
)
def test_confidence_needs_labels_and_answers(decoder: Decoder | None, labels: Sequence) -> None:
    outputs = padded(spelled(FLOAT))
    assert compared(outputs, outputs, labels, Judge(decoder)).confidence is None


CLASS_LABELS = (0, 2, 2, 0, 2)


def test_classes_are_told_one_by_one() -> None:
    """Only those that have images, in the order of classes."""
    said = {"float": (0, 2, 2, 1, 2), "int8": (0, 2, 0, 1, 1)}
    outputs = {
        name: list(torch.nn.functional.one_hot(torch.tensor(classes), 3).float().unsqueeze(1))
        for name, classes in said.items()
    }
    judge = Judge(Classes(), metrics=[TopK(1)], per_class=True)
    found = compared(outputs["float"], outputs["int8"], CLASS_LABELS, judge)
    shown = [(c.name, c.images, c.reference, c.measured) for c in found.per_class]
    assert shown == [
        ("0", 2, proportion(1, 2), proportion(1, 2)),
        ("2", 3, proportion(3, 3), proportion(1, 3)),
    ]
    silent = Judge(Classes(), metrics=[TopK(1)])
    assert compared(outputs["float"], outputs["int8"], CLASS_LABELS, silent).per_class == ()


def test_classes_have_their_names_where_there_are_some() -> None:
    outputs = torch.eye(3).unsqueeze(1)
    images = ImageSet(
        Path("images"), (Path("0.png"), Path("2.png")), (0, 2), ("cat", "dog", "bird"), ""
    )
    found = compare(
        lambda i: outputs[int(i)],
        lambda i: outputs[int(i)],
        images,
        Numbered(),
        Judge(Classes(), per_class=True),
        batch_size=1,
    )
    assert [c.name for c in found.per_class] == ["cat", "bird"]


@pytest.fixture
def masked(tmp_path: Path) -> ImageSet:
    """Three grey images with masks of three classes, of a size each."""
    generator = np.random.default_rng(3)
    for i, (height, width) in enumerate(((6, 9), (12, 5), (8, 8))):
        pixels = generator.integers(0, 3, (height, width)).astype(np.uint8)
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    return read_folder(tmp_path / "images", tmp_path / "masks", None)


def test_masks_are_judged_at_the_place_of_their_pixels(masked: ImageSet) -> None:
    """Images hold their own classes: read with the same crop, the answer is the mask."""
    read = Preprocessed(Preprocess(channels=1, crop=(4, 3), std=(1 / 255,)))

    def right(x: Tensor) -> Tensor:
        return -(x - torch.arange(3.0).view(1, 3, 1, 1)).abs()

    judge = Judge(pixels=True, metrics=[MeanIou()])
    found = compare(right, lambda x: -right(x), masked, read, judge, batch_size=2)
    (figures,) = found.metrics
    assert figures.reference.value == 1
    assert figures.measured.value < 0.5
    assert figures.drop.value == 1 - figures.measured.value
    assert found.agreement.value < 1


def test_masks_are_not_read_where_nothing_is_measured_by_them(masked: ImageSet) -> None:
    for path in masked.labels:
        path.unlink()
    read = Preprocessed(Preprocess(channels=1))
    found = compare(lambda x: x, lambda x: x, masked, read, Judge(pixels=True), batch_size=1)
    assert found.agreement.value == 1
    with pytest.raises(LabelError):
        read_mask(masked.labels[0])
