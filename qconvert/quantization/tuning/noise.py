"""How much int8 adds to what a model returns, by its simulation on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Simulated
from qconvert.quantization.noise import NoiseShare
from qconvert.quantization.plan import Plan


class Noise:
    """Compares simulations with the float model, whose results on the images are kept.

    Of a model whose code is kept in places, each part is judged on the inputs that it has in the
    float model, and every output of it counts by its own power.
    """

    def __init__(self, original: FusedModel, images: Sequence[Inputs], output: str) -> None:
        self._assembly = original.assembly
        # Number of the part, its inputs, and the results that count.
        self._calls: list[tuple[int, tuple[Tensor, ...], dict[str, Tensor]]] = []
        with torch.inference_mode():
            for inputs in images:
                if self._assembly.whole:
                    wanted = {output: tensors(original.graph(*inputs))[output]}
                    self._calls.append((0, inputs, wanted))
                    continue
                for number, given, result in self._assembly.part_calls(inputs):
                    self._calls.append((number, given, tensors(result)))

    def share(self, model: FusedModel, plan: Plan) -> float:
        """The power of the noise of a plan as a share of the signal's."""
        simulated = lower(model, plan, Simulated())
        whole = self._assembly.whole
        bodies: Sequence[Any] = [simulated] if whole else self._assembly.split(simulated)
        noise = NoiseShare()
        with torch.inference_mode():
            for number, inputs, wanted in self._calls:
                found = tensors(bodies[number](*inputs))
                for name, want in wanted.items():
                    noise.add((number, name), want, found[name])
        return sum(noise.shares) / len(noise.shares) if noise.shares else 0.0
