"""The int8 layers of a plan, each alone: what they read on real images, and what they must return.

What they must return is computed in float64, in which sums of products of 8-bit integers are exact,
so it is the same on every CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.models.fusion import FusedModel
from qconvert.quantization.lowering.backend import Layer, lower
from qconvert.quantization.lowering.simulated import activation_in_float
from qconvert.quantization.lowering.targets import Int8, dynamic_form
from qconvert.quantization.plan import Plan, PlannedOperator, TensorParams
from qconvert.quantization.weights import on_grid, quantized

# A result that is returned as float is compared in steps as large as 8 bits would have.
_STEPS = 255


@dataclass(frozen=True)
class LayerCall:
    """One call of one layer; `inputs` are uint8, or float32 where its kernel reads that."""

    layer: Layer
    module: nn.Module
    inputs: tuple[Tensor, ...]

    @property
    def node(self) -> str:
        """The name of the layer's node."""
        return self.layer.operator.node

    def file(self) -> bytes:
        """The layer as a TorchScript file, which takes `inputs` and returns uint8 or float32."""
        if isinstance(self.module, torch.jit.ScriptModule):
            return torchscript.to_bytes(self.module)
        plain = _Plain(self.module, self.layer)
        return torchscript.to_bytes(torchscript.trace(plain, self.inputs))


class _Plain(nn.Module):
    """A layer of the classic operators on plain tensors."""

    def __init__(self, module: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.module = module
        self.scale, self.zero_point = layer.x_held.scale, layer.x_held.zero_point

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = torch._make_per_tensor_quantized_tensor(x, self.scale, self.zero_point)
        result = self.module(x)
        return result.int_repr() if result.is_quantized else result


@dataclass(frozen=True)
class DynamicCall:
    """One call of a layer with dynamic ranges; `inputs` are float."""

    operator: PlannedOperator
    module: Any
    inputs: tuple[Any, ...]

    @property
    def node(self) -> str:
        """The name of the layer's node."""
        return self.operator.node

    def file(self, operator: PlannedOperator) -> bytes:
        """The layer as a TorchScript file, as this line of a plan has it."""
        return torchscript.to_bytes(
            torchscript.trace(dynamic_form(operator, self.module), self.inputs)
        )

    def in_float(self) -> Any:
        """What the float layer returns."""
        with torch.inference_mode():
            return self.module(*self.inputs)


class Layers:
    """Watches layers of a plan as the int8 model runs: the static ones that have one of `names`,
    the names of their nodes, and those with `dynamic` ranges."""

    def __init__(
        self, model: FusedModel, plan: Plan, names: frozenset[str], *, dynamic: bool = True
    ) -> None:
        target = Int8(plan)
        lowered = lower(model, plan, target)
        self._calls: list[LayerCall | DynamicCall] = []
        for path, layer in target.layers.items():
            if layer.operator.node in names:
                module = lowered.get_submodule(path)
                watched = _Watched(module, partial(self._static, layer, module))
                lowered.set_submodule(path, watched)
        if dynamic:
            for path, (operator, module) in target.dynamic_layers.items():
                made = lowered.get_submodule(path)
                watched = _Watched(made, partial(self._dynamic, operator, module))
                lowered.set_submodule(path, watched)
        self._run: Callable[..., Any] = model.assembly.eager(lowered)

    def on(self, inputs: Sequence[Tensor]) -> list[LayerCall | DynamicCall]:
        """The calls for one image, whose inputs are these."""
        self._calls.clear()
        with torch.inference_mode():
            self._run(*inputs)
        return list(self._calls)

    def _static(self, layer: Layer, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Cloned: a kernel that sums overwrites one of them.
        plain = tuple(x.int_repr() if x.is_quantized else x.clone() for x in args)
        self._calls.append(LayerCall(layer, module, plain))

    def _dynamic(self, operator: PlannedOperator, module: nn.Module, args: tuple[Any, ...]) -> None:
        given = tuple(x for x in args if x is not None)
        self._calls.append(DynamicCall(operator, module, copy.deepcopy(given)))


class _Watched(nn.Module):
    """A module whose calls are told before they are made. No hook: scripted modules have none."""

    def __init__(self, module: nn.Module, tell: Callable[[tuple[Any, ...]], None]) -> None:
        super().__init__()
        self.module = module
        self.tell = tell

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.tell((*args, *kwargs.values()))
        return self.module(*args, **kwargs)


def errors_in_steps(call: LayerCall, result: Tensor) -> Tensor:
    """How far a kernel's result is from what it must be, in steps of the integers that hold it
    (float64, of the result's shape)."""
    layer = call.layer
    want = _exact(layer, call.inputs)
    if layer.held is None:
        step = float(want.max() - want.min()) / _STEPS
        return (result.double() - want) / max(step, 1e-30)
    low, high = layer.held.quant_min, layer.held.quant_max
    integers = (want / layer.held.scale).round() + layer.held.zero_point
    return result.double().clamp(low, high) - integers.clamp(low, high)


def _exact(layer: Layer, inputs: tuple[Tensor, ...]) -> Tensor:
    """The layer's result before it is rounded."""
    integers = quantized(layer.module.weight, layer.weight).int_repr().double()
    axes = [-1, *[1] * (integers.dim() - 1)]
    scales = torch.tensor(layer.weight.scales, dtype=torch.float64)
    zero_points = torch.tensor(layer.weight.zero_points, dtype=torch.float64)
    weight = (integers - zero_points.view(axes)) * scales.view(axes)
    module = copy.deepcopy(layer.module).double()
    module.weight = nn.Parameter(weight, requires_grad=False)
    bias = on_grid(layer.module.bias, layer.x_held.scale, layer.weight)
    if bias is not None:
        module.bias = nn.Parameter(bias.double(), requires_grad=False)
    result: Tensor = module(_value(inputs[0], layer.x_held))
    if len(inputs) > 1 and layer.term_held is not None:
        result = result + _value(inputs[1], layer.term_held)
    function, arguments, kwargs = activation_in_float(layer.operator)
    return result if function is None else function(result, *arguments, **kwargs)


def _value(x: Tensor, held: TensorParams) -> Tensor:
    """What integers stand for, in float64; a float tensor is held as integers first."""
    if x.dtype == torch.float32:
        bounded = x.clamp(held.params.minimum, held.params.maximum)
        x = torch.quantize_per_tensor(bounded, held.scale, held.zero_point, torch.quint8)
        x = x.int_repr()
    return (x.double() - held.zero_point) * held.scale
