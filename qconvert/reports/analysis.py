"""What `analyze` found, as one record and as a table (`docs/analyze.md`)."""

from __future__ import annotations

import json
from typing import Literal

from qconvert.measurement.statistics import Interval
from qconvert.quantization.sensitivity.record import PlaceSensitivity, Sensitivity, Trial
from qconvert.quantization.sensitivity.tensor_error import TensorError
from qconvert.reports.tables import Table

# Rows in the terminal; the JSON has all.
_SHOWN = 10


class Analysis(Sensitivity):
    """`analysis.json`: what each place costs on `images` of `of_images` evaluation images, or
    calibration images where there are no others (`calibration_images`). `measured_output` is None
    for a model that is traced in parts, where all results of the parts count. `trials` are rules
    for the operators that cost most. SQNR and gains are dB, shares fractions."""

    version: Literal[1] = 1
    name: str
    images: int
    of_images: int
    calibration_images: bool
    measured_output: str | None
    plan: str
    trials: tuple[Trial, ...]

    @property
    def worst(self) -> list[PlaceSensitivity]:
        """All places that cost anything, those first that alone cost most."""
        judged = [place for place in self.places if place.rank_alone is not None]
        return sorted(judged, key=lambda place: place.rank_alone or 0)


def analysis_table(analysis: Analysis) -> Table:
    """The worst places."""
    worst = analysis.worst
    rows = tuple(map(_row, worst[:_SHOWN]))
    left = len(analysis.places) - len(rows)
    images = f"{analysis.images:,} of {analysis.of_images:,}"
    kind = "calibration" if analysis.calibration_images else "evaluation"
    return Table(
        f"What int8 costs, the worst first ({images} {kind} images)",
        ("operator", "kind", "here", "alone", "in float", "weight", "clipped", "worst channel"),
        rows,
        "here: SQNR (dB) of its result, with all that came before; alone: of the measured output "
        "with this operator alone in int8; in float: what the output gains with this operator "
        "alone in float (95 % interval); weight: share of its weight in its error, the rest is of "
        "its result; clipped: share of clipping in its result's error; worst channel: of its "
        "result, with its SQNR and its range in that of the tensor"
        + (f"; {left} places that cost less are in the JSON" if left else ""),
    )


def _row(place: PlaceSensitivity) -> tuple[str, ...]:
    assert place.alone_db is not None
    assert place.gain_db is not None
    return (
        place.name,
        place.kind,
        "" if place.sqnr_db is None else f"{place.sqnr_db.value:.1f}",
        f"{place.alone_db.value:.1f}",
        _signed(place.gain_db),
        "" if place.weight_share is None else f"{place.weight_share:.0%}",
        "" if place.result is None else f"{place.result.clipping:.0%}",
        _worst_channel(place.result),
    )


def _worst_channel(error: TensorError | None) -> str:
    if error is None or error.worst is None:
        return ""
    worst = error.worst
    return f"{worst.channel}: {worst.sqnr_db:.1f}, {worst.range_share:.0%}"


def _signed(gain: Interval) -> str:
    return f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"


def analysis_lines(analysis: Analysis) -> tuple[str, ...]:
    """The whole model, and what to do."""
    whole = analysis.int8_db
    lines = [
        f"everything in int8, simulated: {whole.value:.1f} dB ({whole.low:.1f} to {whole.high:.1f})"
        f"{'' if analysis.measured_output else ', of what the parts return'}"
    ]
    if analysis.explained is not None:
        lines.append(f"the errors of all places alone add up to {analysis.explained:.2f} of that")
    if analysis.calibration_images:
        lines.append(
            "judged on calibration images, which recovery has seen: set `data.evaluation` to others"
        )
    return (*lines, _what_to_do(analysis))


def _what_to_do(analysis: Analysis) -> str:
    if not analysis.worst:
        return "what to do: nothing, for nothing is rounded"
    best = max(analysis.trials, key=lambda trial: trial.gain_db.value, default=None)
    if best is None or best.gain_db.low <= 0:
        return (
            f"what to do: none of {len(analysis.trials)} rules that were tried is sure to help: "
            f"the error is spread over {len(analysis.worst)} places"
        )
    # JSON is YAML in one line.
    return (
        f"what to do: quantization.layers: [{json.dumps(best.rule)}]: {best.before_db.value:.1f} "
        f"to {best.after_db.value:.1f} dB (gain {_signed(best.gain_db)}), "
        f"{best.macs_share:.1%} of multiply-accumulates leave int8"
    )
