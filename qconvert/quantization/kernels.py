"""The names of torch's int8 operators, as a saved graph shows them.

The plan writes them down, the lowering calls them, the proof looks for them in the file.
"""

from __future__ import annotations

from typing import Any

import torch

from qconvert.models.operators import CONVOLUTIONS
from qconvert.quantization.plan import Lowering
from qconvert.quantization.rules import ALONE

DIRECT = {
    "conv1d": "onednn::qconv1d_pointwise",
    "conv2d": "onednn::qconv2d_pointwise",
    "conv3d": "onednn::qconv_pointwise",
    "linear": "onednn::qlinear_pointwise",
}
# A linear layer that reads float, computes in int8 and returns its 32-bit sums as float.
FLOAT_LINEAR = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
DYNAMIC = {
    "linear": "quantized::linear_dynamic",
    "lstm": "aten::quantized_lstm",
    "gru": "aten::quantized_gru",
}
_CLASSIC = (*CONVOLUTIONS, "linear")
# Int8 kernels without a weight in int8.
UNWEIGHTED = tuple(
    f"quantized::{name}{relu}"
    for name in ("add", "mul", "cat", "batch_norm2d", "batch_norm3d")
    for relu in ("", "_relu")
) + tuple(f"quantized::{name}" for name in ALONE)


def static_kernel(
    kind: str, lowering: Lowering, *, relu: bool, float_output: bool, dimensions: int
) -> str | None:
    """The int8 operator for a kind of layer, or None for what torch's own operators compute on int8
    tensors. `relu`: an activation from zero up is computed with it; `dimensions` are the result's.
    """
    if lowering == "direct":
        return DIRECT.get(kind)
    if kind == "linear" and float_output:
        return FLOAT_LINEAR
    name = f"batch_norm{dimensions - 2}d" if kind == "batch_norm" else kind
    kernel = f"quantized::{name}{'_relu' if relu else ''}"
    return kernel if kind in _CLASSIC or kernel in UNWEIGHTED else None


def dynamic_kernel(kind: str) -> str:
    """The operator with int8 weights that reads and returns float."""
    return DYNAMIC[kind]


def operator(name: str) -> Any:
    """The callable of a kernel's name."""
    namespace, _, function = name.partition("::")
    return getattr(getattr(torch.ops, namespace), function)
