"""The layers of the direct lowering, as TorchScript compiles them.

A file holds the plain int8 weight; loading packs it for oneDNN, for inputs of the shape that the
model was traced with (others work, and the weight is reordered at each call).
"""

# No `from __future__ import annotations`, and typing's own names: TorchScript reads them.
# ruff: noqa: UP006, UP007, UP035, UP045
from typing import Any, List, Optional, Tuple, Union

import torch
from torch import Tensor, nn

_Numbers = List[Optional[Union[int, float, complex]]]


class _Layer(nn.Module):
    """What the layers share: their weight, and that loading packs it.

    `weight` is int8, symmetric, with `weight_scale` (float32) for each output channel; `bias` is
    float32. `x_scale`, `x_zero_point` and `scale`, `zero_point` are how input and result are held.
    `post` is oneDNN's name of the activation in the kernel, `numbers` are its own. `x_shape` is the
    input's shape for which the weight is packed.
    """

    __constants__ = (
        "x_scale", "x_zero_point", "scale", "zero_point", "term_scale", "term_zero_point",
        "float_output", "post", "algorithm", "numbers", "x_shape", "stride", "padding", "dilation",
        "groups", "axes",
    )  # fmt: skip
    x_scale: float
    x_zero_point: int
    scale: float
    zero_point: int
    term_scale: float
    term_zero_point: int
    float_output: bool
    post: str
    algorithm: str
    numbers: List[float]
    x_shape: List[int]
    stride: List[int]
    padding: List[int]
    dilation: List[int]
    groups: int
    axes: int

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, bias: Tensor, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        unused: dict[str, Any] = {"term_scale": 1.0, "term_zero_point": 0, "algorithm": ""}
        unused |= {"float_output": False, "numbers": [], "groups": 1}
        unused |= {"stride": [1], "padding": [0], "dilation": [1]}
        for name, value in {**unused, **settings}.items():
            setattr(self, name, value)
        self.axes = weight.dim() - 2
        self.weight, self.weight_scale, self.bias = weight, weight_scale, bias
        self.zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
        self.packed = self._pack()

    def _pack(self) -> Tensor:
        return torch.ops.onednn.qconv_prepack(
            self.weight, self.weight_scale, self.x_scale, self.x_zero_point, self.stride,
            self.padding, self.dilation, self.groups, self.x_shape,
        )  # fmt: skip

    @torch.jit.export
    def __getstate__(self) -> Tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.weight_scale, self.bias

    @torch.jit.export
    def __setstate__(self, state: Tuple[Tensor, Tensor, Tensor]) -> None:
        self.weight, self.weight_scale, self.bias = state
        self.zeros = torch.zeros(self.weight.shape[0], dtype=torch.int32)
        self.packed = self._pack()
        self.training = False


class DirectConvolution(_Layer):
    """`onednn::qconv2d_pointwise` and its sisters: uint8 in; uint8 or float32 out.

    `stride`, `padding`, `dilation` have an integer for each axis of the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """In the layout of the float layer."""
        numbers = torch.jit.annotate(_Numbers, [])
        for number in self.numbers:
            numbers.append(number)
        dtype = torch.float32 if self.float_output else torch.uint8
        if self.axes == 1:
            return torch.ops.onednn.qconv1d_pointwise(
                x, self.x_scale, self.x_zero_point, self.packed, self.weight_scale, self.zeros,
                self.bias, self.stride, self.padding, self.dilation, self.groups, self.scale,
                self.zero_point, dtype, self.post, numbers, "",
            )  # fmt: skip
        elif self.axes == 2:  # noqa: RET505 - TorchScript compiles the branch that is taken only
            return torch.ops.onednn.qconv2d_pointwise(
                x, self.x_scale, self.x_zero_point, self.packed, self.weight_scale, self.zeros,
                self.bias, self.stride, self.padding, self.dilation, self.groups, self.scale,
                self.zero_point, dtype, self.post, numbers, "",
            )  # fmt: skip
        else:
            return torch.ops.onednn.qconv_pointwise(
                x, self.x_scale, self.x_zero_point, self.packed, self.weight_scale, self.zeros,
                self.bias, self.stride, self.padding, self.dilation, self.groups, self.scale,
                self.zero_point, dtype, self.post, numbers, "",
            )  # fmt: skip


class DirectSum(_Layer):
    """A 2d convolution that adds `term`, held with `term_scale` and `term_zero_point`, to its
    result: uint8 in, uint8 out. The memory of `term` is overwritten with the result."""

    def forward(self, x: Tensor, term: Tensor) -> Tensor:
        """In the layout of the float layer."""
        return torch.ops.onednn.qconv2d_pointwise(
            x, self.x_scale, self.x_zero_point, self.packed, self.weight_scale, self.zeros, term,
            self.bias, self.stride, self.padding, self.dilation, self.groups, self.scale,
            self.zero_point, torch.uint8, self.term_scale, self.term_zero_point, "sum", 1.0,
            self.post, torch.jit.annotate(_Numbers, []), "",
        )  # fmt: skip


class DirectLinear(_Layer):
    """`onednn::qlinear_pointwise`: uint8 (..., in) to uint8 or float32 (..., out).

    `algorithm` is that of GELU: `none` or `tanh`.
    """

    def _pack(self) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(self.weight, self.x_shape)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        numbers = torch.jit.annotate(_Numbers, [])
        for number in self.numbers:
            numbers.append(number)
        dtype = torch.float32 if self.float_output else torch.uint8
        return torch.ops.onednn.qlinear_pointwise(
            x, self.x_scale, self.x_zero_point, self.packed, self.weight_scale, self.zeros,
            self.bias, self.scale, self.zero_point, dtype, self.post, numbers, self.algorithm,
        )  # fmt: skip
