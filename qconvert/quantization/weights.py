"""Ranges and integers of weights: qint8, per output channel or per tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from qconvert.qconfig import WeightScheme
from qconvert.quantization.affine import affine
from qconvert.quantization.observers import left_out
from qconvert.quantization.plan import FewerBits, WeightParams
from qconvert.registry import WEIGHT_OBSERVERS

# Integers of weights by scheme. -128 is left out of symmetric ones, so that w and -w have the same
# error.
LIMITS = {"symmetric": (-127, 127), "affine": (-128, 127)}
# Of affine ones whose sums of two products with 8-bit activations fit into 16 bits: 255 * 64 * 2.
# Symmetric ones are looked at pair by pair.
NARROW = (-64, 64)

# The candidates of the least-squares search, the whole range first: of equal ones it is taken.
_SHARES = torch.linspace(1.0, 0.4, 41)
# The share of the squared error that clipping must take away.
_PAYS = 0.25

# The largest magnitude of two weights together whose products with 8-bit activations have a sum
# that fits into 16 bits: 255 * 128 < 2^15.
_PAIR = 128


def choose_params(
    weight: Tensor,
    scheme: WeightScheme,
    narrow: bool = False,
    least: Tensor | None = None,
    neighbours: Collection[int] = (),
    any_two: Collection[int] = (),
) -> WeightParams:
    """Scales and zero points of a weight whose axis 0 is the output channel.

    In the channels `neighbours` the products of two neighbouring inputs with 8-bit activations fit
    into 16 bits together, in the channels `any_two` those of any two inputs; in all channels, if
    `narrow`, for kernels that sum in 16 bits. `least` are the smallest scales that the channels may
    have (see `least_scales`).
    """
    if scheme.scheme == "affine":
        narrow = narrow or bool(neighbours or any_two)
    elif narrow:
        narrow, any_two = False, range(weight.shape[0])
    rows = weight.detach().reshape(weight.shape[0] if scheme.per_channel else 1, -1)
    lowest, highest = NARROW if narrow else LIMITS[scheme.scheme]
    observe = WEIGHT_OBSERVERS[scheme.observer].load()
    low, high = observe(rows, scheme, lowest, highest)
    if scheme.scheme == "symmetric":
        bounds = torch.maximum(low.abs(), high.abs())
        scales = [affine(-float(b), float(b), lowest, highest).scale for b in bounds]
        zero_points = [0] * len(scales)
    else:
        pairs = zip(low, high, strict=True)
        params = [affine(float(a), float(b), lowest, highest) for a, b in pairs]
        scales, zero_points = [p.scale for p in params], [p.zero_point for p in params]
    if least is not None:
        floors = least.tolist() if scheme.per_channel else [float(least.max())]
        scales = [max(scale, floor) for scale, floor in zip(scales, floors, strict=True)]
    chosen = WeightParams(
        granularity="per_channel" if scheme.per_channel else "per_tensor",
        scheme=scheme.scheme,
        observer=scheme.observer,
        quant_min=lowest,
        quant_max=highest,
        scales=tuple(scales),
        zero_points=tuple(zero_points),
        digest="",
    )
    if not narrow:
        chosen = _without_overflow(weight, chosen, _neighbouring_pairs, neighbours)
        chosen = _without_overflow(weight, chosen, _any_pairs, any_two)
    return with_digest_of(weight, chosen)


def with_digest_of(weight: Tensor, params: WeightParams) -> WeightParams:
    """With the digest of this weight's integers."""
    integers = quantized(weight, params).int_repr()
    digest = hashlib.sha256(integers.contiguous().numpy().tobytes()).hexdigest()
    return params.model_copy(update={"digest": digest})


def fits_in_pairs(integers: Tensor, narrow: bool, given_up: FewerBits | None) -> Tensor:
    """Whether each output channel keeps what it was made coarser for (see `choose_params`): bool,
    by channel."""
    fits = torch.ones(len(integers), dtype=torch.bool)
    neighbours, any_two = ((), ()) if given_up is None else (given_up.neighbours, given_up.any_two)
    for pairs_of, channels in (
        (_neighbouring_pairs, neighbours),
        (_any_pairs, range(len(integers)) if narrow else any_two),
    ):
        if channels:
            chosen = list(channels)
            fits[chosen] &= pairs_of(integers)[chosen] <= _PAIR
    return fits


def overflowing(integers: Tensor) -> list[int]:
    """The output channels (axis 0) of int8 weights in which two products with 8-bit activations can
    overflow 16 bits, if a kernel takes these two together."""
    return _any_pairs(integers).gt(_PAIR).nonzero().flatten().tolist()


def _any_pairs(integers: Tensor) -> Tensor:
    """The largest magnitude of two weights of one sign together, by channel (int64)."""
    rows = integers.long().flatten(1)
    two = min(2, rows.shape[1])
    above, below = (side.clamp(min=0).topk(two, dim=1).values.sum(1) for side in (rows, -rows))
    return torch.maximum(above, below)


def _neighbouring_pairs(integers: Tensor) -> Tensor:
    """The same for weights of the inputs 0 and 1, 2 and 3, …, at one place of the filter."""
    rows = integers.long().flatten(2) if integers.dim() > 2 else integers.long().unsqueeze(2)
    rows = torch.nn.functional.pad(rows, (0, 0, 0, rows.shape[1] % 2))
    pairs = rows.unflatten(1, (-1, 2))
    above, below = (side.clamp(min=0).sum(2).flatten(1).amax(1) for side in (pairs, -pairs))
    return torch.maximum(above, below)


def _without_overflow(
    weight: Tensor,
    params: WeightParams,
    pairs_of: Callable[[Tensor], Tensor],
    channels: Collection[int],
) -> WeightParams:
    """Larger scales for these channels (with one scale in all: for all), as large as their pairs
    need, at most about twice as large."""
    while channels:
        pairs = pairs_of(quantized(weight, params).int_repr())
        over = {c: int(pairs[c]) / _PAIR for c in channels if pairs[c] > _PAIR}
        if not over:
            break
        # What is rounded up may still be one too many: then once more, by a little.
        if params.granularity == "per_tensor":
            over = {0: max(over.values())}
        scales = tuple(scale * over.get(c, 1.0) for c, scale in enumerate(params.scales))
        params = params.model_copy(update={"scales": scales})
    return params


def quantized(weight: Tensor, params: WeightParams) -> Tensor:
    """The weight as a qint8 tensor of the same shape."""
    weight = weight.detach()
    axes = [-1, *[1] * (weight.dim() - 1)]
    scales = torch.tensor(params.scales, dtype=torch.float64)
    zero_points = torch.tensor(params.zero_points, dtype=torch.int64)
    # torch clips to -128 and 127; the params may ask for less.
    low = ((params.quant_min - zero_points) * scales).float().view(axes)
    high = ((params.quant_max - zero_points) * scales).float().view(axes)
    weight = torch.maximum(torch.minimum(weight, high), low)
    if params.granularity == "per_tensor":
        scale, zero_point = params.scales[0], params.zero_points[0]
        return torch.quantize_per_tensor(weight, scale, zero_point, torch.qint8)
    return torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)


def least_scales(bias: Tensor | None, input_scale: float) -> Tensor | None:
    """The scales (float32) below which a bias would not fit into 32 bits, with a bit to spare for
    the sums: a channel that is nearly dead has tiny weights, and may have any bias."""
    if bias is None:
        return None
    return (bias.detach().double().abs() / (input_scale * 2.0**30)).float()


def on_grid(bias: Tensor | None, input_scale: float, params: WeightParams) -> Tensor | None:
    """The bias rounded to qint32 with scale input times weight, zero point 0; as float32.

    The kernels add it to the integer sums, whose scale this is.
    """
    if bias is None:
        return None
    step = torch.tensor(params.scales, dtype=torch.float64) * input_scale
    limit = 2**31 - 1
    return ((bias.double() / step).round().clamp(-limit, limit) * step).float()


# The observers of weights (`registry.WEIGHT_OBSERVERS`): rows (channels, elements), one range each.


def minmax(rows: Tensor, scheme: WeightScheme, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """The smallest and the largest weight."""
    return rows.amin(1), rows.amax(1)


def percentile(
    rows: Tensor, scheme: WeightScheme, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    """Leaves out the share of values beyond the percentile at each end, rounded down."""
    outside = left_out(scheme.percentile, rows.shape[1])
    ordered = rows.sort(dim=1).values
    return ordered[:, outside], ordered[:, rows.shape[1] - 1 - outside]


def least_squares(
    rows: Tensor, scheme: WeightScheme, lowest: int, highest: int
) -> tuple[Tensor, Tensor]:
    """Both ends shrunk by the one share, of 41, with the least squared error."""
    low, high = _ends(rows, scheme)
    errors = _squared_errors(rows, low, high, _SHARES, lowest, highest)
    chosen = _SHARES[errors.argmin(0)]
    return low * chosen, high * chosen


def auto(rows: Tensor, scheme: WeightScheme, lowest: int, highest: int) -> tuple[Tensor, Tensor]:
    """As `least_squares` where that takes away at least a quarter of the squared error; all weights
    elsewhere.

    Of what is rounded, errors of many weights cancel. Of what is clipped, few weights are wrong by
    many steps, to one side. A share of the range leaves the square of it of what rounding does, so
    ranges above the root of three quarters need not be tried; and where what lies beyond that is
    already too much, none: nearly everywhere, which saves a search through all weights.
    """
    low, high = _ends(rows, scheme)
    left, widest = 1 - _PAYS, (1 - _PAYS) ** 0.5
    most = left * _squared_errors(rows, low, high, _SHARES[:1], lowest, highest)[0]
    inside = torch.maximum(torch.minimum(rows, high[:, None] * widest), low[:, None] * widest)
    (tried,) = torch.nonzero((rows - inside).square().sum(1) <= most, as_tuple=True)
    ends = low[tried], high[tried]
    errors = _squared_errors(rows[tried], *ends, _SHARES, lowest, highest)
    chosen = torch.ones_like(low)
    pays = errors.amin(0) <= most[tried]
    chosen[tried] = torch.where(pays, _SHARES[errors.argmin(0)], 1.0)
    return low * chosen, high * chosen


def _ends(rows: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """The range of all weights, by channel; it holds zero."""
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if scheme.scheme == "symmetric":
        high = torch.maximum(-low, high)
        low = -high
    return low, high


def _squared_errors(
    rows: Tensor, low: Tensor, high: Tensor, shares: Tensor, lowest: int, highest: int
) -> Tensor:
    """The squared error with each share of these ranges: (shares, channels)."""
    errors = []
    for share in shares:
        scale = ((high - low) * share / (highest - lowest)).clamp(min=1e-30)[:, None]
        zero = (lowest - (low * share)[:, None] / scale).round()
        integers = ((rows / scale).round() + zero).clamp(lowest, highest)
        errors.append((((integers - zero) * scale - rows) ** 2).sum(1))
    return torch.stack(errors)
