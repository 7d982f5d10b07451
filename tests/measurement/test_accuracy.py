"""Accuracy of outputs that were made by hand, so that every figure is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qconvert.errors import LabelError, NotFiniteImageError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Inputs, Preprocessed
from qconvert.measurement.accuracy import Comparison, Judge, check_classes, compare
from qconvert.measurement.answers import Classes
from qconvert.measurement.metrics import TopK
from qconvert.qconfig import Preprocess

CLASSES = 7


def image_set(labels: list[int] | None, count: int = 4, classes: int | None = CLASSES) -> ImageSet:
    """Images that are only counted here; without `classes` their labels are indexes alone."""
    files = tuple(Path(f"{i}.png") for i in range(count))
    names = None if None in (labels, classes) else tuple(f"class {i}" for i in range(classes))
    return ImageSet(Path("images"), files, None if labels is None else tuple(labels), names, "")


class Numbered:
    """Reads `3.png` as the number 3."""

    def __call__(self, path: Path) -> Inputs:
        return (torch.tensor([int(path.stem)]),)

    def size(self, path: Path) -> None:
        return None


def compared(
    reference: np.ndarray | Sequence,
    measured: np.ndarray | Sequence,
    images: ImageSet,
    answers: bool = True,
) -> Comparison:
    """Of two models whose outputs for image i are row i; of classes, top-1 and top-5."""
    outputs = [torch.as_tensor(np.asarray(rows, np.float32)) for rows in (reference, measured)]
    judge = Judge(pixels=answers)
    if answers and outputs[0].dim() == 2:
        tops = [TopK(1), TopK(5)] if images.labels is not None else []
        judge = Judge(Classes(), metrics=tops)
    return compare(
        lambda i: outputs[0][i], lambda i: outputs[1][i], images, Numbered(), judge, batch_size=2
    )


def shares(found: Comparison, *names: str) -> list[tuple[float, float]]:
    """Float's and the measured model's figure of each metric."""
    figures = [found.metric(name) for name in names]
    return [(figure.reference.value, figure.measured.value) for figure in figures if figure]


def ranked(*rankings: str) -> np.ndarray:
    """Outputs by the classes of an image from best to worst: "3102456"."""
    rows = np.zeros((len(rankings), CLASSES), np.float32)
    for row, ranking in zip(rows, rankings, strict=True):
        for place, name in enumerate(ranking):
            row[int(name)] = -place
    return rows


FLOAT = ranked("0123456", "1023456", "2013456", "3012456")
MEASURED = ranked("0123456", "2301456", "2013456", "0124536")


def test_shares_are_those_of_the_labels() -> None:
    """Float: right, right, fifth, last. Measured: right, fourth, fifth, seventh."""
    found = compared(FLOAT, MEASURED, image_set([0, 1, 4, 6]))
    assert found.images == 4
    assert shares(found, "top1", "top5") == [(0.5, 0.25), (0.75, 0.75)]
    assert (found.accuracy_drop, found.agreement.value) == (0.25, 0.5)
    assert found.agreement.low == pytest.approx(0.15, abs=0.001)


def test_sixth_place_is_not_in_the_first_five() -> None:
    found = compared(FLOAT, MEASURED, image_set([5, 5, 5, 5]))
    assert shares(found, "top5") == [(0.0, 0.25)]
    assert found.accuracy_drop == 0.0


def test_answers_that_changed_are_named_with_the_surest_first() -> None:
    reference, measured = FLOAT.copy(), MEASURED.copy()
    reference[3] *= 10
    found = compared(reference, measured, image_set([0, 1, 4, 6]))
    said = [(flip.image, flip.reference, flip.measured, flip.label) for flip in found.flipped]
    names = image_set([0, 1, 4, 6]).classes
    assert said == [
        ("3.png", names[3], names[0], names[6]),
        ("1.png", names[1], names[2], names[1]),
    ]
    sure = [flip.reference_confidence for flip in found.flipped]
    assert sure == pytest.approx([1.0, 0.632], abs=0.002)


def test_chance_of_a_difference_counts_images_that_only_one_gets_right() -> None:
    """Seven that float alone gets right, one that the other alone does: 18 of 256."""
    right, wrong = ranked("0123456"), ranked("1023456")
    reference = np.concatenate([right] * 7 + [wrong] + [right] * 20)
    measured = np.concatenate([wrong] * 7 + [right] + [right] * 20)
    found = compared(reference, measured, image_set([0] * 28, 28))
    assert found.metric("top1").by_chance == pytest.approx(18 / 256)
    assert found.metric("top5").by_chance == 1.0


def test_better_than_float_is_a_negative_drop() -> None:
    assert compared(MEASURED, FLOAT, image_set([0, 1, 2, 3])).accuracy_drop == -0.5


@pytest.mark.parametrize(
    ("reference", "label", "top1", "top5", "agreement"),
    [
        ([1.0] * 7, 0, 1, 1, 1),
        ([1.0] * 7, 4, 0, 1, 1),
        ([1.0] * 7, 5, 0, 0, 1),
        ([0, 2, 2, 0, 0, 0, 0], 1, 1, 1, 0),
        ([0, 2, 2, 0, 0, 0, 0], 2, 0, 1, 0),
    ],
)
def test_of_equal_outputs_the_first_class_is_the_answer(
    reference: list[float], label: int, top1: int, top5: int, agreement: int
) -> None:
    """In top-1, top-5 and agreement alike; the measured model answers 0."""
    measured = np.float32([[3, 0, 0, 0, 0, 0, 0]])
    found = compared([reference], measured, image_set([label], 1))
    (one, _), (five, _) = shares(found, "top1", "top5")
    assert (one, five, found.agreement.value) == (top1, top5, agreement)


@pytest.mark.parametrize(("label", "top1", "top5"), [(0, 1, 1), (4, 0, 1), (5, 0, 0)])
def test_first_of_a_thousand_equal_outputs_is_the_answer(label: int, top1: int, top5: int) -> None:
    """Sorting many values needs care that few do not."""
    same = np.ones((1, 1000), np.float32)
    found = compared(same, same, image_set([label], 1, 1000))
    assert shares(found, "top1", "top5") == [(top1, top1), (top5, top5)]
    assert found.agreement.value == 1


def test_without_labels_there_is_only_agreement() -> None:
    found = compared(FLOAT, MEASURED, image_set(None))
    assert (found.metrics, found.accuracy_drop, found.confidence) == ((), None, None)
    assert found.agreement.value == 0.5


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1])
def test_other_number_of_classes_is_an_error(classes: int) -> None:
    with pytest.raises(LabelError) as error:
        check_classes(image_set([0, 1, 2, 3], classes=classes), CLASSES)
    assert error.value.facts == [f"there are {classes} classes, the model has 7 outputs"]
    assert error.value.where == "images"
    assert "data.classes" in (error.value.fix or "")


def test_index_beyond_the_outputs_is_an_error() -> None:
    with pytest.raises(LabelError) as error:
        check_classes(image_set([0, 7, 2, 3], classes=None), CLASSES)
    assert error.value.facts == ["there is a label 7, the model has 7 outputs"]
    assert (error.value.fix or "").startswith("count labels from 0")


@pytest.mark.parametrize(
    ("labels", "classes"), [(None, None), ([0, 1, 2, 3], CLASSES), ([0, 6, 1, 1], None)]
)
def test_labels_that_the_model_can_have_pass(labels: list[int] | None, classes) -> None:
    check_classes(image_set(labels, classes=classes), CLASSES)


def test_labels_may_be_indexes_without_class_names() -> None:
    named, indexes = image_set([0, 1, 4, 6]), image_set([0, 1, 4, 6], classes=None)
    assert indexes.classes is None
    found = [compared(FLOAT, MEASURED, images) for images in (indexes, named)]
    alike = [one.model_copy(update={"flipped": ()}) for one in found]
    assert alike[0] == alike[1]
    assert [flip.measured for flip in found[0].flipped] == ["2", "0"]


# Two classes on 1 x 4 pixels: float answers 0 1 1 0.
MAP = [[[1, 0, 0, 1]], [[0, 1, 1, 0]]]
MAPS_OF = {
    4: MAP,
    3: [[[1, 0, 0, 0]], [[0, 1, 1, 1]]],
    1: [[[0, 0, 1, 0]], [[1, 1, 0, 1]]],
}


def test_dense_map_gives_the_share_of_equal_pixels() -> None:
    """4, 3 and 1 of 4 pixels; labels of images say nothing about it."""
    measured = [MAPS_OF[count] for count in (4, 3, 1)]
    found = compared([MAP] * 3, measured, image_set([0, 1, 1], 3, 2))
    assert found.agreement.value == pytest.approx((4 + 3 + 1) / 12)
    assert found.agreement.low == 0.25
    assert found.agreement.high == 1.0
    assert (found.metrics, found.accuracy_drop, found.confidence) == ((), None, None)


def test_maps_may_have_a_size_each() -> None:
    sizes = [(1, 4), (3, 2), (5, 1)]

    def reference(i: torch.Tensor) -> torch.Tensor:
        height, width = sizes[int(i)]
        return torch.arange(2.0 * height * width).reshape(1, 2, height, width)

    images = image_set(None, 3)
    pixels = Judge(pixels=True)
    same = compare(reference, reference, images, Numbered(), pixels, batch_size=1)
    assert (same.agreement.value, same.cosine.value, same.sqnr_db.value) == (
        1,
        pytest.approx(1),
        200,
    )
    turned = compare(
        reference, lambda i: reference(i).flip(1), images, Numbered(), pixels, batch_size=1
    )
    assert turned.agreement.value == 0


def test_numbers_have_cosine_and_sqnr_only() -> None:
    """Labels that such a model cannot have are no error."""
    reference = np.full((4, 3, 5, 5), 10, np.float32)
    found = compared(reference, reference - 1, image_set([0, 0, 1, 1], classes=2), answers=False)
    assert found.sqnr_db.value == pytest.approx(20)
    assert found.cosine.value == pytest.approx(1)
    measured = {"images", "sqnr_db", "cosine", "lowest_cosine"}
    assert set(found.model_dump(exclude=measured).values()) == {None, ()}


def test_cosine_is_of_each_image_and_then_averaged() -> None:
    """Angles of 0, 90, 60 and 180 degrees; lengths do not matter."""
    reference = [[1, 0], [0, 2], [3, 0], [1, 1]]
    measured = [[5, 0], [1, 0], [1, math.sqrt(3)], [-2, -2]]
    found = compared(reference, measured, image_set(None), answers=False)
    assert found.cosine.value == pytest.approx((1 + 0 + 0.5 - 1) / 4)
    assert found.lowest_cosine == pytest.approx(-1)
    assert -1 <= found.cosine.low < found.cosine.value < found.cosine.high <= 1


@pytest.mark.parametrize(
    ("measured", "cosine"), [([[0, 0]], 1), ([[0, 1]], 0)], ids=["as float", "unlike float"]
)
def test_cosine_of_an_output_of_zeros(measured: list[list[float]], cosine: float) -> None:
    found = compared([[0, 0]], measured, image_set(None, 1), answers=False)
    assert (found.cosine.value, found.lowest_cosine) == (cosine, cosine)


@pytest.mark.parametrize(
    ("reference", "measured", "expected"),
    [
        ([[10, 0], [0, 10]], [[9, 0], [0, 9]], 20),
        # Energies are added up over images before they are divided.
        ([[10, 0], [1, 0]], [[9, 0], [1, 0]], 10 * np.log10(101)),
        ([[1, 2], [3, 4]], [[0, 0], [0, 0]], 0),
        ([[1e30, 0], [0, 1e30]], [[9e29, 0], [0, 9e29]], 20),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], 200),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], 200),
        ([[0, 0], [0, 0]], [[1, 0], [0, 1]], -200),
    ],
)
@pytest.mark.parametrize("answers", [True, False])
def test_sqnr_of_known_outputs(reference, measured, expected: float, answers: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compared(reference, measured, image_set(None, 2), answers).sqnr_db
    assert found.value == pytest.approx(expected, abs=1e-4)
    assert -200 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 200


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_images_on_which_float_is_not_finite_are_named(value: float) -> None:
    reference = [[1, 2], [value, 1], [0, 1], [0, value]]
    with pytest.raises(NotFiniteImageError) as error:
        compared(reference, [[1, 2]] * 4, image_set(None))
    assert error.value.facts == [
        f"{i}.png: the float model computes NaN or infinity" for i in (1, 3)
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_labels_meet_the_image_of_their_file(tmp_path: Path, batch_size: int) -> None:
    """Image i is of class i % 3, and float says so for the first twelve of 17."""
    for i in range(17):
        (tmp_path / f"{i % 3}").mkdir(exist_ok=True)
        Image.new("RGB", (6, 4), (i, 0, 0)).save(tmp_path / f"{i % 3}" / f"{i:02}.png")
    images = read_folder(tmp_path, "folders", None)
    seen: list[tuple[int, int]] = []

    def classes(x: torch.Tensor) -> torch.Tensor:
        i = int(x[0, 0, 0, 0].round())
        return torch.eye(3)[[i % 3 if i < 12 else (i + 1) % 3]]

    found = compare(
        classes,
        lambda x: classes(x) * 2,
        images,
        Preprocessed(Preprocess(mean=(0.0,), std=(1 / 255,))),
        Judge(Classes(), metrics=[TopK(1)]),
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert shares(found, "top1") == [(12 / 17, 12 / 17)]
    assert found.agreement.value == 1
    assert (seen[0], seen[-1]) == ((0, 17), (17, 17))
