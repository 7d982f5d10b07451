"""Attention, parts of channels and channel shuffles in other operators compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert.models.graph import capture
from qconvert.models.operators import kind_of, operator_name


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kinds(graph: torch.fx.GraphModule) -> list[str]:
    """In the order of the graph, without what computes sizes."""
    calls = [node for node in graph.graph.nodes if node.op.startswith("call_")]
    found = [kind_of(graph, node) for node in calls]
    return [kind for kind in found if kind not in ("size", "getattr", "floordiv")]


class Attends(nn.Module):
    """One attention layer, called in some way."""

    def __init__(self, call: Callable[..., Any], **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(16, 4, **settings)
        if self.attention.in_proj_bias is not None:
            self.attention.in_proj_bias.data.normal_()
            self.attention.out_proj.bias.data.normal_()
        self.call = call

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.call(self.attention, x, y)


def unpacked(layer: nn.Module, x: Tensor) -> Tensor:
    found, _ = layer(x, x, x)
    return found


WAYS: dict[str, Callable[..., Any]] = {
    "self": lambda layer, x, y: layer(x, x, x)[0],
    "without weights": lambda layer, x, y: layer(x, x, x, need_weights=False)[0],
    "by keyword": lambda layer, x, y: layer(query=x, key=x, value=x, need_weights=False)[0],
    "cross": lambda layer, x, y: layer(x, y, y)[0],
    "keys that are no values": lambda layer, x, y: layer(x, y, 2 * y)[0],
    "called twice": lambda layer, x, y: layer(layer(x, y, y)[0], x, x)[0],
    "unpacked": lambda layer, x, y: unpacked(layer, y),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "batch second"])
@pytest.mark.parametrize("way", WAYS)
def test_attention_is_linear_layers_and_a_product(way: str, batch_first: bool, bias: bool) -> None:
    model = Attends(WAYS[way], batch_first=batch_first, bias=bias).eval().requires_grad_(False)
    inputs = [noise(3, 5, 16), noise(3, 7, 16, seed=1)]
    if not batch_first:
        inputs = [x.transpose(0, 1).contiguous() for x in inputs]
    graph = capture(model, inputs)
    assert "multi_head_attention" not in kinds(graph)
    calls = 2 if way == "called twice" else 1
    assert kinds(graph).count("attention") == calls
    assert "linear" in kinds(graph)
    with torch.inference_mode():
        torch.testing.assert_close(graph(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)
        other = [x.roll(1, 0)[:, :4].contiguous() for x in inputs]
        if batch_first:  # other lengths than those that the graph was captured with
            torch.testing.assert_close(graph(*other), model(*other), rtol=1e-4, atol=1e-5)


def test_self_attention_projects_its_input_once() -> None:
    model = Attends(WAYS["self"], batch_first=True).eval()
    graph = capture(model, [noise(1, 5, 16), noise(1, 7, 16)])
    layers = [n for n in graph.graph.nodes if kind_of(graph, n) == "linear"]
    assert [operator_name(n) for n in layers] == ["attention.in_proj", "attention.out_proj"]
    weight = graph.get_submodule(str(layers[0].target)).weight
    assert torch.equal(weight, model.attention.in_proj_weight)


MASK = torch.zeros(5, 5).masked_fill_(torch.ones(5, 5).triu(1).bool(), float("-inf"))
WHOLE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mask": (lambda layer, x, y: layer(x, x, x, attn_mask=MASK, need_weights=False)[0], {}),
    "mask by position": (lambda layer, x, y: layer(x, x, x, None, False, MASK)[0], {}),
    "padding": (
        lambda layer, x, y: layer(x, x, x, key_padding_mask=x[:, :, 0] > 1, need_weights=False)[0],
        {},
    ),
    "causal": (
        lambda layer, x, y: layer(x, x, x, attn_mask=MASK, is_causal=True, need_weights=False)[0],
        {},
    ),
    "weights read": (lambda layer, x, y: layer(x, x, x)[1], {}),
    "both returned": (lambda layer, x, y: layer(x, x, x), {}),
    "bias of keys": (lambda layer, x, y: layer(x, x, x)[0], {"add_bias_kv": True}),
    "zeros attended": (lambda layer, x, y: layer(x, x, x)[0], {"add_zero_attn": True}),
    "other keys": (
        lambda layer, x, y: layer(x, y[..., :8], y[..., :8])[0], {"kdim": 8, "vdim": 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_attention_that_is_more_than_that_stays_whole(name: str) -> None:
    call, settings = WHOLE[name]
    model = Attends(call, batch_first=True, **settings).eval().requires_grad_(False)
    inputs = [noise(3, 5, 16), noise(3, 7, 16, seed=1)]
    graph = capture(model, inputs)
    assert "multi_head_attention" in kinds(graph)
    assert "attention" not in kinds(graph)
    with torch.inference_mode():
        torch.testing.assert_close(graph(*inputs), model(*inputs))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def _joined(parts: Any) -> Tensor:
    """Every part differently, so that their order matters."""
    return torch.cat([part * (i + 2) for i, part in enumerate(parts)], 1)


PARTS: dict[str, Callable[[Tensor], Any]] = {
    "chunk": lambda x: _joined(x.chunk(2, 1)[i] for i in (1, 0)),
    "chunk by keyword": lambda x: _joined(torch.chunk(x, chunks=3, dim=1)[i] for i in range(3)),
    "uneven chunks": lambda x: _joined(x.chunk(5, dim=1)[i] for i in range(4)),
    "negative axis": lambda x: _joined(x.chunk(4, -3)[i] for i in range(4)),
    "last part": lambda x: x.chunk(3, 1)[-1],
    "split": lambda x: _joined(x.split(5, 1)[i] for i in (2, 0)),
    "split by sizes": lambda x: _joined(torch.split(x, [2, 3, 7], dim=1)[i] for i in range(3)),
    "part read twice": lambda x: (lambda parts: parts[0] * parts[0] + parts[1])(x.chunk(2, 1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_the_channels_are_slices(name: str) -> None:
    x = noise(2, 12, 6, 4)
    graph = capture(Function(PARTS[name]), [x])
    assert "narrow" in kinds(graph)
    assert not {"chunk", "split", "getitem"} & set(kinds(graph))
    assert torch.equal(graph(x), PARTS[name](x))
    other = noise(3, 12, 8, 10, seed=1)
    assert torch.equal(graph(other), PARTS[name](other))


KEPT: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda x: _joined(x.chunk(2, 2)[i] for i in (1, 0)),
    "images": lambda x: x.split(1)[0] * 2,
    "all returned": lambda x: x.chunk(2, 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_parts_stay(name: str) -> None:
    x = noise(2, 12, 6, 4)
    graph = capture(Function(KEPT[name]), [x])
    assert "narrow" not in kinds(graph)
    torch.testing.assert_close(graph(x), KEPT[name](x), rtol=0, atol=0)


def test_parts_of_rows_go_by_the_size_of_the_image() -> None:
    """Axis 1 is rows where the channels are last: half of them is more in a larger image."""

    def function(x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).chunk(2, 1)[1]

    graph = capture(Function(function), [noise(1, 3, 8, 8)])
    larger = noise(1, 3, 16, 8)
    have = graph(larger)
    assert have.shape == function(larger).shape
    assert torch.equal(have, function(larger))


def by_size(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def by_shape(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return torch.transpose(x.reshape(n, c // 3, 3, h, w), 2, 1).reshape(n, -1, h, w)


def without_copy(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return torch.reshape(torch.reshape(x, (n, 2, c // 2, h, w)).transpose(1, 2), (n, c, h, w))


@pytest.mark.parametrize("shuffle", [by_size, by_shape, without_copy])
def test_shuffle_of_channels_is_recognised(shuffle: Callable[[Tensor], Tensor]) -> None:
    x = noise(2, 12, 6, 4)
    graph = capture(Function(lambda x: F.relu(shuffle(x))), [x])
    assert kinds(graph) == ["channel_shuffle", "relu"]
    assert torch.equal(graph(x), F.relu(shuffle(x)))
    other = noise(3, 12, 8, 10, seed=1)
    assert torch.equal(graph(other), F.relu(shuffle(other)))


def other_axes(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, c, 2, h // 2, w).transpose(2, 3).reshape(n, c, h, w)


def other_shape(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c // 3, 3 * h, w)


def merged_rows(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.reshape(n, 3, c // 3 * 2, h // 2, w).transpose(1, 2).reshape(n, c, h, w)


def groups_read(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    groups = x.view(n, 3, c // 3, h, w)
    return groups.transpose(1, 2).reshape(n, c, h, w) + groups.mean((1, 2), keepdim=True)[:, 0]


def in_rows(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    rows = x.reshape(n, c, h * w)
    return rows.view(n, 3, c // 3, h * w).transpose(1, 2).reshape(n, c, h * w)


@pytest.mark.parametrize("function", [other_axes, other_shape, merged_rows, groups_read, in_rows])
def test_what_is_no_shuffle_of_channels_stays(function: Callable[[Tensor], Tensor]) -> None:
    x = noise(2, 12, 6, 4)
    graph = capture(Function(function), [x])
    assert "channel_shuffle" not in kinds(graph)
    assert torch.equal(graph(x), function(x))


class Padded(nn.Module):
    """A padding and the layers that read it."""

    def __init__(self, pad: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.pad, self.layers = pad, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pad(x)
        return [layer(x) for layer in self.layers]


def small(**settings: Any) -> nn.Module:
    return nn.Conv2d(3, 4, 3, **settings)


@pytest.mark.parametrize(
    ("pad", "layers", "joined"),
    [
        (nn.ZeroPad2d(1), [small()], True),
        (nn.ZeroPad2d((2, 2, 1, 1)), [small(dilation=2), small()], True),
        (lambda x: F.pad(x, (1, 1, 1, 1)), [small(bias=False)], True),
        (nn.ZeroPad2d((0, 1, 0, 1)), [small()], False),  # more on one side
        (nn.ConstantPad2d(1, 0.5), [small()], False),
        (nn.ReflectionPad2d(1), [small()], False),
        (nn.ZeroPad2d(1), [small(padding=1)], False),
        (nn.ZeroPad2d(3), [small()], False),  # a filter would see nothing but padding
        (nn.ZeroPad2d(1), [small(), nn.ConvTranspose2d(3, 4, 3)], False),
    ],
)
def test_padding_with_zeros_is_the_convolutions(
    pad: Callable[[Tensor], Tensor], layers: list[nn.Module], joined: bool
) -> None:
    model, x = Padded(pad, *layers).eval(), noise(2, 3, 9, 12)
    with torch.inference_mode():
        graph = capture(model, [x])
        for have, want in zip(graph(x), model(x), strict=True):
            torch.testing.assert_close(have, want)
    assert ("pad" not in "".join(kinds(graph)).lower()) == joined
