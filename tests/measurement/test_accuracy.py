"""Accuracy of outputs that were made by hand, so that every figure is known."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qconvert.errors import ImageError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.measurement.accuracy import compare, outputs
from qconvert.qconfig import Preprocess

CLASSES = 7


def image_set(labels: list[int] | None, count: int = 4, classes: int = CLASSES) -> ImageSet:
    """Images that are only counted here."""
    files = tuple(Path(f"{i}.png") for i in range(count))
    names = None if labels is None else tuple(f"class {i}" for i in range(classes))
    return ImageSet(Path("images"), files, None if labels is None else tuple(labels), names, "")


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
    found = compare(FLOAT, MEASURED, image_set([0, 1, 4, 6]))
    assert found.images == 4
    shares = ("float_top1", "top1", "float_top5", "top5", "agreement")
    assert [getattr(found, name).value for name in shares] == [0.5, 0.25, 0.75, 0.75, 0.5]
    assert found.top1_drop == 0.25
    assert found.agreement is not None
    assert found.agreement.low == pytest.approx(0.15, abs=0.001)


def test_sixth_place_is_not_in_the_first_five() -> None:
    found = compare(FLOAT, MEASURED, image_set([5, 5, 5, 5]))
    assert (found.float_top5.value, found.top5.value) == (0.0, 0.25)
    assert found.top1_drop == 0.0


def test_better_than_float_is_a_negative_drop() -> None:
    assert compare(MEASURED, FLOAT, image_set([0, 1, 2, 3])).top1_drop == -0.5


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
    found = compare(np.float32([reference]), measured, image_set([label], 1))
    shares = (found.float_top1.value, found.float_top5.value, found.agreement.value)
    assert shares == (top1, top5, agreement)


@pytest.mark.parametrize(("label", "top1", "top5"), [(0, 1, 1), (4, 0, 1), (5, 0, 0)])
def test_first_of_a_thousand_equal_outputs_is_the_answer(label: int, top1: int, top5: int) -> None:
    """Sorting many values needs care that few do not."""
    same = np.ones((1, 1000), np.float32)
    found = compare(same, same, image_set([label], 1, 1000))
    assert (found.top1.value, found.top5.value, found.agreement.value) == (top1, top5, 1)


def test_without_labels_there_is_only_agreement() -> None:
    found = compare(FLOAT, MEASURED, image_set(None))
    assert (found.float_top1, found.top1, found.float_top5, found.top5) == (None,) * 4
    assert found.top1_drop is None
    assert found.agreement.value == 0.5


@pytest.mark.parametrize(("classes", "has_five"), [(5, False), (6, True)])
def test_top5_of_five_classes_says_nothing(classes: int, has_five: bool) -> None:
    same = np.eye(classes, dtype=np.float32)
    found = compare(same, same, image_set(list(range(classes)), classes, classes))
    assert (found.top5 is not None) == has_five
    assert found.top1.value == 1.0


@pytest.mark.parametrize("classes", [CLASSES - 1, CLASSES + 1])
def test_other_number_of_classes_is_an_error(classes: int) -> None:
    with pytest.raises(ImageError, match=f"{classes} classes, the model has 7 outputs") as error:
        compare(FLOAT, MEASURED, image_set([0, 1, 2, 3], classes=classes))
    assert "data.classes" in (error.value.fix or "")


def test_dense_output_gives_sqnr_only() -> None:
    """Labels that such a model cannot have are no error."""
    reference = np.full((4, 3, 5, 5), 10, np.float32)
    found = compare(reference, reference - 1, image_set([0, 0, 1, 1], classes=2))
    assert found.sqnr_db.value == pytest.approx(20)
    assert set(found.model_dump(exclude={"images", "sqnr_db"}).values()) == {None}


def test_one_output_an_image_is_no_answer() -> None:
    """A score or a logit of two classes: the largest of one output is always the same."""
    reference, measured = np.float32([[3], [-3], [2], [-1]]), np.float32([[-3], [3], [-2], [1]])
    assert compare(reference, measured, image_set(None)).agreement is None


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
def test_sqnr_of_known_outputs(reference, measured, expected: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(np.float32(reference), np.float32(measured), image_set(None, 2)).sqnr_db
    assert found.value == pytest.approx(expected, abs=1e-4)
    assert -200 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 200


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_outputs_are_in_the_order_of_the_files(tmp_path: Path, batch_size: int) -> None:
    for i in range(17):
        Image.new("RGB", (6, 4), (i, 2 * i, 3 * i)).save(tmp_path / f"{i:02}.png")
    models = {
        "mean": lambda x: x.mean((2, 3)),
        "dense": lambda x: 2 * x,
    }
    images = read_folder(tmp_path, "none", None)
    seen: list[tuple[int, int]] = []
    found = outputs(
        models,
        images,
        Preprocess(mean=(0.0,), std=(1 / 255,)),
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    expected = np.outer(np.arange(17), [1, 2, 3])
    np.testing.assert_allclose(found["mean"], expected, atol=1e-3)
    assert found["dense"].shape == (17, 3, 4, 6)
    np.testing.assert_allclose(found["dense"][:, :, 3, 5], 2 * expected, atol=1e-3)
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}
    assert (seen[0], seen[-1]) == ((0, 17), (17, 17))


def test_outputs_of_every_model_are_of_the_same_input(tmp_path: Path, save_image) -> None:
    for i in range(3):
        save_image(tmp_path / f"{i}.png", seed=i)
    images = read_folder(tmp_path, "none", None)
    model = torch.nn.Flatten()
    found = outputs({"a": model, "b": model}, images, Preprocess(), batch_size=2)
    assert np.array_equal(found["a"], found["b"])
    assert not np.array_equal(found["a"][0], found["a"][1])
