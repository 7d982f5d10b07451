"""What int8 costs at each place of a plan, on real images.

Each place is looked at alone: in int8 where all else is float, and in float where all else is int8.
That measures what second-order methods estimate (HAWQ, Dong et al. 2019, arXiv:1905.03696), at a
forward pass, from the place on, for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert.errors import NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader
from qconvert.images.stream import Progress, map_images, no_progress
from qconvert.measurement.statistics import Interval, bootstraps, decibels
from qconvert.models.operators import operator_name, recurrent_weights
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.lowering.switched import Place
from qconvert.quantization.sensitivity.record import PlaceSensitivity, Sensitivity, Trial
from qconvert.quantization.sensitivity.subject import Subject
from qconvert.quantization.sensitivity.tensor_error import (
    Tally,
    TensorError,
    weight_error,
    worst_weight,
)
from qconvert.quantization.sensitivity.walk import Energies, Seen

_WIDTH = len(Energies._fields)
# The figures that have intervals, of each place, one after the other.
_FIGURES = ("own", "alone", "in_float", "gain", "int8")


@dataclass(frozen=True)
class _Image:
    """Of one image: the energies `signal` and `int8` of all bodies, and each place."""

    signal: float
    int8: float
    seen: dict[int, Seen]


def analyze(
    subject: Subject, images: ImageSet, read: Reader, *, progress: Progress = no_progress
) -> Sensitivity:
    """Every place on these images; the cores work on different images, each on one thread.

    Raises NotFiniteImageError that names the images on which the float model is not finite.
    """

    def on_image(inputs: Inputs) -> _Image:
        signal = int8 = 0.0
        seen: dict[int, Seen] = {}
        with subject.looks(inputs) as looks:
            for look in looks:
                signal, int8 = signal + look.signal, int8 + look.int8
                for number, found in look.places().items():
                    seen[number] = seen[number].with_more(found) if number in seen else found
        return _Image(signal, int8, seen)

    _ = subject.bodies  # made once, before several threads ask for it
    tallies: dict[int, Tally] = {}
    energies = []
    for found in map_images(on_image, images, read, batch_size=1, progress=progress):
        rows = np.zeros((len(subject.places) + 1, _WIDTH))
        rows[-1, :2] = found.signal, found.int8
        for number, seen in found.seen.items():
            rows[number] = seen.energies
            if seen.tally is not None:
                before = tallies.get(number)
                tallies[number] = before.with_more(seen.tally) if before else seen.tally
        energies.append(rows)
    table = np.stack(energies)
    _check_finite(table[:, -1, 0], images)
    return _summary(subject, table, tallies)


def try_plans(
    subject: Subject,
    others: Iterable[tuple[dict[str, Any], Subject]],
    images: ImageSet,
    read: Reader,
) -> tuple[Trial, ...]:
    """What the measured output gains by plans that have a rule more, on the same images."""
    before = _ends(subject, images, read)
    total = subject.plan.kept_macs + sum(o.macs for o in subject.plan.operators)
    trials = []
    for rule, other in others:
        rows = np.stack([before, _ends(other, images, read)], 1)
        first, second, gain = bootstraps(_gain, rows)
        left = subject.plan.macs("int8") - other.plan.macs("int8")
        share = left / total if total else 0.0
        trials.append(
            Trial(rule=rule, before_db=first, after_db=second, gain_db=gain, macs_share=share)
        )
    return tuple(trials)


def _gain(drawn: np.ndarray) -> Sequence[float]:
    first, second = (decibels(*drawn[:, i].sum(0).tolist()) for i in range(2))
    return first, second, second - first


def _ends(subject: Subject, images: ImageSet, read: Reader) -> np.ndarray:
    """Power of the measured output and of its error, (images, 2)."""

    def on_image(inputs: Inputs) -> tuple[float, float]:
        with subject.looks(inputs) as looks:
            found = [(look.signal, look.int8) for look in looks]
        return sum(signal for signal, _ in found), sum(int8 for _, int8 in found)

    _ = subject.bodies
    return np.array(list(map_images(on_image, images, read, batch_size=1)))


def _check_finite(signals: np.ndarray, images: ImageSet) -> None:
    wrong = [path for path, x in zip(images.files, signals, strict=True) if not np.isfinite(x)]
    if wrong:
        raise NotFiniteImageError(
            [f"{path}: the float model computes NaN or infinity" for path in wrong]
        )


def _summary(subject: Subject, table: np.ndarray, tallies: dict[int, Tally]) -> Sensitivity:
    """`table` is (images, places and all together, energies)."""
    numbers = range(len(subject.places))
    intervals = bootstraps(_figures, table)
    count = len(subject.places) + 1
    own, alone, in_float, gain, whole = (
        intervals[i * count : (i + 1) * count] for i in range(len(_FIGURES))
    )
    totals = [Energies(*row) for row in table.sum(0).tolist()]
    rows = []
    for i, place in enumerate(subject.places):
        found = _described(subject, i, place, tallies.get(i))
        reason = _reason(subject, i, place, totals[i])
        if totals[i].own_signal or totals[i].own_error:
            found["sqnr_db"] = own[i]
        if reason is None:
            parts = totals[i].weight + totals[i].result
            found |= {
                "alone_db": alone[i],
                "weight_share": totals[i].weight / parts if parts and place.weight else None,
                "in_float_db": in_float[i],
                "gain_db": gain[i],
            }
        rows.append(PlaceSensitivity(**found, reason=reason))
    noise = totals[-1].int8
    return Sensitivity(
        int8_db=whole[-1],
        explained=sum(totals[i].alone for i in numbers) / noise if noise else None,
        places=_ranked(rows),
    )


def _figures(drawn: np.ndarray) -> Sequence[float]:
    column = dict(zip(Energies._fields, drawn.sum(0).T, strict=True))
    int8, alone, in_float = (
        _decibels(column["signal"], column[name]) for name in ("int8", "alone", "in_float")
    )
    own = _decibels(column["own_signal"], column["own_error"])
    return np.concatenate([own, alone, in_float, in_float - int8, int8]).tolist()


def _decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """As `statistics.decibels`, of many."""
    safe = np.where(noise > 0, noise, 1.0)
    ratio = np.clip(signal / safe, 1e-20, 1e20)
    return np.where(noise > 0, 10 * np.log10(ratio), 200.0)


def _reason(subject: Subject, number: int, place: Place, total: Energies) -> str | None:
    """Why there is nothing to tell of the measured output."""
    if place.weight is None and place.held is None:
        return "it rounds nothing: its result is made of the integers that it reads"
    if not total.signal:
        return "none of these images reaches it"
    if not any(body.reaches(number) for body in subject.bodies):
        return "the measured output does not depend on it"
    return None


def _described(
    subject: Subject, number: int, place: Place, rounded: Tally | None
) -> dict[str, object]:
    """All of a place's line that needs no comparison."""
    plan, operator = subject.plan, place.operator
    total = plan.kept_macs + sum(o.macs for o in plan.operators)
    node = nodes_by_name(subject.model)[place.value]
    body = next((i for i, b in enumerate(subject.bodies) if b.holds(number)), 0)
    result = None
    if rounded is not None and place.held is not None:
        params = place.held.params
        result = rounded.summary(params.maximum - params.minimum)
    return {
        "depth": number,
        "name": operator_name(node) if operator is None else operator.name,
        "kind": "boundary" if operator is None else operator.kind,
        "precision": "boundary" if operator is None else operator.precision,
        "part": subject.parts()[body],
        "macs": 0 if operator is None else operator.macs,
        "macs_share": operator.macs / total if operator is not None and total else 0.0,
        "result": result,
        "weight": _weight(subject, place),
    }


def _weight(subject: Subject, place: Place) -> TensorError | None:
    operator = place.operator
    if place.weight is None or operator is None:
        return None
    switch: Any = subject.graph.get_submodule(place.weight)
    as_float, as_int8 = switch.as_float, switch.as_int8
    if operator.weight is not None:
        return weight_error(as_float.weight.detach(), as_int8.weight.detach(), operator.weight)
    return worst_weight(recurrent_weights(as_float), operator.cell_weights or {})


def _ranked(rows: Iterable[PlaceSensitivity]) -> tuple[PlaceSensitivity, ...]:
    rows = list(rows)
    judged = [row for row in rows if row.alone_db is not None and row.gain_db is not None]
    by_alone = sorted(judged, key=lambda row: _value(row.alone_db))
    by_gain = sorted(judged, key=lambda row: -_value(row.gain_db))
    alone = {row.depth: i + 1 for i, row in enumerate(by_alone)}
    gain = {row.depth: i + 1 for i, row in enumerate(by_gain)}
    return tuple(
        row.model_copy(
            update={"rank_alone": alone.get(row.depth), "rank_gain": gain.get(row.depth)}
        )
        for row in rows
    )


def _value(interval: Interval | None) -> float:
    return 0.0 if interval is None else interval.value
