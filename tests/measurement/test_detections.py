"""Whether two models find the same: boxes, labels and scores, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qconvert.images.folder import read_folder
from qconvert.images.preprocess import Preprocessed
from qconvert.measurement.detections import are_detections, compare_detections, same_detections
from qconvert.qconfig import Preprocess

Row = tuple[list[float], int, float]
A, B, C = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 40.0, 60.0, 50.0]


def found(*rows: Row) -> dict[str, Tensor]:
    """Detections of one image: a box, its label and its score each."""
    boxes, labels, scores = ([row[i] for row in rows] for i in range(3))
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def moved(box: list[float], by: float) -> list[float]:
    """To the right."""
    return [box[0] + by, box[1], box[2] + by, box[3]]


@pytest.mark.parametrize(
    ("want", "have", "share"),
    [
        (found(), found(), 1),
        (found((A, 1, 0.9)), found((A, 1, 0.9)), 1),
        (found((A, 1, 0.9), (B, 2, 0.8)), found((B, 2, 0.7), (A, 1, 0.6)), 1),
        # One of two is missed, or one more is found: of three detections two match.
        (found((A, 1, 0.9), (B, 2, 0.8)), found((A, 1, 0.9)), 2 / 3),
        (found((A, 1, 0.9)), found((A, 1, 0.9), (B, 2, 0.8)), 2 / 3),
        (found((A, 1, 0.9)), found(), 0),
        (found(), found((A, 1, 0.9)), 0),
        # Another label, another place.
        (found((A, 1, 0.9)), found((A, 2, 0.9)), 0),
        (found((A, 1, 0.9)), found((B, 1, 0.9)), 0),
        # Moved by 3 of 10, two boxes overlap by 7 / 13; by 4, by 6 / 14, which is less than half.
        (found((A, 1, 0.9)), found((moved(A, 3), 1, 0.9)), 1),
        (found((A, 1, 0.9)), found((moved(A, 4), 1, 0.9)), 0),
        # Half is enough: a box in one of twice its size.
        (found((A, 1, 0.9)), found(([0.0, 0.0, 20.0, 10.0], 1, 0.9)), 1),
        # Each matches once.
        (found((A, 1, 0.9)), found((A, 1, 0.9), (A, 1, 0.8)), 2 / 3),
        (found((A, 1, 0.9), (A, 1, 0.8)), found((A, 1, 0.9)), 2 / 3),
        # The surest takes the one that overlaps it most, and leaves the other.
        (
            found((A, 1, 0.9), (moved(A, 1), 1, 0.8)),
            found((moved(A, 1), 1, 0.9), (A, 1, 0.6)), 1,
        ),
        # The surer of two takes what both overlap; the other one has nothing left.
        (
            found((moved(A, 3), 1, 0.6), (A, 1, 0.9)),
            found((A, 1, 0.7), (C, 1, 0.7)), 2 / 4,
        ),
        # It does so in whatever order they come, though another choice would match both.
        (
            found((moved(A, 3), 1, 0.6), (A, 1, 0.9)),
            found((moved(A, -3), 1, 0.6), (moved(A, 1), 1, 0.9)), 2 / 4,
        ),
        # Below a score of one half it is none.
        (found((A, 1, 0.9), (B, 1, 0.4)), found((A, 1, 0.5), (C, 1, 0.49)), 1),
        (found((A, 1, 0.3)), found((B, 1, 0.2)), 1),
        (found((A, 1, 0.6)), found((A, 1, 0.4)), 0),
        # An empty box overlaps nothing, also not itself.
        (found(([5.0, 5.0, 5.0, 9.0], 1, 0.9)), found(([5.0, 5.0, 5.0, 9.0], 1, 0.9)), 0),
    ],
)  # fmt: skip
def test_share_by_hand(want: dict, have: dict, share: float) -> None:
    assert same_detections(want, have) == pytest.approx(share)
    assert same_detections(have, want) == pytest.approx(share)


def test_other_results_of_the_model_do_not_matter() -> None:
    """Masks and keypoints: they are there, and are not compared."""
    want = {**found((A, 1, 0.9)), "masks": torch.rand(1, 1, 4, 4)}
    assert same_detections(want, found((A, 1, 0.9))) == 1


def test_detections_are_left_as_they_are() -> None:
    want, have = found((A, 1, 0.6), (B, 1, 0.9)), found((B, 1, 0.9), (A, 1, 0.6))
    before = [x.clone() for x in (*want.values(), *have.values())]
    same_detections(want, have)
    assert all(map(torch.equal, before, (*want.values(), *have.values())))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([found((A, 1, 0.9))], True),
        ([found(), {**found(), "masks": torch.zeros(0)}], True),
        ((found(),), True),
        ([], False),
        (found((A, 1, 0.9)), False),
        ([{"boxes": torch.zeros(1, 4), "scores": torch.zeros(1)}], False),
        ([torch.zeros(1, 4)], False),
        (torch.zeros(1, 4), False),
        ({"out": torch.zeros(1)}, False),
    ],
)
def test_detections_are_known_by_their_names(result: Any, expected: bool) -> None:
    assert are_detections(result) is expected


def test_agreement_is_the_mean_over_images(tmp_path: Path, save_image) -> None:
    for i in range(4):
        save_image(tmp_path / f"{i}.png", (8, 8), seed=i)
    images = read_folder(tmp_path, "none", None)
    read = Preprocessed(Preprocess(mean=(0.5,), std=(0.25,)))
    first = read(images.files[0])[0]

    def reference(x: Tensor) -> list[dict[str, Tensor]]:
        return [found((A, 1, 0.9), (B, 2, 0.8))]

    def misses_on_the_first(x: Tensor) -> list[dict[str, Tensor]]:
        return [found((A, 1, 0.9))] if torch.equal(x, first) else reference(x)

    for measured, agreement in ((reference, 1.0), (misses_on_the_first, (3 + 2 / 3) / 4)):
        result = compare_detections(reference, measured, images, read, batch_size=3)
        assert result.images == 4
        assert result.agreement.value == pytest.approx(agreement)
        assert result.agreement.low <= agreement <= result.agreement.high
        assert (result.metrics, result.cosine, result.sqnr_db) == ((), None, None)
