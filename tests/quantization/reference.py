"""What a plan means, in exact integer arithmetic: the reference for the int8 files.

Nothing here is taken from `qconvert.quantization.lowering`, and no kernel of torch computes what
the plan holds in int8: integers are int64 arrays of NumPy, sums of `(x - zero_point) * w` are
exact, and what comes out of them is a float64 that was never rounded. A kernel is right when its
integer is the nearest to that number, so `Check.error` is at most half a step, and a little for
the float32 in which kernels scale their sums.

What the plan leaves in float is computed in float64.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.fx import Node

from qconvert.models.fusion import FusedModel
from qconvert.models.operators import argument, kind_of, module_of, tensor_inputs
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams, WeightParams

Array = np.ndarray
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
REARRANGING = (
    "flatten", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "getitem", "narrow",
    "unflatten", "contiguous",
)  # fmt: skip
# Their results are some of their input's integers.
COPYING = (
    "relu", "clip", "pad", "max_pool1d", "max_pool2d", "max_pool3d", "channel_shuffle",
    "pixel_shuffle", *REARRANGING,
)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """What a lowered model computed, to be checked operator by operator: the integers (float32 for
    what is float) that each operator read, by its node and the place of the input, and that it
    made, by its node."""

    read: Mapping[tuple[str, int], Array]
    made: Mapping[str, Array]


@dataclass(frozen=True)
class Check:
    """How far a file is from the reference at one place.

    `error` is in steps of the result, or for a result in float (`exact` is None) a share of the
    largest number in it. `exact` tells whether the operator only copies integers.
    """

    operator: PlannedOperator
    place: str
    error: float
    exact: bool | None


@dataclass(frozen=True)
class _Integers:
    """A value of the plan in int8."""

    q: Array
    held: TensorParams

    @property
    def centred(self) -> Array:
        """Multiples of the scale."""
        return self.q - self.held.zero_point

    @property
    def real(self) -> Array:
        """The numbers that it stands for."""
        return self.centred * self.held.scale


@dataclass
class Result:
    """The model's output in float64, and what was compared on the way."""

    output: Any
    checks: list[Check] = field(default_factory=list)


def rounded(x: Array, held: TensorParams) -> Array:
    """Float numbers to integers as the plan means it: float32, ties to even, saturating."""
    reciprocal = np.float32(1) / np.float32(held.scale)
    low, high = held.quant_min - held.zero_point, held.quant_max - held.zero_point
    steps = np.rint(x.astype(np.float32) * reciprocal)
    return steps.clip(low, high).astype(np.int64) + held.zero_point


def weight_integers(weight: Tensor, params: WeightParams) -> Array:
    """The integers of a weight; they are those that the plan's digest is of."""
    array = weight.detach().numpy()
    axes = (-1, *[1] * (array.ndim - 1))
    scales = np.array(params.scales).reshape(axes)
    zero_points = np.array(params.zero_points).reshape(axes)
    low = ((params.quant_min - zero_points) * scales).astype(np.float32)
    high = ((params.quant_max - zero_points) * scales).astype(np.float32)
    inside = np.minimum(np.maximum(array, low), high)
    steps = np.rint(inside * (np.float32(1) / scales.astype(np.float32)))
    integers = (steps.astype(np.int64) + zero_points).clip(-128, 127)
    digest = hashlib.sha256(np.ascontiguousarray(integers.astype(np.int8)).tobytes()).hexdigest()
    assert digest == params.digest, "the plan's digest is of other integers"
    return integers


class Reference:
    """Interprets a plan over its fused graph."""

    def __init__(self, fused: FusedModel, plan: Plan) -> None:
        self._graph = fused.graph
        self._tensors = plan.tensors
        self._nodes = {node.name: node for node in fused.graph.graph.nodes}
        self._planned = {}
        self._absorbed: set[str] = set()
        for o in plan.operators:
            if o.precision == "float32":
                continue
            assert o.precision == "int8", "no reference for dynamic ranges"
            place = self._place(o)
            self._planned[place] = o
            self._absorbed |= {o.node, o.value} - {place}
        self._weights = {
            o.node: weight_integers(self._module(o).weight, o.weight)
            for o in self._planned.values()
            if o.weight is not None
        }

    def run(self, x: Tensor, recorded: Recorded | None = None) -> Result:
        """The output for a batch.

        With `recorded`, each operator is compared with what the file computed, and the next ones
        go on from there, so that one tie that was rounded the other way is seen as such.
        """
        return _Run(self, recorded).result(x)

    def _place(self, operator: PlannedOperator) -> str:
        """Where an operator is computed: a sum needs its other term."""
        if operator.with_sum is None:
            return operator.node
        value = self._nodes[operator.value]
        return tensor_inputs(value)[0].name if operator.activation is not None else value.name

    def _module(self, operator: PlannedOperator) -> Any:
        return module_of(self._graph, self._nodes[operator.node])


class _Run:
    def __init__(self, reference: Reference, recorded: Recorded | None) -> None:
        self._reference = reference
        self._graph = reference._graph
        self._recorded = recorded
        self._checks: list[Check] = []
        # _Integers, float64 arrays, and for what is no tensor whatever it is.
        self._values: dict[str, Any] = {}

    def result(self, x: Tensor) -> Result:
        planned, absorbed = self._reference._planned, self._reference._absorbed
        inputs = iter([x.double().numpy()])
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                self._values[node.name] = next(inputs)
            elif node.op == "output":
                outputs = torch.fx.node.map_arg(node.args[0], lambda n: self._real(n.name))
                return Result(outputs, self._checks)
            elif node.name in planned:
                self._planned(planned[node.name])
            elif node.name not in absorbed:
                self._values[node.name] = self._float(node)
        raise AssertionError("a graph without output")

    def _real(self, name: str) -> Any:
        value = self._values[name]
        return value.real if isinstance(value, _Integers) else value

    # Operators in int8.

    def _planned(self, o: PlannedOperator) -> None:
        xs = [self._integers(o, i) for i in range(len(o.inputs))]
        node = self._reference._nodes[o.node]
        if o.float_output:
            made = self._activated(o, self._weighted(o, xs))
            self._values[o.value] = self._compared_float(o, made)
            return
        held = self._reference._tensors[o.value]
        steps = self._steps(o, node, xs, held).clip(held.quant_min, held.quant_max)
        made = np.rint(steps).astype(np.int64)
        exact = o.kind in COPYING or (o.kind == "cat" and all(x.held == held for x in xs))
        if self._recorded is not None:
            have = self._recorded.made[o.node]
            self._checks.append(Check(o, "result", _largest(have, steps), exact))
            made = have.astype(np.int64)
        self._values[o.value] = _Integers(made, held)

    def _integers(self, o: PlannedOperator, i: int) -> _Integers:
        """An operator's input; one that is float is rounded."""
        name = o.inputs[i]
        value, held = self._values[name], self._reference._tensors[name]
        if isinstance(value, _Integers):
            assert value.held == held
            want: Array = value.q
        else:
            steps = value / held.scale + held.zero_point
            want = steps.clip(held.quant_min, held.quant_max)
        if self._recorded is None:
            q = value.q if isinstance(value, _Integers) else rounded(value, held)
            return _Integers(q, held)
        have = self._recorded.read[o.node, i]
        if have.dtype.kind == "f":  # the kernel rounds it
            have = rounded(have, held)
        exact = isinstance(value, _Integers)
        self._checks.append(Check(o, f"input {i}", _largest(have, want), exact))
        return _Integers(have.astype(np.int64), held)

    def _compared_float(self, o: PlannedOperator, made: Array) -> Array:
        if self._recorded is None:
            return made
        have = self._recorded.made[o.node].astype(np.float64)
        error = _largest(have, made) / max(float(np.abs(made).max(initial=0)), 1e-30)
        self._checks.append(Check(o, "result", error, None))
        return have

    def _steps(self, o: PlannedOperator, node: Node, xs: list[_Integers], held: TensorParams):
        """The result in steps of its scale above integer 0, before it is rounded."""
        x = xs[0]
        if o.kind in (*CONVOLUTIONS, "linear"):
            real = self._activated(o, self._weighted(o, xs))
        elif o.kind == "add":
            real = self._activated(o, xs[0].real + xs[1].real)
        elif o.kind == "mul":
            product = xs[0].centred * xs[1].centred
            real = self._activated(o, product * (xs[0].held.scale * xs[1].held.scale))
        elif o.kind == "cat":
            if all(term.held == held for term in xs):
                return np.concatenate([term.q for term in xs], _axis(node)).astype(np.float64)
            real = np.concatenate([term.real for term in xs], _axis(node))
        elif o.kind == "leaky_relu":
            real = np.where(x.real < 0, x.real * o.slope, x.real)
        elif o.kind == "batch_norm":
            real = self._activated(o, _normalized(x.real, self._reference._module(o)))
        elif o.kind in ("relu", "clip"):
            low, high = o.bounds if o.kind == "clip" else (0.0, math.inf)
            bounds = [b if math.isinf(b) else int(rounded(np.array(b), held)) for b in (low, high)]
            return x.q.clip(*bounds).astype(np.float64)
        else:
            # Held like the input: on multiples of the scale, in which zero is 0.
            assert x.held == held
            computed = self._same_range(o, node, x.centred)
            return computed.astype(np.float64) + held.zero_point
        return real / held.scale + held.zero_point

    def _weighted(self, o: PlannedOperator, xs: list[_Integers]) -> Array:
        """Sums of products and the bias on their grid, exact; then in real numbers, with the other
        term of a fused sum."""
        assert o.weight is not None
        module, integers = self._reference._module(o), self._reference._weights[o.node]
        axes = (-1, *[1] * (integers.ndim - 1))
        weight = integers - np.array(o.weight.zero_points).reshape(axes)
        if o.kind == "linear":
            sums = _linear(xs[0].centred, weight)
        else:
            sums = _convolution(xs[0].centred, weight, module)
        channels = (-1,) if o.kind == "linear" else (1, -1, *[1] * (sums.ndim - 2))
        scales = np.broadcast_to(o.weight.scales, len(integers))
        step = (scales * xs[0].held.scale).reshape(channels)
        if module.bias is not None:
            # Without the kernels' limit of 32 bits, which no bias may reach.
            bias = module.bias.double().numpy().reshape(channels)
            sums = sums + np.rint(bias / step).astype(np.int64)
        real = sums * step
        return real + xs[1].real if len(xs) > 1 else real

    def _activated(self, o: PlannedOperator, real: Array) -> Array:
        if o.activation is None:
            return real
        if o.activation == "saturation":
            assert o.bounds is not None
            return real.clip(*o.bounds)
        if o.activation == "leaky_relu":
            return np.where(real < 0, real * o.slope, real)
        return ACTIVATIONS[o.activation](real)

    def _same_range(self, o: PlannedOperator, node: Node, x: Array) -> Array:
        setting = _settings(self._graph, node)
        computed = _computed(o.kind, setting, x)
        if computed is not None:
            return computed
        assert o.kind in REARRANGING, f"no reference for {o.kind}"
        return self._torch(node, {node.all_input_nodes[0].name: torch.from_numpy(x)}).numpy()

    # Operators in float.

    def _float(self, node: Node) -> Any:
        """In float64, with NumPy where it is about to be int8, too."""
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(self._graph.get_submodule(owner), name)
            return value.detach().double().numpy() if isinstance(value, Tensor) else value
        kind = kind_of(self._graph, node)
        sources = tensor_inputs(node)
        xs = [self._real(source.name) for source in sources]
        if node.op == "call_module":
            module = module_of(self._graph, node)
            if kind in (*CONVOLUTIONS, "linear") and getattr(module, "padding_mode", "zeros") == (
                "zeros"
            ):
                return _float_layer(kind, xs[0], module)
            if kind == "batch_norm":
                return _normalized(xs[0], module)
        if kind in ACTIVATIONS and len(xs) == 1 and len(node.args) < 2 and kind != "gelu":
            return ACTIVATIONS[kind](xs[0])
        if kind in _ON_ARRAYS and len(xs) == 1:
            computed = _computed(kind, _settings(self._graph, node), xs[0])
            if computed is not None:
                return computed
        return self._torch(node, {})

    def _torch(self, node: Node, given: Mapping[str, Tensor]) -> Any:
        """The operator itself, on float64 or on given values."""

        def load(source: Node) -> Any:
            if source.name in given:
                return given[source.name]
            value = self._real(source.name)
            return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(
                value, np.ndarray
            ) else value  # fmt: skip

        args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), load)
        with torch.inference_mode():
            if node.op == "call_module":
                module = copy.deepcopy(module_of(self._graph, node))
                result = module.double()(*args, **kwargs)
            elif node.op == "call_method":
                result = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)
        if given:
            return result
        return torch.fx.node.map_aggregate(
            result, lambda v: v.numpy() if isinstance(v, Tensor) else v
        )


def _largest(have: Array, want: Array) -> float:
    assert have.shape == want.shape, f"shape {have.shape}, not {want.shape}"
    return float(np.abs(have.astype(np.float64) - want).max(initial=0))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_erf = np.vectorize(math.erf, otypes=[np.float64])
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "tanh": np.tanh,
}


# Layers.


def _windows(x: Array, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]):
    """(N, C, *image) to (N, C, *places, *size)."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    found = sliding_window_view(x, spans, axis=tuple(range(2, x.ndim)))
    steps = [slice(None, None, s) for s in (*stride, *dilation)]
    return found[(slice(None), slice(None), *steps)]


def _padded(x: Array, widths: Sequence[tuple[int, int]], value: float = 0) -> Array:
    return np.pad(x, [(0, 0), (0, 0), *widths], constant_values=value)


def _sides(module: Any) -> list[tuple[int, int]]:
    """A convolution's padding before and after each axis."""
    size, dilation = module.kernel_size, module.dilation
    if module.padding == "valid":
        return [(0, 0)] * len(size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in module.padding]


def _convolution(x: Array, weight: Array, module: Any) -> Array:
    groups, size = module.groups, weight.shape[2:]
    windows = _windows(_padded(x, _sides(module)), size, module.stride, module.dilation)
    batch, places = len(x), windows.shape[2 : 2 + len(size)]
    # (N, groups, places, products) @ (groups, products, outputs)
    columns = windows.reshape(batch, groups, -1, math.prod(places), math.prod(size))
    columns = columns.transpose(0, 1, 3, 2, 4).reshape(batch, groups, math.prod(places), -1)
    rows = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    sums = columns @ rows
    return sums.transpose(0, 1, 3, 2).reshape(batch, len(weight), *places)


def _linear(x: Array, weight: Array) -> Array:
    return x @ weight.T


def _float_layer(kind: str, x: Array, module: Any) -> Array:
    weight = module.weight.double().numpy()
    y = _linear(x, weight) if kind == "linear" else _convolution(x, weight, module)
    if module.bias is None:
        return y
    bias = module.bias.double().numpy()
    return y + (bias if kind == "linear" else bias.reshape(-1, *[1] * (y.ndim - 2)))


def _normalized(x: Array, module: Any) -> Array:
    values = [module.running_mean, module.running_var, module.weight, module.bias]
    axes = (1, -1, *[1] * (x.ndim - 2))
    mean, variance, weight, bias = (
        None if v is None else v.detach().double().numpy().reshape(axes) for v in values
    )
    y = (x - mean) / np.sqrt(variance + module.eps)
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


# Operators whose result is held like their input, on float or centred integers.

_ON_ARRAYS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate", "pad",
    "channel_shuffle", "pixel_shuffle",
)  # fmt: skip


def _settings(graph: Any, node: Node) -> Callable[..., Any]:
    """Reads a setting of a module, or of the function that it stands for."""

    def setting(position: int, name: str, default: Any = None) -> Any:
        if node.op == "call_module":
            return getattr(module_of(graph, node), name, default)
        return argument(node, position, name, default)

    return setting


def _computed(kind: str, setting: Callable[..., Any], x: Array) -> Array | None:
    """None for what is only rearranged."""
    if kind.startswith(("max_pool", "avg_pool")):
        return _pooled(kind, setting, x)
    if kind.startswith("adaptive_avg_pool"):
        return _adaptive(x, setting(1, "output_size"))
    if kind == "interpolate":
        return _resized(x, setting)
    if kind == "pad":
        widths = setting(1, "pad") or setting(1, "padding")
        if (setting(2, "mode", "constant") or "constant") != "constant":
            return None
        value = setting(3, "value", 0) or 0
        pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
        return np.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, constant_values=value)
    if kind == "channel_shuffle":
        groups = setting(1, "groups")
        parts = x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])
        return parts.swapaxes(1, 2).reshape(x.shape)
    if kind == "pixel_shuffle":
        r = setting(1, "upscale_factor")
        n, c, h, w = x.shape
        parts = x.reshape(n, c // r**2, r, r, h, w).transpose(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, c // r**2, h * r, w * r)
    return None


def _each(value: Any, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value) * (axes // len(value))


def _pooled(kind: str, setting: Callable[..., Any], x: Array) -> Array:
    axes = x.ndim - 2
    size = _each(setting(1, "kernel_size"), axes)
    stride = _each(setting(2, "stride") or size, axes)
    padding = _each(setting(3, "padding", 0), axes)
    largest = kind.startswith("max")
    dilation = _each(setting(4, "dilation", 1), axes) if largest else [1] * axes
    ceil = setting(5 if largest else 4, "ceil_mode", False)
    sides = []
    for length, k, s, p, d in zip(x.shape[2:], size, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        places = (length + 2 * p - span + (s - 1 if ceil else 0)) // s + 1
        if ceil and (places - 1) * s >= length + p:
            places -= 1  # no window starts in the padding after the image
        sides.append((p, max((places - 1) * s + span - length - p, 0)))
    if largest:
        low = np.iinfo(np.int64).min if x.dtype.kind == "i" else -np.inf
        windows = _windows(_padded(x, sides, low), size, stride, dilation)
        return windows.max(tuple(range(-axes, 0)))
    sums = _windows(_padded(x, sides), size, stride, dilation).sum(tuple(range(-axes, 0)))
    divisor = setting(6, "divisor_override")
    if divisor is None:
        counted = np.ones((1, 1, *x.shape[2:]))
        given = [(p, min(p, after)) for p, (_, after) in zip(padding, sides, strict=True)]
        counted = _padded(counted, given, float(setting(5, "count_include_pad", True)))
        rest = [(0, after - b) for (_, after), (_, b) in zip(sides, given, strict=True)]
        windows = _windows(_padded(counted, rest), size, stride, dilation)
        divisor = windows.sum(tuple(range(-axes, 0)))
    return sums / divisor


def _adaptive(x: Array, size: Any) -> Array:
    lengths = x.shape[2:]
    wanted = [n if n is not None else had for n, had in
              zip(_each(size, len(lengths)) if isinstance(size, int) else size, lengths,
                  strict=True)]  # fmt: skip
    result = np.empty((*x.shape[:2], *wanted))
    for place in product(*map(range, wanted)):
        part = tuple(
            slice(i * had // n, -(-(i + 1) * had // n))
            for i, n, had in zip(place, wanted, lengths, strict=True)
        )
        window = x[(slice(None), slice(None), *part)]
        result[(slice(None), slice(None), *place)] = window.mean(tuple(range(2, x.ndim)))
    return result


def _resized(x: Array, setting: Callable[..., Any]) -> Array | None:
    size, factor = setting(1, "size"), setting(2, "scale_factor")
    mode, corners = setting(3, "mode", "nearest"), setting(4, "align_corners")
    axes = x.ndim - 2
    if mode not in ("nearest", "bilinear") or setting(5, "recompute_scale_factor"):
        return None
    factors = [None] * axes if factor is None else (
        [factor] * axes if isinstance(factor, (int, float)) else list(factor)
    )  # fmt: skip
    for axis in range(axes):
        had, by = x.shape[2 + axis], factors[axis]
        length = _each(size, axes)[axis] if by is None else math.floor(had * by)
        ratio = had / length if by is None else 1 / by
        places = np.arange(length)
        if mode == "nearest":
            index = np.minimum(np.floor(places * ratio).astype(int), had - 1)
            x = x.take(index, 2 + axis)
            continue
        ratio = (had - 1) / (length - 1) if corners and length > 1 else ratio
        at = places * ratio if corners else np.maximum((places + 0.5) * ratio - 0.5, 0)
        first = np.minimum(np.floor(at).astype(int), had - 1)
        second = np.minimum(first + 1, had - 1)
        share = (at - first).reshape(-1, *[1] * (axes - 1 - axis))
        x = x.take(first, 2 + axis) * (1 - share) + x.take(second, 2 + axis) * share
    return x


def _axis(node: Node) -> int:
    axis: int = argument(node, 1, "dim", node.kwargs.get("axis", 0))
    return axis
