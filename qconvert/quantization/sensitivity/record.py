"""What an analysis found (docs/analyze.md has every field in words)."""

from __future__ import annotations

from typing import Any, Literal

from qconvert.measurement.statistics import Interval
from qconvert.quantization.sensitivity.tensor_error import TensorError
from qconvert.records import Record


class PlaceSensitivity(Record):
    """One place that int8 rounds: an operator of the plan, in the order of the graph, or a value
    that is brought from float (`kind` is `boundary`, `name` what computes it).

    `depth` is its number in that order. `sqnr_db` is of its result with everything in int8: what
    has come together so far. The others are of the measured output: `alone_db` is its SQNR with
    this place alone in int8, of whose error `weight_share` comes of the weight and the rest of the
    result; `in_float_db` is its SQNR with this place alone in float, and `gain_db` how much more
    that is than with everything in int8. `rank_alone` and `rank_gain` count from 1, the worst
    first. Where these are None, `reason` says why.

    `result` and `weight` are the tensors themselves: rounded once, without what came before.
    """

    depth: int
    name: str
    kind: str
    precision: Literal["int8", "dynamic", "boundary"]
    part: str | None
    macs: int
    macs_share: float
    sqnr_db: Interval | None = None
    alone_db: Interval | None = None
    weight_share: float | None = None
    in_float_db: Interval | None = None
    gain_db: Interval | None = None
    rank_alone: int | None = None
    rank_gain: int | None = None
    reason: str | None = None
    result: TensorError | None = None
    weight: TensorError | None = None


class Trial(Record):
    """A rule for `quantization.layers`, as the qconfig writes it, and what the plan with it gives:
    SQNR (dB) of the measured output before and with it, and the share of multiply-accumulates that
    leave int8. An operator in float between others in int8 is rounded again when these read it, so
    a rule gives less than the operator's own `gain_db`."""

    rule: dict[str, Any]
    before_db: Interval
    after_db: Interval
    gain_db: Interval
    macs_share: float


class Sensitivity(Record):
    """What each place costs. `int8_db` is the SQNR of the measured output with everything in int8;
    `explained` is the error of all places alone, added up, over that of all together: about 1 where
    they do not influence each other."""

    int8_db: Interval
    explained: float | None
    places: tuple[PlaceSensitivity, ...]
