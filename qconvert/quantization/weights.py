"""Ranges and integers of weights: qint8, per output channel or per tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from qconvert.qconfig import WeightScheme
from qconvert.quantization.affine import QuantParams, affine
from qconvert.quantization.observers import left_out
from qconvert.quantization.plan import WeightParams

# -128 is left out of symmetric weights, so that w and -w have the same error.
SYMMETRIC = (-127, 127)
AFFINE = (-128, 127)


def choose_params(weight: Tensor, scheme: WeightScheme) -> WeightParams:
    """Scales and zero points of a weight whose axis 0 is the output channel."""
    rows = weight.detach().reshape(weight.shape[0] if scheme.per_channel else 1, -1)
    low, high = _OBSERVERS[scheme.observer](rows, scheme)
    if scheme.scheme == "symmetric":
        bounds = torch.maximum(low.abs(), high.abs())
        params = [_symmetric(float(bound)) for bound in bounds]
    else:
        params = [affine(float(a), float(b), *AFFINE) for a, b in zip(low, high, strict=True)]
    chosen = WeightParams(
        granularity="per_channel" if scheme.per_channel else "per_tensor",
        scheme=scheme.scheme,
        observer=scheme.observer,
        scales=tuple(p.scale for p in params),
        zero_points=tuple(p.zero_point for p in params),
        digest="",
    )
    integers = quantized(weight, chosen).int_repr()
    digest = hashlib.sha256(integers.contiguous().numpy().tobytes()).hexdigest()
    return chosen.model_copy(update={"digest": digest})


def quantized(weight: Tensor, params: WeightParams) -> Tensor:
    """The weight as a qint8 tensor of the same shape."""
    weight = weight.detach()
    if params.scheme == "symmetric":
        # torch would clip to -128, which symmetric weights leave out.
        bounds = SYMMETRIC[1] * torch.tensor(params.scales).view(-1, *[1] * (weight.dim() - 1))
        weight = torch.maximum(torch.minimum(weight, bounds), -bounds)
    if params.granularity == "per_tensor":
        scale, zero_point = params.scales[0], params.zero_points[0]
        return torch.quantize_per_tensor(weight, scale, zero_point, torch.qint8)
    scales = torch.tensor(params.scales, dtype=torch.float64)
    zero_points = torch.tensor(params.zero_points, dtype=torch.int64)
    return torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)


def on_grid(bias: Tensor | None, input_scale: float, params: WeightParams) -> Tensor | None:
    """The bias rounded to qint32 with scale input times weight, zero point 0; as float32.

    The kernels add it to the integer sums, whose scale this is.
    """
    if bias is None:
        return None
    step = torch.tensor(params.scales, dtype=torch.float64) * input_scale
    limit = 2**31 - 1
    return ((bias.double() / step).round().clamp(-limit, limit) * step).float()


def _symmetric(bound: float) -> QuantParams:
    params = affine(-bound, bound, *SYMMETRIC)
    return QuantParams(params.scale, 0, *SYMMETRIC)


def _minmax(rows: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    return rows.amin(1), rows.amax(1)


def _percentile(rows: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """Leaves out the share of values beyond the percentile at each end, rounded down."""
    outside = left_out(scheme.percentile, rows.shape[1])
    ordered = rows.sort(dim=1).values
    return ordered[:, outside], ordered[:, rows.shape[1] - 1 - outside]


def _least_squares(rows: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """Both ends shrunk by the one share, of 41, with the least squared error."""
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if scheme.scheme == "symmetric":
        high = torch.maximum(-low, high)
        low, levels, lowest = -high, 254, -127.0
    else:
        levels, lowest = 255, -128.0
    best = torch.full_like(low, float("inf"))
    chosen = torch.ones_like(low)
    for share in torch.linspace(0.4, 1.0, 41):
        scale = ((high - low) * share / levels).clamp(min=1e-30)[:, None]
        zero = (lowest - (low * share)[:, None] / scale).round()
        integers = ((rows / scale).round() + zero).clamp(lowest, 127)
        error = (((integers - zero) * scale - rows) ** 2).sum(1)
        chosen = torch.where(error <= best, share, chosen)
        best = torch.minimum(error, best)
    return low * chosen, high * chosen


_OBSERVERS: dict[str, Callable[[Tensor, WeightScheme], tuple[Tensor, Tensor]]] = {
    "minmax": _minmax,
    "per_channel_minmax": _minmax,
    "percentile": _percentile,
    "histogram": _least_squares,
}
