"""Layers with int8 weights whose input ranges are found at run time: linear, LSTM, GRU.

Float in, float out. The kernels are torch's own (`quantized::linear_dynamic`,
`aten::quantized_lstm`, `aten::quantized_gru`), which under torch's default engine are fbgemm's on
every x86 CPU. Each product quantizes its whole input with one range, from the smallest to the
largest value that it holds: what is in a batch together shares a range, so that the result of an
image depends, within a step of 8 bits, on its neighbours. A recurrent layer takes one range for
its whole input sequence, and a new one for the hidden state at each time step. NaN or an infinity
in an input is not passed on: the kernels raise RuntimeError or return other numbers.

Nothing of torch.ao is used, and no global setting is read or changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.models.operators import recurrent_weights
from qconvert.quantization.plan import WeightParams
from qconvert.quantization.rules import why_not_dynamic
from qconvert.quantization.weights import quantized

_OPERATORS = torch.ops.quantized
# The node kinds of frozen graphs (DynamicLinear's are quantized::linear[_relu]_dynamic).
RECURRENT = ("aten::quantized_lstm", "aten::quantized_gru")


class DynamicLinear(nn.Module):
    """An `nn.Linear`, with ReLU if asked for, on a weight in qint8.

    `weight` holds one scale for each output channel, or one in all. `reduce_range` limits inputs
    to 7 bits, for CPUs without VNNI, whose 16-bit sums of two products can overflow with 8.
    """

    def __init__(
        self, module: nn.Linear, weight: WeightParams, *, reduce_range: bool, relu: bool = False
    ) -> None:
        super().__init__()
        self.packed = _packed(module.weight, weight, module.bias)
        self.reduce_range = reduce_range
        self.operator = "linear_relu_dynamic" if relu else "linear_dynamic"

    def forward(self, input: Tensor) -> Tensor:
        """float32 (..., in) to float32 (..., out), as `nn.Linear`, also (in,) to (out,)."""
        rows = input.unsqueeze(0) if input.dim() == 1 else input  # the kernel takes no vector
        result = getattr(_OPERATORS, self.operator)(rows, self.packed, self.reduce_range)
        return result.squeeze(0) if input.dim() == 1 else result


class DynamicRecurrent(nn.Module):
    """An `nn.LSTM` or `nn.GRU` in eval mode, on weights in qint8; gates and states are float.

    `weights` names the matrices as `recurrent_weights` does. `reduce_range` as in `DynamicLinear`.

    Raises ValueError for a layer that `why_not_dynamic` refuses.
    """

    def __init__(
        self,
        module: nn.LSTM | nn.GRU,
        weights: Mapping[str, WeightParams],
        *,
        reduce_range: bool,
    ) -> None:
        super().__init__()
        refused = why_not_dynamic(module)
        if refused is not None:
            raise ValueError(refused)
        self.is_lstm = isinstance(module, nn.LSTM)
        self.num_layers = module.num_layers
        self.hidden_size = module.hidden_size
        self.bidirectional = module.bidirectional
        self.batch_first = module.batch_first
        suffixes = [name.removeprefix("weight_ih") for name in _input_weights(module)]
        self.cells = tuple(f"cell{suffix}" for suffix in suffixes)
        for suffix in suffixes:
            # An attribute each: a trace cannot hold a list of packed weights.
            setattr(self, f"cell{suffix}", _cell(module, suffix, weights, reduce_range))

    def forward(
        self, input: Tensor, hx: Tensor | Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """As `nn.LSTM` and `nn.GRU`, in float32.

        `input`: (time, batch, in), with `batch_first` (batch, time, in), or (time, in). `hx`: the
        initial h (LSTM: h and c), (layers * directions, batch, hidden), or without the batch axis;
        zeros if left out. Returns y, with hidden * directions in its last axis, and the last h
        (LSTM: (h, c)).
        """
        states = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
        batch_axis = 0 if self.batch_first else 1
        unbatched = input.dim() == 2  # the kernels take batches only
        if unbatched:
            input = input.unsqueeze(batch_axis)
            states = [state.unsqueeze(1) for state in states]
        if not states:
            zeros = input.new_zeros(len(self.cells), input.shape[batch_axis], self.hidden_size)
            states = [zeros, zeros] if self.is_lstm else [zeros]
        result, *states = self._computed(input, states)
        if unbatched:
            result = result.squeeze(batch_axis)
            states = [state.squeeze(1) for state in states]
        return result, tuple(states) if self.is_lstm else states[0]

    def _computed(self, x: Tensor, states: list[Tensor]) -> Sequence[Tensor]:
        """What the kernel returns. It refuses cells without biases: theirs are zeros."""
        cells = [getattr(self, name) for name in self.cells]
        settings: tuple[Any, ...] = (
            cells,
            True,  # has_biases
            self.num_layers,
            0.0,  # dropout, of training
            False,  # train
            self.bidirectional,
            self.batch_first,
        )
        if self.is_lstm:
            return torch.ops.aten.quantized_lstm.input(
                x, states, *settings, dtype=torch.qint8, use_dynamic=True
            )
        return torch.ops.aten.quantized_gru.input(x, states[0], *settings)


def recurrent_macs(x: Tensor, cells: Sequence[Any]) -> int:
    """Multiply-accumulates of one of the RECURRENT kernels on its input `x`; those of the matrices,
    as for a float layer."""
    return x.numel() // x.shape[-1] * sum(map(_matrix_sizes, cells))


def _matrix_sizes(cell: Any) -> int:
    """How many weights are in one packed cell, whose state is a tuple that ends with the two packed
    matrices."""
    (*_, matrices), _ = cell.__getstate__()
    return sum(_OPERATORS.linear_unpack(matrix)[0].numel() for matrix in matrices)


def _input_weights(module: nn.LSTM | nn.GRU) -> list[str]:
    """One name a cell, in the order of the kernels: by layer, there forward, then backward."""
    return [name for name in recurrent_weights(module) if name.startswith("weight_ih")]


def _cell(
    module: nn.LSTM | nn.GRU, suffix: str, weights: Mapping[str, WeightParams], reduce_range: bool
) -> Any:
    """One layer in one direction."""
    matrices, biases = [], []
    for side in ("_ih", "_hh"):
        name = f"weight{side}{suffix}"
        weight = getattr(module, name)
        bias = getattr(module, f"bias{side}{suffix}") if module.bias else torch.zeros(len(weight))
        matrices.append(_packed(weight, weights[name], bias))
        # On the CPU the kernels read the bias that is packed with the matrix and never this one.
        biases.append(torch.zeros(0))
    return _OPERATORS.make_quantized_cell_params_dynamic(*matrices, *biases, reduce_range)


def _packed(weight: Tensor, params: WeightParams, bias: Tensor | None) -> Any:
    """The weight in qint8 with its float bias."""
    # A clone: a file holds the whole memory that a tensor is a part of.
    own = None if bias is None else bias.detach().clone()
    return _OPERATORS.linear_prepack(quantized(weight, params), own)
