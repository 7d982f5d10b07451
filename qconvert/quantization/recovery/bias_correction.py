"""Biases that make up for what rounding does to a layer's mean result.

Empirical and sequential: Nagel et al. 2019 (arXiv:1906.04721), section 4.2, layer by layer, each on
the inputs that it has when those before it are corrected. Here only places count at which the
result is not clipped afterwards: what is cut off at a bound must not move what is not.
"""

from __future__ import annotations

from torch import Tensor

from qconvert.quantization.recovery.drawn import Drawn

# A mean over few places is trusted less: as if so many more had an error of zero.
_PRIOR = 32


def correction(found: Drawn, weight: Tensor, bias: Tensor, low: float, high: float) -> Tensor:
    """What to add to the bias (g, o) of a layer with the weight (g, o, k), both as they are in
    int8; results from `low` to `high` are not clipped."""
    computed = found.rows.to(weight.dtype) @ weight.mT + bias[:, None]
    wanted = found.wanted.to(weight.dtype)
    counts = ((wanted > low) & (wanted < high)) | ((computed > low) & (computed < high))
    places = counts.sum(1)
    total: Tensor = ((wanted - computed) * counts).sum(1)
    return total / (places + _PRIOR)
