"""Code that decides by a size is traced as for the example; code that decides by what is in a
tensor stops the trace, with its line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from qconvert.models.calls import Call
from qconvert.models.outputs import tensors
from qconvert.models.tracing import Stop, Traced, traced


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (1, 3, 8, 12), generator=torch.Generator().manual_seed(seed))


class Function(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.function(*inputs, **named)


def trace(module: nn.Module, *args: Any, fixed: Any = frozenset(), **kwargs: Any) -> Traced:
    return traced(module, Call.of(module, args, kwargs), fixed=fixed)


def assert_same(want: Any, have: Any) -> None:
    pairs = zip(tensors(want).items(), tensors(have).items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# ---- Sizes

# A function of an image, and how many lines of it decide by a size.


def wider_than_high(x: Tensor) -> Tensor:
    if x.shape[3] > x.shape[2]:
        return x.mT
    return x * 2


def either_of_two(x: Tensor) -> Tensor:
    return x if x.size(2) == 8 and x.size(3) != 8 else -x


def rows_one_by_one(x: Tensor) -> Tensor:
    total = x.new_zeros(1)
    for i in range(x.shape[2]):
        total = total + x[:, :, i].sum() * i
    return total


def batch_one_by_one(x: Tensor) -> Tensor:
    return torch.stack([x[i] + i for i in range(len(x))])


def as_python_numbers(x: Tensor) -> Tensor:
    half = int(x.shape[2] / 2)
    return x[:, :, :half] * float(x.shape[3])


def in_a_list(x: Tensor) -> Tensor:
    sizes = [0] * 20
    sizes[x.shape[2]] = 7
    return x + sum(sizes)


def rounded_up(x: Tensor) -> Tensor:
    return F.pad(x, (0, math.ceil(x.shape[3] / 5) * 5 - x.shape[3])) + math.floor(x.shape[2] / 3)


def unpacked(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c * h, w)


def multiple_of_four(x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    assert h % 4 == 0
    assert w % 4 == 0, f"{w} is no multiple of 4"
    return x.reshape(n, -1, h // 4, w // 4)


def as_pairs(x: Tensor) -> Tensor:
    return sum(half * (i + 1) for i, half in enumerate(x.chunk(2, dim=2)))


def by_number_of_axes(x: Tensor) -> Tensor:
    return x.mean((2, 3)) if x.dim() == 4 and x.ndim == 4 else x


SIZES: dict[Callable[[Tensor], Tensor], int] = {
    wider_than_high: 1,
    either_of_two: 1,
    rows_one_by_one: 1,
    batch_one_by_one: 1,
    as_python_numbers: 2,
    in_a_list: 1,
    rounded_up: 0,
    unpacked: 0,
    multiple_of_four: 0,
    as_pairs: 0,
}


@pytest.mark.parametrize("function", SIZES, ids=lambda f: f.__name__)
def test_code_that_asks_for_sizes_is_traced(function: Callable[[Tensor], Tensor]) -> None:
    found = trace(Function(function), image())
    for seed in range(3):
        assert torch.equal(found.graph(image(seed=seed)), function(image(seed=seed)))
    assert len(found.sized) == SIZES[function]


def test_line_that_decides_by_a_size_is_noted_once() -> None:
    line = inspect.getsourcelines(rows_one_by_one)[1] + 2
    module = nn.Sequential(Function(wider_than_high), Function(rows_one_by_one))
    found = trace(module, image())
    assert len(found.sized) == 2
    assert found.sized[1] == f" ({__file__}:{line}: for i in range(x.shape[2]):)"


def test_code_that_asks_for_the_number_of_axes_is_traced() -> None:
    graph = trace(Function(by_number_of_axes), image()).graph
    assert torch.equal(graph(image(seed=2)), image(seed=2).mean((2, 3)))


@pytest.mark.parametrize(
    "function",
    [by_number_of_axes, lambda x: x if x.dtype == torch.float32 else x.float()],
    ids=["axes", "dtype"],
)
def test_what_every_image_has_is_no_size(function: Callable[[Tensor], Tensor]) -> None:
    """The file still takes any size that the model does."""
    assert trace(Function(function), image()).sized == ()


@pytest.mark.parametrize("function", [unpacked, rounded_up, multiple_of_four, as_pairs])
def test_sizes_that_decide_nothing_are_computed_as_the_graph_runs(
    function: Callable[[Tensor], Tensor],
) -> None:
    graph = trace(Function(function), image()).graph
    other = image(3, 3, 16, 28)
    assert torch.equal(graph(other), function(other))


def test_result_of_a_module_has_its_length() -> None:
    """Of a list of feature maps, which is as long for every image."""

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, self.conv(x)]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = Maps()

        def forward(self, x: Tensor) -> Tensor:
            found = self.maps(x)
            assert len(found) == 2
            return sum(one.mean() for one in found)

    module = Reads().eval()
    call = Call.of(module, (image(),), {})
    for whole in (frozenset[str](), frozenset({"maps"})):
        found = traced(module, call, whole)
        assert found.sized == ()
        torch.testing.assert_close(found.graph(image(seed=3)), module(image(seed=3)))


# ---- What is in a tensor


def positive(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def by_its_number(x: Tensor) -> Tensor:
    return x * range(9)[int(x.argmax()) % 9]


def by_its_item(x: Tensor) -> Tensor:
    return x * (2 if x.flatten()[3].item() > 0 else 3)


def each_one_found(x: Tensor) -> Tensor:
    return sum(row.sum() for row in torch.nonzero(x > 1))


def as_many_as_found(x: Tensor) -> Tensor:
    return x if x[x > 0].shape[0] > 3 else -x


def length_of_those_found(x: Tensor) -> Tensor:
    return x * len(torch.where(x > 0)[0])


def as_python_list(x: Tensor) -> Tensor:
    return x * max(x.flatten().tolist())


def asserted(x: Tensor) -> Tensor:
    assert x.sum() != 0
    return x


IN_A_TENSOR = [
    positive, by_its_number, by_its_item, each_one_found, as_many_as_found, length_of_those_found,
    as_python_list, asserted,
]  # fmt: skip


@pytest.mark.parametrize("function", IN_A_TENSOR, ids=lambda f: f.__name__)
def test_code_that_asks_for_what_is_in_a_tensor_stops(
    function: Callable[[Tensor], Tensor],
) -> None:
    module = nn.Sequential(nn.ReLU(), nn.Sequential(Function(function)))
    with pytest.raises(Stop, match="differs from image to image") as stop:
        trace(module, image())
    lines, first = inspect.getsourcelines(function)
    assert stop.value.path == "1.0"
    assert stop.value.place == f" ({__file__}:{first + 1}: {lines[1].strip()})"


@pytest.mark.parametrize("function", IN_A_TENSOR, ids=lambda f: f.__name__)
def test_fixed_code_goes_the_way_of_the_example(function: Callable[[Tensor], Tensor]) -> None:
    module = nn.Sequential(nn.ReLU(), Function(function))
    for fixed in (None, frozenset({"1"})):
        graph = trace(module, image(), fixed=fixed).graph
        assert torch.equal(graph(image()), module(image()))
    with pytest.raises(Stop):
        trace(module, image(), fixed=frozenset({"0"}))


def test_value_that_differs_but_is_not_asked_for_is_traced() -> None:
    """Masks and indices are tensors like others."""

    def chosen(x: Tensor) -> Tensor:
        best = x.flatten(1).argmax(1)
        return torch.where(x > 0, x, -x).flatten(1)[:, best] + x[x > 0].sum()

    graph = trace(Function(chosen), image()).graph
    assert torch.equal(graph(image(seed=5)), chosen(image(seed=5)))


def test_line_of_a_function_named_as_ours_is_found() -> None:
    def traced(x: Tensor) -> Tensor:
        return x if x.shape[2] > 8 else -x

    (place,) = trace(Function(traced), image()).sized
    assert place.endswith(": return x if x.shape[2] > 8 else -x)")


def test_error_of_the_code_is_a_stop_with_its_own_words() -> None:
    def wrong(x: Tensor) -> Tensor:
        raise ValueError("no such\nsize")

    with pytest.raises(Stop, match="no such") as stop:
        trace(nn.Sequential(Function(wrong)), image())
    assert stop.value.reason == "no such"
    assert stop.value.place.endswith('raise ValueError("no such\\nsize"))')


# ---- The user's module


class Keeps(nn.Module):
    """Keeps what it computes, as models keep anchors and sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.last: Any = None
        self.sizes: list[Any] = []
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.conv(x)
        self.sizes.append(x.shape[2])
        self.mean = self.last.mean((0, 2, 3))
        return self.last - self.mean[:, None, None]


def test_module_of_the_user_keeps_no_traced_values() -> None:
    inner = Keeps().eval()
    module = nn.Sequential(inner)
    graph = trace(module, image()).graph
    assert inner.last is None
    assert inner.sizes == []
    assert torch.equal(inner.mean, torch.zeros(3))
    assert not any(isinstance(value, Proxy) for m in graph.modules() for value in vars(m).values())
    torch.testing.assert_close(graph(image(seed=1)), module(image(seed=1)))


def test_weights_are_shared_with_the_users_module() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3))
    graph = trace(module, image()).graph
    assert graph.get_submodule("0").weight is module[0].weight


def test_inputs_are_left_as_they_are() -> None:
    x = image()
    graph = trace(Function(lambda x: x.add_(1)), x).graph
    assert torch.equal(x, image())
    assert torch.equal(graph(image()), image() + 1)


# ---- How a module is called


class Named(nn.Module):
    def forward(self, x: Tensor, y: Tensor, gain: float = 2.0, mode: str = "sum") -> Tensor:
        return x - y * gain if mode == "sum" else x * y


CALLS: dict[str, tuple[Callable[..., Any] | nn.Module, tuple[Any, ...], dict[str, Any]]] = {
    "by position": (Named(), (image(), image(seed=1)), {}),
    "by name": (Named(), (), {"x": image(), "y": image(seed=1)}),
    "by name in another order": (Named(), (), {"y": image(seed=1), "x": image()}),
    "mixed": (Named(), (image(),), {"y": image(seed=1), "gain": 3.0}),
    "text": (Named(), (image(), image(seed=1)), {"mode": "product"}),
    "any number": (lambda *maps: sum(m * i for i, m in enumerate(maps)), (image(),) * 3, {}),
    "list": (lambda maps: maps[0] - maps[1], ([image(), image(seed=1)],), {}),
    "each of a list": (lambda maps: [m * i for i, m in enumerate(maps)], ([image()] * 3,), {}),
    "tuple": (lambda pair: pair[0] - pair[1], ((image(), image(seed=1)),), {}),
    "dict": (lambda maps: maps["b"] - maps["a"], ({"a": image(), "b": image(seed=1)},), {}),
    "items of a dict": (
        lambda maps: {k: v + 1 for k, v in maps.items()},
        ({"b": image(), "a": image(seed=1)},), {},
    ),
    "nested": (lambda x: x["a"][1][0] - x["b"], ({"a": [1, (image(),)], "b": image(seed=1)},), {}),
    "nothing": (lambda x, mask: x if mask is None else x * mask, (image(), None), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_module_is_traced_as_it_is_called(name: str) -> None:
    module, args, kwargs = CALLS[name]
    module = module if isinstance(module, nn.Module) else Function(module)
    call = Call.of(module, args, kwargs)
    graph = traced(module, call).graph
    assert_same(module(*args, **kwargs), graph(*call.tensors))
    # Of other tensors, each in its own place.
    others = [image(seed=7 + i) for i in range(len(call.tensors))]
    again, by_name = call.with_tensors(others).split()
    assert_same(module(*again, **by_name), graph(*others))
