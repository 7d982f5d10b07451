"""Weights in qint8: scales, zero points, integers and digest."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qconvert.qconfig import WeightScheme
from qconvert.quantization.plan import WeightParams
from qconvert.quantization.weights import choose_params, overflowing, quantized
from qconvert.registry import WEIGHT_OBSERVERS

examples = settings(max_examples=120, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
observers = st.sampled_from(sorted(WEIGHT_OBSERVERS))
schemes = st.sampled_from(["symmetric", "affine"])
CLIPPING = ["histogram", "percentile"]


def drawn(seed: int = 0, shape=(6, 4, 3, 3)) -> Tensor:
    """Heavy-tailed weights whose channels differ in size a lot."""
    random = np.random.default_rng(seed)
    weight = random.standard_t(3, shape) * 10.0 ** random.uniform(-3, 2, (shape[0], 1, 1, 1))
    return torch.tensor(weight, dtype=torch.float32)


def integers_of(weight: Tensor, params: WeightParams) -> np.ndarray:
    return quantized(weight, params).int_repr().numpy()


def error_of(weight: Tensor, scheme: WeightScheme) -> Tensor:
    """The squared error of each output channel."""
    held = quantized(weight, choose_params(weight, scheme)).dequantize()
    return ((held.double() - weight.double()) ** 2).flatten(1).sum(1)


def given_params(scales, zero_points) -> WeightParams:
    granularity = "per_channel" if len(scales) > 1 else "per_tensor"
    return WeightParams(
        granularity=granularity, scheme="affine", observer="minmax", digest="",
        quant_min=-128, quant_max=127,
        scales=tuple(scales), zero_points=tuple(zero_points),
    )  # fmt: skip


@examples
@given(seeds, st.booleans())
def test_integers_follow_the_formula(seed, per_channel):
    """round(w * (1 / scale)) + zero_point in float32, ties to even, saturating."""
    random = np.random.default_rng(seed)
    channels = 5 if per_channel else 1
    scales = np.float32(2.0 ** random.uniform(-12, 4, channels))
    zero_points = random.integers(-128, 128, channels)
    steps = np.floor(random.uniform(-200, 200, (5, 37))) + random.choice([0, 0.5, 0.3], (5, 37))
    weight = np.float32(steps * scales[:, None])
    expected = np.rint(weight * (np.float32(1) / scales)[:, None]) + zero_points[:, None]
    params = given_params(scales.tolist(), zero_points.tolist())
    found = quantized(torch.tensor(weight), params)
    assert found.dtype == torch.qint8
    assert np.array_equal(found.int_repr().numpy(), expected.clip(-128, 127))


def test_per_channel_scales_are_those_of_each_channel():
    weight = drawn()
    params = choose_params(weight, WeightScheme())
    bounds = weight.abs().flatten(1).amax(1).tolist()
    assert (params.granularity, params.observer) == ("per_channel", "auto")
    assert params.scales == pytest.approx([bound / 127 for bound in bounds], rel=1e-6)
    assert params.zero_points == (0,) * 6
    assert np.abs(integers_of(weight, params)).reshape(6, -1).max(1).tolist() == [127] * 6


@pytest.mark.parametrize("settings_given", [
    {"observer": "minmax"},
    {"observer": "histogram", "granularity": "per_tensor"},
    {"observer": "percentile", "granularity": "per_tensor"},
])  # fmt: skip
def test_per_tensor_has_one_scale(settings_given):
    weight = torch.linspace(-3, 2, 72).reshape(2, 4, 9)
    params = choose_params(weight, WeightScheme(**settings_given))
    assert params.granularity == "per_tensor"
    assert params.scales == pytest.approx((3 / 127,), rel=1e-6)
    assert params.zero_points == (0,)


@examples
@given(seeds, observers, st.floats(0.51, 1))
def test_symmetric_weights_have_zero_points_0_and_never_hold_minus_128(seed, observer, share):
    """So w and -w have the same error, also where a range was clipped."""
    weight, scheme = drawn(seed), WeightScheme(observer=observer, percentile=share)
    params = choose_params(weight, scheme)
    assert set(params.zero_points) == {0}
    assert integers_of(weight, params).min() >= -127
    assert choose_params(-weight, scheme).scales == params.scales


@pytest.mark.parametrize("observer", CLIPPING)
def test_a_clipped_outlier_and_its_negative_have_the_same_size(observer):
    spread = torch.linspace(-1, 1, 20_000)
    weight = torch.cat([spread, torch.tensor([2.5, -2.5])]).reshape(1, -1)
    params = choose_params(weight, WeightScheme(observer=observer, percentile=0.999))
    assert params.scales[0] < 2.475 / 127  # clipped
    assert integers_of(weight, params)[0, -2:].tolist() == [127, -127]


@examples
@given(seeds, st.sampled_from(["minmax", "per_channel_minmax"]))
def test_affine_weights_fill_all_integers_and_keep_zero(seed, observer):
    weight = drawn(seed) + 0.5
    params = choose_params(weight, WeightScheme(observer=observer, scheme="affine"))
    rows = weight.flatten(1) if len(params.scales) > 1 else weight.reshape(1, -1)
    integers = integers_of(weight, params).reshape(rows.shape)
    both = (rows.amin(1) <= 0) & (rows.amax(1) >= 0)
    assert (integers.min(1)[both.numpy()] == -128).all()
    assert (integers.max(1)[both.numpy()] == 127).all()
    zeros = quantized(torch.zeros_like(weight), params).dequantize()
    assert torch.equal(zeros, torch.zeros_like(weight))
    steps = torch.tensor(params.scales)[:, None]
    held = quantized(weight, params).dequantize().reshape(rows.shape)
    assert ((held - rows).abs() <= steps * 0.5001).all()


def test_affine_weights_of_one_sign_use_the_whole_range():
    weight = torch.linspace(1, 2.55, 50).reshape(1, 50)
    params = choose_params(weight, WeightScheme(scheme="affine"))
    assert params.scales == pytest.approx((0.01,), rel=1e-6)
    assert params.zero_points == (-128,)


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_percentile_leaves_out_outliers_of_each_channel(scheme):
    spread = torch.linspace(-1, 1, 1998)
    weight = torch.stack([torch.cat([spread, torch.tensor([-50.0, 40.0])]) * f for f in (1, 10)])
    chosen = WeightScheme(observer="percentile", percentile=0.999, scheme=scheme)
    width = {"symmetric": 2 / 254, "affine": 2 / 255}[scheme]
    params = choose_params(weight, chosen)
    assert params.scales == pytest.approx((width, 10 * width), rel=0.002)


@pytest.mark.parametrize(
    ("count", "percentile"), [(100, 0.99), (1000, 0.999), (10, 0.9), (20, 0.95), (10_000, 0.9999)]
)
def test_percentile_leaves_out_one_outlier_in_as_many_weights_as_it_says(count, percentile):
    """1 - 0.9 of 10 weights is one weight, although floating point says 0.9999999999999998."""
    outlier = torch.tensor([100.0])
    weight = torch.cat([-outlier, torch.linspace(-1, 1, count - 2), outlier])
    params = choose_params(
        weight.reshape(1, -1), WeightScheme(observer="percentile", percentile=percentile)
    )
    assert params.scales == pytest.approx((1 / 127,), rel=1e-5)


@examples
@given(seeds, schemes)
def test_histogram_error_is_not_above_that_of_minmax_in_any_channel(seed, scheme):
    weight = drawn(seed)
    least = error_of(weight, WeightScheme(observer="histogram", scheme=scheme))
    most = error_of(weight, WeightScheme(observer="per_channel_minmax", scheme=scheme))
    assert (least <= most * 1.0001).all()


@pytest.mark.parametrize("outlier", [12.0, -12.0])
def test_histogram_clips_a_lone_outlier_about_as_well_as_any_scale_could(outlier):
    weight = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    weight[0, 7] = outlier
    found = error_of(weight, WeightScheme(observer="histogram")).item()
    w, scales = weight.numpy().astype(np.float64), np.linspace(6, 12, 60) / 127
    best = min((((w / s).round().clip(-127, 127) * s - w) ** 2).sum() for s in scales)
    assert found <= best * 1.02
    whole = WeightScheme(observer="per_channel_minmax")
    assert found < 0.9 * error_of(weight, whole).item()


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_auto_clips_the_channels_in_which_that_takes_away_a_quarter_of_the_error(scheme):
    weight = torch.randn(3, 200_000, generator=torch.Generator().manual_seed(0))
    weight[0, :2] = torch.tensor([30.0, -30.0])  # a third
    weight[1, :4] = torch.tensor([30.0, -30.0] * 2)  # a fifth
    whole, least, found = (
        choose_params(weight, WeightScheme(observer=observer, scheme=scheme)).scales
        for observer in ("per_channel_minmax", "histogram", "auto")
    )
    assert least[0] < whole[0]
    assert least[1] < whole[1]
    assert found == (least[0], *whole[1:])


@examples
@given(seeds, observers, schemes)
def test_digest_is_that_of_the_integers(seed, observer, scheme):
    weight, chosen = drawn(seed), WeightScheme(observer=observer, scheme=scheme)
    params = choose_params(weight, chosen)
    assert params == choose_params(weight.clone(), chosen)
    assert params == choose_params(weight.to(memory_format=torch.channels_last), chosen)
    assert params.digest == hashlib.sha256(integers_of(weight, params).tobytes()).hexdigest()


def test_digest_changes_with_one_integer_but_not_within_a_step():
    weight = torch.linspace(-1.27, 1.27, 255).reshape(1, -1)
    before = choose_params(weight, WeightScheme())
    weight[0, 100] += 0.001
    assert choose_params(weight, WeightScheme()) == before
    weight[0, 100] += 0.01
    after = choose_params(weight, WeightScheme())
    assert after.digest != before.digest
    assert after.scales == before.scales


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("observer", sorted(WEIGHT_OBSERVERS))
def test_a_channel_of_zeros_stays_zero(observer, scheme):
    weight = drawn()
    weight[2] = 0
    params = choose_params(weight, WeightScheme(observer=observer, scheme=scheme))
    assert all(np.isfinite(scale) and scale > 0 for scale in params.scales)
    assert (quantized(weight, params).dequantize()[2] == 0).all()


def pairs_of(integers: np.ndarray, neighbours: bool) -> np.ndarray:
    """The largest magnitude of two weights of one sign in each channel: of inputs 0 and 1, 2 and 3,
    … at the same place of the filter, or of any two."""
    rows = integers.astype(int).reshape(len(integers), integers.shape[1], -1)
    found = []
    for channel in rows:
        best = 0
        for side in (channel, -channel):
            up = np.maximum(side, 0)
            if neighbours:
                sums = [up[i : i + 2].sum(0).max() for i in range(0, len(up), 2)]
                best = max(best, *sums)
            else:
                best = max(best, np.sort(up, axis=None)[-2:].sum())
        found.append(best)
    return np.array(found)


@pytest.mark.parametrize("neighbours", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 5, 1, 1), (6, 9)])
@pytest.mark.parametrize("observer", sorted(WEIGHT_OBSERVERS))
def test_coarser_channels_fit_into_16_bits_and_others_stay(
    observer: str, shape: tuple[int, ...], neighbours: bool
) -> None:
    weight = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight[[0, 3]] = torch.tensor([1.0, -1.0]).view(2, *[1] * (len(shape) - 1))
    scheme = WeightScheme(observer=observer)
    chosen = {"neighbours" if neighbours else "any_two": [0, 3]}
    before, after = choose_params(weight, scheme), choose_params(weight, scheme, **chosen)
    assert 255 * pairs_of(integers_of(weight, after), neighbours)[[0, 3]].max() < 2**15
    assert 255 * pairs_of(integers_of(weight, before), neighbours)[[0, 3]].min() > 2**15
    assert all(b >= a for a, b in zip(before.scales, after.scales, strict=True))
    assert all(b <= 2.01 * a for a, b in zip(before.scales, after.scales, strict=True))
    if len(before.scales) > 1:
        others = [1, 2, 4, 5]
        assert [before.scales[i] for i in others] == [after.scales[i] for i in others]


def test_channels_that_can_overflow_are_those_with_two_large_weights_of_one_sign() -> None:
    integers = torch.tensor([[127, 1, 0], [127, 2, 0], [64, -127, 64], [-100, -29, 0], [90, 0, 39]])
    assert overflowing(integers.to(torch.int8)) == [1, 3, 4]
