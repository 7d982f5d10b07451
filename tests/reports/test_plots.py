"""Pictures of a report."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from qconvert.measurement.confidence import compare_confidence
from qconvert.reports.analysis import Analysis
from qconvert.reports.plots import analysis_svg, automation_svg


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


def test_analysis_is_drawn_with_the_worst_by_name() -> None:
    """Places without figures are left out; the same record gives the same bytes."""
    figures = {"precision": "int8", "part": None, "macs": 1, "macs_share": 0.5}
    interval = {"value": 30.0, "low": 29.0, "high": 31.0}
    known = {"sqnr_db": interval, "alone_db": interval, "gain_db": interval, "rank_alone": 1}
    found = Analysis.model_validate(
        {
            "int8_db": interval, "explained": 1.0, "name": "my", "images": 2, "of_images": 3,
            "calibration_images": False, "measured_output": "output", "plan": "", "trials": [],
            "places": [
                {"depth": 0, "name": "stem", "kind": "conv2d", **figures, **known},
                {"depth": 1, "name": "pool", "kind": "max_pool2d", **figures},
            ],
        }
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = analysis_svg(found)
        assert drawn == analysis_svg(found)
        analysis_svg(found.model_copy(update={"places": ()}))
    assert "stem" in texts(drawn)
    assert "pool" not in texts(drawn)
    assert "everything in int8: 30.0 dB" in texts(drawn)
