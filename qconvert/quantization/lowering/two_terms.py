"""A float value in two terms of int8, in the operators of any backend."""

from __future__ import annotations

import torch
from torch.fx import Node

from qconvert.models.two_terms import FACTOR, TwoTerms
from qconvert.quantization.lowering.backend import FLOAT, Backend
from qconvert.quantization.plan import TensorParams


def in_two_terms(
    backend: Backend, module: TwoTerms, x: Node, held: TensorParams, dimensions: int
) -> Node:
    """What the module computes, both terms in the backend's form."""
    call = backend.graph.call_function
    nearest = backend.bring(x, FLOAT, held, dimensions)
    left = call(torch.sub, (x, backend.dequantize(nearest, held)))
    second = backend.bring(call(torch.mul, (left, float(FACTOR))), FLOAT, held, dimensions)
    # `quantized::cat` would round them again, and takes as long.
    return call(torch.cat, ([nearest, second], module.axis))
