"""How far a model's outputs are from those that they should equal."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

_SMALLEST = 1e-12


def relative_difference(want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> float:
    """The largest difference of any element, as a share of its output's largest; infinite where NaN
    or other names or shapes stand against it."""
    if {n: x.shape for n, x in want.items()} != {n: x.shape for n, x in have.items()}:
        return math.inf
    largest = 0.0
    for name, expected in want.items():
        if not expected.numel():
            continue
        a, b = expected.double(), have[name].double()
        share = float((a - b).abs().max()) / max(float(a.abs().max()), _SMALLEST)
        largest = math.inf if math.isnan(share) else max(largest, share)
    return largest
