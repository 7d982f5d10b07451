"""Additions that a convolution computes with its own result, into the memory of the other term."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.quantization.lowering.coverage import check_against_plan, count

DIRECT = {"lowering": "direct"}


class Sums(nn.Module):
    """Layers, and one function that says how they are joined. 24 x 24 pixels."""

    def __init__(self, function: Callable[[Sums, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.strided = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(1, 16, 24, 24))
        self.head = nn.Sequential(*networks.head(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, F.relu(self.stem(x)))


def residual(net: Sums, x: Tensor) -> Tensor:
    return net.head(net.b(F.relu(net.a(x))) + x)


def term_first(net: Sums, x: Tensor) -> Tensor:
    return net.head(F.relu(x + net.b(F.relu(net.a(x)))))


def clipped(net: Sums, x: Tensor) -> Tensor:
    return net.head(F.hardtanh(x + net.b(F.relu(net.a(x))), 0, 0.4))


def two_layers(net: Sums, x: Tensor) -> Tensor:
    return net.head(F.relu(net.a(x) + net.b(x)))


def chain(net: Sums, x: Tensor) -> Tensor:
    """The second sum is added into the memory of the first, which is that of `x`."""
    x = x + net.b(F.relu(net.a(x)))
    return net.head(x + net.c(F.relu(net.a(x))))


def dense_output(net: Sums, x: Tensor) -> Tensor:
    """The sum is what the model returns."""
    return x + net.b(F.relu(net.a(x)))


def in_place_relu(net: Sums, x: Tensor) -> Tensor:
    """The skip connection reads what the ReLU has written."""
    x = net.a(x)
    y = net.b(F.relu(x, inplace=True))
    x += net.c(y)
    return net.head(x)


def read_by_a_slice_before(net: Sums, x: Tensor) -> Tensor:
    part = F.relu(net.a(x))[:, 4:8].mean((2, 3))
    return net.head(net.b(F.relu(net.a(x))) + x) + part.sum(1, keepdim=True)


FUSED = (
    residual, term_first, clipped, two_layers, chain, dense_output, in_place_relu,
    read_by_a_slice_before,
)  # fmt: skip


def read_later(net: Sums, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x))) + x
    return net.head(net.c(y) * x)


def read_later_in_float(net: Sums, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x))) + x
    return net.head(net.c(y)) + x.mean((1, 2, 3)).unsqueeze(1)


def slice_read_later(net: Sums, x: Tensor) -> Tensor:
    part = x[:, 4:8]
    y = net.c(net.b(F.relu(net.a(x))) + x)
    return net.head(torch.cat([y[:, :12], part], 1))


def narrow_read_later(net: Sums, x: Tensor) -> Tensor:
    part, _ = x.chunk(2, dim=1)
    y = net.c(net.b(F.relu(net.a(x))) + x)
    return net.head(torch.cat([y.chunk(2, dim=1)[0], part], 1))


def reshaped_read_later(net: Sums, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    y = net.c(net.b(F.relu(net.a(x))) + x)
    return net.head(y) + rows.mean((1, 2)).unsqueeze(1)


def term_is_an_output(net: Sums, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.head(net.b(F.relu(net.a(x))) + x), x


def slice_is_an_output(net: Sums, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.head(net.b(F.relu(net.a(x))) + x), x[:, 2:4]


def term_is_a_slice(net: Sums, x: Tensor) -> Tensor:
    wide = torch.cat([x, net.c(x)], 1)
    y = net.b(F.relu(net.a(x))) + wide[:, 8:24]
    return net.head(net.c(y) * wide[:, :16])


def own_input(net: Sums, x: Tensor) -> Tensor:
    """The layer reads what it would write."""
    return net.head(net.a(x) + x)


def own_input_sliced(net: Sums, x: Tensor) -> Tensor:
    wide = torch.cat([x, x], 1)
    return net.head(net.a(wide[:, 16:]) + x * 1) + wide.mean((1, 2, 3)).unsqueeze(1)


def pooled_by_one(net: Sums, x: Tensor) -> Tensor:
    """A pooling of one pixel may be a view of its input, which is read again."""
    y = net.strided(x) + F.max_pool2d(x, 1, 2)
    return net.head(y + net.strided(net.c(x)))


def layer_read_twice(net: Sums, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x)))
    return net.head((y + x) * y)


def sum_of_itself(net: Sums, x: Tensor) -> Tensor:
    y = net.b(x)
    return net.head(net.c(y + y))


def constant_term(net: Sums, x: Tensor) -> Tensor:
    return net.head(F.relu(net.a(x) + net.position))


def computed_constant_term(net: Sums, x: Tensor) -> Tensor:
    return net.head(F.relu(net.a(x) + net.position * 2))


UNFUSED = (
    read_later, read_later_in_float, slice_read_later, narrow_read_later, reshaped_read_later,
    term_is_an_output, slice_is_an_output, term_is_a_slice, own_input, layer_read_twice,
    sum_of_itself, constant_term, computed_constant_term,
)  # fmt: skip
EITHER = (own_input_sliced, pooled_by_one)


def named(value: object) -> str | None:
    return getattr(value, "__name__", None)


def outputs(model: Callable[..., object], images: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        found = model(images)
    return list(found) if isinstance(found, tuple) else [found]


def sqnr_db(want: Tensor, have: Tensor) -> float:
    return float(10 * torch.log10(want.square().sum() / (want - have).square().sum()))


@pytest.mark.parametrize("lowering", ["direct", "auto"])
@pytest.mark.parametrize("function", [*FUSED, *UNFUSED, *EITHER], ids=named)
def test_every_sum_is_right(converted, tmp_path: Path, function, lowering: str) -> None:
    """Each output, in memory and in the file, at each call again, at batch sizes 12 and 1."""
    constant = function in (constant_term, computed_constant_term)
    layers = [{"match": "add", "precision": "int8"}] if constant else []
    result = converted(lambda: Sums(function), lowering=lowering, layers=layers)
    wants = outputs(result.original, result.images)
    haves = outputs(result.model, result.images)
    for want, have in zip(wants, haves, strict=True):
        assert sqnr_db(want, have) > 30
    simulated = outputs(result.simulated, result.images)
    for want, have in zip(simulated, haves, strict=True):
        assert sqnr_db(want, have) > 40
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    for _ in range(3):
        for want, have in zip(haves, outputs(file, result.images), strict=True):
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
    first = outputs(file, result.images[:1])
    for want, have in zip(haves, first, strict=True):
        torch.testing.assert_close(have, want[:1], rtol=1e-4, atol=1e-4)
    check_against_plan(count(file, [result.images[:1]]), result.plan)


@pytest.mark.parametrize("function", FUSED, ids=named)
def test_sum_is_in_the_kernel_of_the_direct_operators_only(
    converted, tmp_path: Path, function
) -> None:
    result = converted(lambda: Sums(function), **DIRECT)
    summing = [o for o in result.plan.operators if o.with_sum is not None]
    kinds = [o.kind for o in result.plan.operators]
    assert len(summing) == (2 if function is chain else 1)
    assert all((o.kind, o.lowering, len(o.inputs)) == ("conv2d", "direct", 2) for o in summing)
    assert ("add" in kinds) == (function is read_by_a_slice_before)
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    assert count(file, [result.images[:1]]).operators["onednn::qconv2d_pointwise"] == sum(
        o.kind == "conv2d" for o in result.plan.operators
    )
    classic = converted(lambda: Sums(function), lowering="classic").plan
    assert not any(o.with_sum for o in classic.operators)
    assert any(str(o.kernel).startswith("quantized::add") for o in classic.operators)


@pytest.mark.parametrize("function", UNFUSED, ids=named)
def test_sum_is_not_in_a_kernel_when_its_term_is_read_again(converted, function) -> None:
    constant = function in (constant_term, computed_constant_term)
    layers = [{"match": "add", "precision": "int8"}] if constant else []
    result = converted(lambda: Sums(function), lowering="direct", layers=layers)
    assert not any(o.with_sum for o in result.plan.operators)
    assert any(o.kind == "add" for o in result.plan.operators)


@pytest.mark.parametrize(
    ("network", "sums"),
    [
        (networks.BasicBlocks, [("conv2.0", "add", "relu"), ("skip", "iadd", "relu")]),
        (networks.InvertedResiduals, [("blocks.0.6", "add", None), ("blocks.1.6", "add:2", None)]),
    ],
)
def test_residual_blocks_are_one_kernel_and_no_quantized_dtype(
    converted, tmp_path: Path, network: Callable[[], nn.Module], sums: list
) -> None:
    """Of ResNet and of MobileNetV2: a plain file stands on no engine and no quantized tensor."""
    result = converted(network, **DIRECT)
    found = [(o.name, o.with_sum, o.activation) for o in result.plan.operators if o.with_sum]
    assert found == sums
    kernels = {o.kernel for o in result.plan.operators if o.kernel}
    assert kernels == {"onednn::qconv2d_pointwise", "onednn::qlinear_pointwise"}
    coverage = count(torchscript.load(result.file(tmp_path / "model.pt")), [result.images[:1]])
    foreign = [
        kind for kind in coverage.operators
        if kind.startswith("quantized::") or "quantize" in kind or kind == "aten::int_repr"
    ]  # fmt: skip
    assert foreign == []
    assert coverage.int8_macs_share == 1
    assert result.plan.plain


@pytest.mark.parametrize("lowering", ["classic", "direct"])
def test_inputs_of_a_concatenation_share_its_range(converted, lowering: str) -> None:
    """Nothing is rounded anew: the integers are copied."""
    plan = converted(networks.Shuffled, lowering=lowering).plan
    (cat,) = [o for o in plan.operators if o.kind == "cat"]
    held = [plan.tensors[name] for name in (*cat.inputs, cat.value)]
    assert held[0] == held[1] == held[2]


@pytest.mark.parametrize("lowering", ["classic", "direct"])
def test_batch_norm_after_a_concatenation(converted, lowering: str) -> None:
    """The classic operators have one; in a plain file it is float."""
    line = converted(networks.NormAfterConcat, lowering=lowering).operator("norm")
    if lowering == "classic":
        assert (line.kernel, line.activation) == ("quantized::batch_norm2d_relu", "relu")
    else:
        assert line.precision == "float32"
        assert "classic operators" in (line.reason or "")


@pytest.mark.parametrize("lowering", ["auto", "direct"])
def test_a_sum_that_the_qconfig_wants_in_float_is(converted, lowering):
    """Also between layers in int8, of which one could compute it at little cost."""
    rule = {"match": "add", "precision": "float32"}
    found = converted(lambda: Sums(chain), lowering=lowering, layers=[rule], decide="table")
    add = found.operator("add")
    assert (add.precision, add.reason) == ("float32", "the qconfig asks for it (match: add)")
    assert found.operator("b").precision == "int8"
    assert found.operator("b").with_sum is None
