"""In which order operators go to float: that first which costs most accuracy for each millisecond
that int8 saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from qconvert.quantization.tuning.prediction import Prediction

Predict = Callable[[frozenset[str]], Prediction]


def order(
    gains: Mapping[str, float],
    predict: Predict,
    neighbours: Mapping[str, set[str]],
    allowed: Callable[[Prediction], bool],
) -> list[str]:
    """The operators by what each gains (of any unit) for each second that it costs beside those
    before it: one that reads or is read by operators in float is cheaper, for it needs no boundary.
    What costs nothing comes first, what gains nothing last. An operator that would make a plan
    which is not `allowed` is left out."""
    left = dict(gains)
    chosen: list[str] = []
    worth: dict[str, float] = {}
    stale = set(left)

    def worth_of(name: str) -> float:
        price = predict(frozenset([*chosen, name])).latency_s - predict(frozenset(chosen)).latency_s
        if price <= 0:
            return math.inf if left[name] > 0 else left[name]
        return left[name] / price

    def key(name: str) -> tuple[float, float, str]:
        return worth[name], left[name], name

    while left:
        worth |= {name: worth_of(name) for name in stale & left.keys()}
        best = max(left, key=key)
        while (now := worth_of(best)) != worth[best]:
            worth[best] = now
            best = max(left, key=key)
        del left[best]
        stale = set()
        if allowed(predict(frozenset([*chosen, best]))):
            chosen.append(best)
            stale = set(neighbours.get(best, ()))
    return chosen
