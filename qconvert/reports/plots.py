"""The only importer of matplotlib: figures of a report as SVG."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from qconvert.measurement.confidence import Confidence

_FLOAT, _OTHER = "#0b6fb8", "#c2410c"
# Much below the accuracy that is asked for nobody looks.
_BELOW = 4
_LEAST_HEIGHT = 1e-3
# The same record gives the same bytes; text stays text, so that it can be searched and read out.
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "qconvert",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


def automation_svg(confidence: Confidence, model: str) -> bytes:
    """Accuracy of the accepted answers against their share of all, of float and of a model."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        required = confidence.required_accuracy
        axes.axhline(required, color="#666666", linewidth=1, linestyle=":")
        axes.annotate(f"required: {required:.4g}", (0.99, required), (0, 3), ha="right",
                      textcoords="offset points", fontsize=8, color="#444444")  # fmt: skip
        for curve, found, name, colour, style in (
            (confidence.reference_curve, confidence.reference, "float", _FLOAT, "-"),
            (confidence.curve, confidence.measured, model, _OTHER, "--"),
        ):
            rates, accuracies = zip(*curve, strict=True)
            label = f"{name}: {found.rate.value:.1%} alone"
            axes.plot(rates, accuracies, style, color=colour, linewidth=1.6, label=label)
            if found.accuracy is not None:
                axes.plot([found.rate.value], [found.accuracy], "o", color=colour, markersize=5)
        carried = confidence.carried
        if carried.accuracy is not None:
            label = f"{model} at float's threshold: {carried.rate.value:.1%} alone"
            axes.plot([carried.rate.value], [carried.accuracy], "o", color=_OTHER, markersize=9,
                      fillstyle="none", linestyle="none", label=label)  # fmt: skip
        lowest = min(a for curve in (confidence.reference_curve, confidence.curve)
                     for _, a in curve)  # fmt: skip
        bottom = max(lowest, 1 - _BELOW * max(1 - required, 1 - _last(confidence)))
        height = max(1 - min(bottom, required), _LEAST_HEIGHT)
        axes.set(
            xlim=(0, 1.005),
            ylim=(1 - 1.1 * height, 1 + 0.04 * height),
            xlabel="share of images that the model decides alone, the surest first",
            ylabel="accuracy of these",
        )
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="lower left", edgecolor="none", framealpha=0.9)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _last(confidence: Confidence) -> float:
    """The lower accuracy of the two models on all images."""
    return min(confidence.reference_curve[-1][1], confidence.curve[-1][1])
