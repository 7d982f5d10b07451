"""Calibration error and automation rate, against a library and against all thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from qconvert.measurement.confidence import (
    Confidence,
    calibration_error,
    compare_confidence,
    curve,
)

examples = settings(max_examples=25, deadline=None, derandomize=True)
# Tenths: many are equal.
tied = st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=25)


def rows_of(*pairs: tuple[float, int]) -> np.ndarray:
    """Of (confidence, right)."""
    return np.array(pairs, dtype=np.float64)


def best_share(rows: np.ndarray, required: float) -> tuple[float, float | None, float | None]:
    """The largest share that some threshold accepts with enough right answers, that threshold and
    the accuracy, by trying each."""
    found: tuple[float, float | None, float | None] = (0.0, None, None)
    for threshold in set(rows[:, 0].tolist()):
        right = [r for c, r in rows.tolist() if c >= threshold]
        enough = sum(right) >= required * len(right) - 1e-9
        if enough and len(right) / len(rows) > found[0]:
            found = (len(right) / len(rows), threshold, sum(right) / len(right))
    return found


def share_from(rows: np.ndarray, threshold: float | None) -> float:
    return float(np.mean([threshold is not None and c >= threshold for c in rows[:, 0]]))


# Surest first: right, right, wrong, right, wrong.
FLOAT = rows_of((0.9, 1), (0.8, 1), (0.7, 0), (0.6, 1), (0.5, 0))
# Less sure, and one more is wrong.
INT8 = rows_of((0.75, 1), (0.65, 1), (0.55, 0), (0.85, 0), (0.45, 0))


# ---- calibration


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 17, 1000])
def test_calibration_error_is_that_of_torchmetrics(count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = np.stack([generator.random(count), generator.integers(0, 2, count)], axis=1)
    theirs = binary_calibration_error(
        torch.tensor(rows[:, 0].tolist()), torch.from_numpy(rows[:, 1]).long(), n_bins=15, norm="l1"
    )
    assert calibration_error(rows) == pytest.approx(float(theirs), abs=1e-6)


def test_perfectly_calibrated_answers_have_no_error() -> None:
    """Of those at 0.25 one in four is right, of those at 0.5 half, of those at 1 all."""
    quarter, half = [(0.25, 1), *[(0.25, 0)] * 3], [(0.5, 1), (0.5, 0)]
    assert calibration_error(rows_of(*quarter, *half, (1, 1), (1, 1), (0, 0))) == 0


def test_answers_of_one_bin_are_taken_together() -> None:
    """0.61 and 0.65 are both between 9/15 and 10/15, 0.8 is not."""
    assert calibration_error(rows_of((0.61, 0), (0.65, 1))) == pytest.approx(abs(1.26 - 1) / 2)
    assert calibration_error(rows_of((0.61, 0), (0.8, 1))) == pytest.approx((0.61 + 0.2) / 2)


@pytest.mark.parametrize(("right", "error"), [(0, 1), (1, 0)])
def test_certain_answers(right: int, error: float) -> None:
    """A confidence of 1 is in the last bin."""
    assert calibration_error(rows_of((1, right), (1, right))) == error


def test_calibration_errors_are_of_each_model() -> None:
    found = compare_confidence(FLOAT, INT8, 0.9)
    assert found.reference_calibration_error.value == pytest.approx(calibration_error(FLOAT))
    assert found.calibration_error.value == pytest.approx(calibration_error(INT8))
    assert found.calibration_error.value > found.reference_calibration_error.value


# ---- automation


@examples
@given(tied, st.sampled_from([0.0, 0.3, 0.5, 2 / 3, 0.9, 0.99, 1.0]))
def test_rate_is_the_largest_of_all_thresholds(pairs: list, required: float) -> None:
    reference = rows_of(*((tenths / 10, right) for tenths, right in pairs))
    measured = reference.copy()
    measured[:, 0] = measured[::-1, 0]
    found = compare_confidence(reference, measured, required)
    for rows, automation in ((reference, found.reference), (measured, found.measured)):
        rate, threshold, accuracy = best_share(rows, required)
        assert automation.rate.value == pytest.approx(rate, abs=1e-12)
        assert automation.threshold == threshold
        assert automation.accuracy == (None if accuracy is None else pytest.approx(accuracy))
    carried = share_from(measured, found.reference.threshold)
    assert found.carried.rate.value == pytest.approx(carried, abs=1e-12)
    assert found.carried.threshold == found.reference.threshold
    assert found.drop.value == pytest.approx(
        found.reference.rate.value - found.measured.rate.value, abs=1e-12
    )


@pytest.mark.parametrize(
    ("required", "rate", "threshold", "accuracy"),
    [(1.0, 0.4, 0.8, 1.0), (0.75, 0.8, 0.6, 0.75), (0.6, 1.0, 0.5, 0.6), (0.76, 0.4, 0.8, 1.0)],
)
def test_rate_by_hand(required: float, rate: float, threshold: float, accuracy: float) -> None:
    """A lower threshold may do where a higher one does not: 3 of 4, but not 2 of 3."""
    found = compare_confidence(FLOAT, FLOAT, required).reference
    assert (found.rate.value, found.threshold, found.accuracy) == (rate, threshold, accuracy)


def test_images_that_are_equally_sure_are_accepted_together() -> None:
    """In whatever order they come; one right answer of two is not enough for either."""
    for rows in (rows_of((0.9, 1), (0.9, 0)), rows_of((0.9, 0), (0.9, 1))):
        assert compare_confidence(rows, rows, 1.0).reference.rate.value == 0
        assert compare_confidence(rows, rows, 0.5).reference.rate.value == 1


@pytest.mark.parametrize(("right", "accepted"), [(55, True), (54, False)])
def test_required_accuracy_is_met_exactly(right: int, accepted: bool) -> None:
    """55 of 100 are 0.55, though to a computer 0.55 * 100 is more than 55."""
    assert 0.55 * 100 > 55
    rows = rows_of(*[(0.5, 1)] * right, *[(0.5, 0)] * (100 - right))
    assert compare_confidence(rows, rows, 0.55).reference.rate.value == float(accepted)


def test_none_is_accepted_where_the_surest_are_wrong() -> None:
    rows = rows_of((0.9, 0), (0.8, 1), (0.7, 1))
    found = compare_confidence(rows, rows, 0.99)
    for automation in (found.reference, found.measured, found.carried):
        assert (automation.threshold, automation.accuracy) == (None, None)
        assert automation.rate.value == 0


def test_all_are_accepted_where_all_are_right() -> None:
    rows = rows_of((0.9, 1), (0.2, 1), (0.7, 1))
    found = compare_confidence(rows, rows, 1.0)
    for automation in (found.reference, found.measured, found.carried):
        assert (automation.threshold, automation.accuracy) == (0.2, 1)
        assert (automation.rate.value, automation.rate.low, automation.rate.high) == (1, 1, 1)
    assert (found.drop.value, found.drop.low, found.drop.high) == (0, 0, 0)


def test_carried_threshold_is_floats() -> None:
    """At float's 0.6, 0.85, 0.75 and 0.65 of int8 are accepted, two of them right; its own is
    0.65, at 2 of 3."""
    found = compare_confidence(FLOAT, INT8, 2 / 3)
    assert (found.reference.threshold, found.reference.rate.value) == (0.6, 0.8)
    assert (found.measured.threshold, found.measured.rate.value) == (0.65, 0.6)
    assert (found.carried.threshold, found.carried.rate.value) == (0.6, 0.6)
    assert found.carried.accuracy == pytest.approx(2 / 3)
    assert found.drop.value == pytest.approx(0.2)


def test_carried_threshold_may_accept_too_much() -> None:
    """An overconfident model: with its own threshold it accepts less, and is right."""
    measured = FLOAT.copy()
    measured[:, 0] += 0.15
    found = compare_confidence(FLOAT, measured, 1.0)
    assert (found.measured.threshold, found.measured.rate.value) == (pytest.approx(0.95), 0.4)
    assert (found.measured.accuracy, found.drop.value) == (1, 0)
    assert (found.carried.threshold, found.carried.rate.value) == (0.8, 0.6)
    assert found.carried.accuracy == pytest.approx(2 / 3)


def test_threshold_of_float_that_int8_never_reaches_accepts_none() -> None:
    measured = FLOAT.copy()
    measured[:, 0] -= 0.45
    found = compare_confidence(FLOAT, measured, 1.0)
    assert found.carried.threshold == 0.8
    assert (found.carried.rate.value, found.carried.accuracy) == (0, None)
    assert found.measured.rate.value == 0.4


def sampled(count: int, seed: int) -> Confidence:
    """A calibrated float model, and the same with noise in its confidence."""
    generator = np.random.default_rng(seed)
    sure = generator.random(count)
    right = generator.random(count) < sure
    noisy = np.clip(sure + generator.normal(0, 0.05, count), 0, 1)
    reference, measured = (np.stack([values, right], axis=1) for values in (sure, noisy))
    return compare_confidence(reference, measured, 0.8)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_hold_their_values(seed: int) -> None:
    found = sampled(400, seed)
    rates = (found.reference.rate, found.measured.rate, found.carried.rate, found.drop)
    for interval in rates:
        assert interval.low <= interval.value <= interval.high
        assert interval.low < interval.high
    assert found.reference.rate.low >= 0
    assert found.reference.rate.high <= 1


def test_drop_is_of_pairs_of_images() -> None:
    """Two equal models differ in no draw, though each rate has an interval."""
    found = compare_confidence(FLOAT, FLOAT, 0.75)
    assert found.reference.rate.low < found.reference.rate.high
    assert (found.drop.value, found.drop.low, found.drop.high) == (0, 0, 0)


# ---- curve


def test_curve_goes_from_the_surest_image_to_all() -> None:
    points = [(0.2, 1), (0.4, 1), (0.6, 2 / 3), (0.8, 3 / 4), (1, 3 / 5)]
    assert curve(FLOAT) == tuple(pytest.approx(point) for point in points)
    shuffled = FLOAT[[3, 0, 4, 2, 1]]
    assert curve(shuffled) == curve(FLOAT)


def test_curve_has_one_point_for_images_that_are_equally_sure() -> None:
    assert curve(rows_of((0.5, 1), (0.5, 0), (0.9, 1), (0.5, 0))) == ((0.25, 1.0), (1.0, 0.5))


@pytest.mark.parametrize("count", [1, 199, 200, 201, 5000])
def test_curve_ends_with_all_images_and_their_accuracy(count: int) -> None:
    """Of many images it has at most 200 points, the first and the last among them."""
    generator = np.random.default_rng(count)
    rows = np.stack([generator.random(count), generator.integers(0, 2, count)], axis=1)
    points = curve(rows)
    assert points[-1] == (1, pytest.approx(rows[:, 1].mean()))
    assert points[0] == (1 / count, rows[rows[:, 0].argmax(), 1])
    assert len(points) == min(count, 200)
    shares = [share for share, _ in points]
    assert shares == sorted(set(shares))


def test_both_models_have_a_curve() -> None:
    found = compare_confidence(FLOAT, INT8, 0.9)
    assert (found.reference_curve, found.curve) == (curve(FLOAT), curve(INT8))
    assert found.required_accuracy == 0.9
