"""Pictures of a report."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from qconvert.measurement.confidence import compare_confidence
from qconvert.reports.plots import automation_svg


def texts(svg: bytes) -> str:
    return " ".join(e.text or "" for e in ElementTree.fromstring(svg).iter() if e.text)


@pytest.mark.parametrize("required", [0.6, 0.99, 1.0])
@pytest.mark.parametrize("right", [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
def test_automation_is_drawn_whatever_the_models_get_right(
    right: list[float], required: float
) -> None:
    """Without a warning, with the shares in words, and the same for the same figures."""
    first = np.array([[0.9, 0.8, 0.7, 0.6], right]).T
    second = np.array([[0.9, 0.8, 0.6, 0.6], right]).T
    found = compare_confidence(first, second, required)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = automation_svg(found, "int8")
        assert drawn == automation_svg(found, "int8")
    said = texts(drawn)
    assert f"float: {found.reference.rate.value:.1%} alone" in said
    assert f"int8: {found.measured.rate.value:.1%} alone" in said
    assert f"required: {required:.4g}" in said
    assert ("at float's threshold" in said) == any(right)
