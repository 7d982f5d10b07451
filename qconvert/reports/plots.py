"""The only importer of matplotlib: figures of a report as SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from qconvert.measurement.confidence import Confidence
from qconvert.measurement.latency import Latency
from qconvert.qconfig import BudgetSection
from qconvert.quantization.audit.record import Audit, Growth, ImageRow
from qconvert.quantization.sensitivity.record import PlaceSensitivity
from qconvert.reports.analysis import Analysis
from qconvert.reports.trail import ACCURACY_WORDS, Trail, Tried

_FLOAT, _OTHER = "#0b6fb8", "#c2410c"
# What each colour of a drawing is for; a page may have its own for it.
COLOURS = {
    _FLOAT: "float",
    _OTHER: "int8",
    "#ffffff": "paper",
    "#000000": "ink",
    "#444444": "faint",
    "#666666": "faint",
    "#dddddd": "rule",
    "#94a3b8": "bar",
    "#64748b": "faint",
}
# Much below the accuracy that is asked for nobody looks.
_BELOW = 4
_LEAST_HEIGHT = 1e-3
# Places that a plot along the depth names.
_NAMED = 5
# Points of a picture: more cannot be told apart.
_POINTS = 1000
# The same record gives the same bytes; text stays text, so that it can be searched and read out.
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "qconvert",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


def automation_svg(confidence: Confidence, model: str) -> bytes:
    """Accuracy of the accepted answers against their share of all, of float and of a model."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
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
        return _svg(figure)


def latency_svg(latency: Latency) -> bytes:
    """The share of the calls that are done within a time, of float and of each other model: the
    steeper, the steadier. Times beyond the 99th percentiles are left out."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        timings = {"float": latency.baseline, **latency.models}
        colours, styles = (_FLOAT, _OTHER), ("-", "--")
        for place, (name, timing) in enumerate(timings.items()):
            times = [1e3 * seconds for seconds in timing.percentiles_s]
            shares = [i / (len(times) - 1) for i in range(len(times))]
            colour, style = colours[min(place, 1)], styles[min(place, 1)]
            axes.plot(times, shares, style, color=colour, linewidth=1.6, label=name)
            axes.plot([1e3 * timing.median_s.value], [0.5], "o", color=colour, markersize=5)
        start = min(timing.percentiles_s[0] for timing in timings.values())
        end = max(timing.p99_s for timing in timings.values())
        margin = 0.04 * (end - start) or 0.1 * end
        axes.set(
            xlim=(1e3 * max(0.0, start - margin), 1e3 * (end + margin)),
            ylim=(0, 1.02),
            xlabel="milliseconds a call",
            ylabel="share of calls within",
        )
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="lower right", edgecolor="none", framealpha=0.9)
        return _svg(figure)


def _svg(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def analysis_svg(analysis: Analysis) -> bytes:
    """Along the depth of a model: the SQNR of each result with everything in int8, and below it
    what each place costs the measured output alone, and gains it alone in float."""
    places = analysis.places
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(min(max(6.4, 0.16 * len(places)), 16.0), 6.4),
                        layout="constrained")  # fmt: skip
        FigureCanvasSVG(figure)
        here, cost = figure.subplots(2, 1, sharex=True)
        for axes, label, name, colour, style in (
            (here, "SQNR of the result, dB", "sqnr_db", _FLOAT, "-"),
            (cost, "alone in int8: SQNR of the output, dB", "alone_db", _OTHER, ""),
        ):
            known = [(p.depth, getattr(p, name)) for p in places if getattr(p, name) is not None]
            depths, values = [d for d, _ in known], [i.value for _, i in known]
            lows = [max(i.value - i.low, 0) for _, i in known]
            highs = [max(i.high - i.value, 0) for _, i in known]
            axes.errorbar(depths, values, yerr=[lows, highs], fmt=f"o{style}", color=colour,
                          markersize=3, linewidth=1.2, elinewidth=0.8)  # fmt: skip
            axes.set_ylabel(label, color=colour)
            axes.grid(color="#dddddd", linewidth=0.6)
        _gains(cost, places)
        for place in analysis.worst[:_NAMED]:
            assert place.alone_db is not None
            right = place.depth > len(places) / 2
            cost.annotate(place.name, (place.depth, place.alone_db.value), (-5 if right else 5, -3),
                          ha="right" if right else "left", textcoords="offset points", fontsize=7,
                          color="#444444")  # fmt: skip
        whole = analysis.int8_db.value
        cost.axhline(whole, color="#666666", linewidth=1, linestyle=":")
        cost.annotate(f"everything in int8: {whole:.1f} dB", (0, whole), (2, 3), fontsize=8,
                      textcoords="offset points", color="#444444")  # fmt: skip
        cost.set_xlabel("places that int8 rounds, in the order of the model")
        return _svg(figure)


def _gains(axes: Any, places: Sequence[PlaceSensitivity]) -> None:
    """Bars from below, on an axis of their own."""
    known = [(p.depth, p.gain_db.value) for p in places if p.gain_db is not None]
    beside = axes.twinx()
    beside.bar([d for d, _ in known], [max(g, 0.0) for _, g in known], color="#94a3b8", alpha=0.5)
    top = max((g for _, g in known), default=0.0)
    # The points, which are told exactly, before the bars.
    axes.set_zorder(beside.get_zorder() + 1)
    axes.patch.set_visible(False)
    beside.set_ylim(0, 3 * max(top, 0.1))
    beside.set_ylabel("alone in float: gain, dB (bars)", color="#64748b")


def audit_svg(audit: Audit) -> bytes:
    """How ranges grow with the number of calibration images, how bright these are, and how large
    where that differs; images that the verdicts name are marked."""
    marked = {found.image for found in audit.foreign}
    marked |= {found.image for found in audit.stretching} | set(audit.blank)
    step = -(-len(audit.rows) // _POINTS)
    rows = [row for i, row in enumerate(audit.rows) if i % step == 0 or row.image in marked]
    bright = [row for row in rows if row.brightness is not None]
    with mpl.rc_context(_SETTINGS):
        sizes = [(row.width, row.height) for row in rows]
        differ = len(set(sizes)) > 1 or not bright
        panels = (audit.growth is not None) + bool(bright) + differ
        figure = Figure(figsize=(3.6 * panels, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        axes = iter(figure.subplots(1, panels, squeeze=False)[0])
        if audit.growth is not None:
            _draw_growth(next(axes), audit.growth)
        if bright:
            light = [(row.brightness, row.contrast) for row in bright]
            _draw_images(next(axes), bright, light, marked, ("brightness", "contrast"))
        if differ:
            _draw_images(next(axes), rows, sizes, marked, ("width of the file", "height"))
        return _svg(figure)


def _draw_growth(axes: Axes, growth: Growth) -> None:
    for shares, label, style in (
        (growth.median, "tensor in the middle", "o-"),
        (growth.lowest_tenth, "lowest tenth", "o--"),
    ):
        axes.plot(growth.images, shares, style, color=_FLOAT, linewidth=1.4, markersize=3,
                  label=label)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(growth.images[::2], [str(number) for number in growth.images[::2]])
    axes.set(ylim=(0, 1.05), xlabel="images", ylabel="range, as a share of that of all")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower right", edgecolor="none", fontsize=8)


def _draw_images(
    axes: Axes, rows: list[ImageRow], points: list[Any], marked: set[str], names: tuple[str, str]
) -> None:
    x, y = np.array(points, float).T
    named = np.array([row.image in marked for row in rows])
    axes.plot(x[~named], y[~named], "o", color=_FLOAT, markersize=3, alpha=0.5, linestyle="none")
    if named.any():
        axes.plot(x[named], y[named], "s", color=_OTHER, markersize=4, linestyle="none",
                  label="named")  # fmt: skip
        axes.legend(edgecolor="none", fontsize=8)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid(color="#dddddd", linewidth=0.6)


def _last(confidence: Confidence) -> float:
    """The lower accuracy of the two models on all images."""
    return min(confidence.reference_curve[-1][1], confidence.curve[-1][1])


def trail_svg(trail: Trail, limits: BudgetSection) -> bytes:
    """Every trial of `tune` by its latency and the first budget of accuracy, the better the higher;
    the line joins those that no other trial beats in both."""
    name = limits.set_of_accuracy[0]
    limit = getattr(limits, name)
    lost = name.startswith("max_")

    def point(tried: Tried) -> tuple[float, float] | None:
        found = tried.found[name]
        return None if found is None else (1e3 * tried.latency_s, found)

    points = {tried.number: p for tried in trail.trials if (p := point(tried)) is not None}
    met = {tried.number for tried in trail.trials if tried.met(limits)}
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.axhline(limit, color="#666666", linewidth=1, linestyle=":")
        axes.annotate(f"budget: {limit:.4g}", (0.01, limit), (0, 3), fontsize=8, color="#444444",
                      xycoords=("axes fraction", "data"),
                      textcoords="offset points")  # fmt: skip
        front = _front(list(points.values()), lost)
        if front:
            axes.plot(*zip(*front, strict=True), color=_FLOAT, linewidth=1, zorder=1)
        for chosen, label, colour, fill in (
            (points.keys() - met, "missed", _OTHER, "none"),
            (points.keys() & met, "met", _FLOAT, "full"),
        ):
            if chosen:
                found = [points[number] for number in sorted(chosen)]
                axes.plot(*zip(*found, strict=True), "o", markersize=6, label=label, color=colour,
                          fillstyle=fill)  # fmt: skip
        if trail.best in points:
            axes.plot(*points[trail.best], "o", markersize=12, fillstyle="none", color="#222222",
                      linestyle="none", label=f"kept: trial {trail.best}")  # fmt: skip
        for number, place in points.items():
            axes.annotate(str(number), place, (5, 4), textcoords="offset points", fontsize=7)
        if lost:
            axes.invert_yaxis()
        axes.set(xlabel="milliseconds (predicted)", ylabel=ACCURACY_WORDS[name])
        axes.margins(0.1)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="lower right", edgecolor="none", framealpha=0.9)
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def _front(points: list[tuple[float, float]], lost: bool) -> list[tuple[float, float]]:
    """Those that no other is faster and better than, from fast to slow."""
    front: list[tuple[float, float]] = []
    for latency, found in sorted(points, key=lambda p: (p[0], p[1] if lost else -p[1])):
        if not front or (found < front[-1][1] if lost else found > front[-1][1]):
            front.append((latency, found))
    return front
