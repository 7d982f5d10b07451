"""What rounding does to one tensor, channel by channel: what is clipped at the ends of the range,
and what is rounded within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from qconvert.measurement.statistics import decibels
from qconvert.quantization.affine import QuantParams, fake_quantize
from qconvert.quantization.plan import WeightParams
from qconvert.quantization.weights import quantized
from qconvert.records import Record


class ChannelError(Record):
    """One of the `channels` of a tensor: its SQNR (dB), its range as a share of the tensor's, the
    share of its values that are clipped, and the share of the tensor's error that is its own."""

    channel: int
    channels: int
    sqnr_db: float
    range_share: float
    clipped_values: float
    error_share: float


class TensorError(Record):
    """A tensor in int8 against itself in float: SQNR (dB), the share of the error's power that is
    clipping (the rest is rounding), the share of the values that are clipped, and the channel with
    the lowest SQNR, where there are several."""

    sqnr_db: float
    clipping: float
    clipped_values: float
    worst: ChannelError | None


class Tally(NamedTuple):
    """Of each channel, float64 (channels,): the power of the values, of the errors and of the
    errors of what is clipped, the numbers of values and of clipped ones, the smallest and the
    largest value."""

    power: Tensor
    error: Tensor
    clipping: Tensor
    values: Tensor
    clipped: Tensor
    low: Tensor
    high: Tensor

    def with_more(self, other: Tally) -> Tally:
        """Of the values of both; without channels where they have not the same number of them."""
        if len(self.power) != len(other.power):
            return self._in_one().with_more(other._in_one())
        sums = [a + b for a, b in zip(self[:5], other[:5], strict=True)]
        ends = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Tally._make([*sums, *ends])

    def _in_one(self) -> Tally:
        sums = [x.sum(0, keepdim=True) for x in self[:5]]
        return Tally._make([*sums, self.low.amin(0, keepdim=True), self.high.amax(0, keepdim=True)])

    def summary(self, span: float) -> TensorError:
        """`span` is the range of the tensor, of which those of channels are told as shares."""
        error = float(self.error.sum())
        return TensorError(
            sqnr_db=decibels(float(self.power.sum()), error),
            clipping=float(self.clipping.sum()) / error if error else 0.0,
            clipped_values=float(self.clipped.sum() / self.values.sum()),
            worst=self._worst(span),
        )

    def _worst(self, span: float) -> ChannelError | None:
        """Not one that is zero everywhere: zero has an integer of its own."""
        live = self.power > 0
        if len(live) == 1 or not live.any():
            return None
        noise = torch.where(live, self.error / self.power.clamp(min=1e-300), -1.0)
        i = int(noise.argmax())
        error = float(self.error.sum())
        return ChannelError(
            channel=i,
            channels=len(live),
            sqnr_db=decibels(float(self.power[i]), float(self.error[i])),
            range_share=float(self.high[i] - self.low[i]) / span,
            clipped_values=float(self.clipped[i] / self.values[i]),
            error_share=float(self.error[i]) / error if error else 0.0,
        )


def tally(x: Tensor, params: QuantParams, axis: int | None) -> Tally:
    """Of float32 values of any shape with channels along an axis (None: without), which are rounded
    as they are. Clipped are those whose integer would be another if there were more of them."""
    half = params.scale / 2
    outside = (x < params.minimum - half) | (x > params.maximum + half)
    return _tally(*(_rows(y, axis) for y in (x, fake_quantize(x, params), outside)))


def weight_error(weight: Tensor, used: Tensor, params: WeightParams) -> TensorError:
    """Of a float32 weight beside the one that int8 computes with, on its steps: both with output
    channels along axis 0. Ranges are magnitudes."""
    axes = [-1, *[1] * (weight.dim() - 1)]
    scales, zeros = (torch.tensor(x).view(axes) for x in (params.scales, params.zero_points))
    integers = (weight / scales).round() + zeros
    outside = (integers < params.quant_min) | (integers > params.quant_max)
    found = _tally(*(_rows(x, 0) for x in (weight, used, outside)))
    sizes = torch.maximum(found.low.abs(), found.high.abs())
    found = found._replace(low=torch.zeros_like(sizes), high=sizes)
    return found.summary(max(float(sizes.max()), 1e-30))


def worst_weight(
    weights: Mapping[str, Tensor], params: Mapping[str, WeightParams]
) -> TensorError | None:
    """Of the matrix of a recurrent layer whose SQNR is the lowest; both by the matrices' names."""
    errors = (
        weight_error(weights[name], quantized(weights[name], held).dequantize(), held)
        for name, held in params.items()
    )
    return min(errors, key=lambda error: error.sqnr_db, default=None)


def _tally(x: Tensor, rounded: Tensor, outside: Tensor) -> Tally:
    """Of rows (channels, values)."""
    error = (rounded - x).square()
    double = torch.float64
    return Tally(
        power=x.square().sum(1, dtype=double),
        error=error.sum(1, dtype=double),
        clipping=(error * outside).sum(1, dtype=double),
        values=torch.full((len(x),), float(x.shape[1]), dtype=double),
        clipped=outside.sum(1, dtype=double),
        low=x.amin(1).double(),
        high=x.amax(1).double(),
    )


def _rows(x: Tensor, axis: int | None) -> Tensor:
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
