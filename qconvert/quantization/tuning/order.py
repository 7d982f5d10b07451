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
    """The operators that gain something, by their gain (of any unit) for each second that they cost
    beside those before them: one that reads or is read by operators in float is cheaper, for it
    needs no boundary. What costs nothing comes first. An operator that would make a plan which is
    not `allowed` is left out."""
    left = {name: gain for name, gain in gains.items() if gain > 0}
    chosen: list[str] = []
    worth: dict[str, tuple[float, float]] = {}
    stale = set(left)
    while left:
        now = predict(frozenset(chosen))
        while True:
            for name in stale & left.keys():
                price = predict(frozenset([*chosen, name])).latency_s - now.latency_s
                worth[name] = (left[name] / price if price > 0 else math.inf, left[name])
            stale = set()
            best = max(left, key=lambda name: (*worth[name], name))
            price = predict(frozenset([*chosen, best])).latency_s - now.latency_s
            fresh = (left[best] / price if price > 0 else math.inf, left[best])
            if fresh == worth[best]:
                break
            worth[best] = fresh
        del left[best]
        if allowed(predict(frozenset([*chosen, best]))):
            chosen.append(best)
            stale = set(neighbours.get(best, ()))
    return chosen
