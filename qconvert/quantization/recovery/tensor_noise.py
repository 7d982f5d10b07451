"""What rounding each tensor of a plan adds to the outputs, foreseen from gradients.

Errors are small, so what they do to the outputs is their product with the derivatives. Its power
is estimated by random signs at the outputs (Hutchinson 1990): for all tensors at once, at the cost
of a few runs backwards. The errors are the real ones, so that those which go one way (what is
clipped) add up as they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.outputs import tensors
from qconvert.quantization.affine import fake_quantize
from qconvert.quantization.plan import Plan

# Draws of random signs for each image.
_DRAWS = 8


def noise_of_tensors(model: FusedModel, plan: Plan, images: Sequence[Inputs]) -> dict[str, float]:
    """The power that rounding each tensor of the plan adds to the outputs, as a share of theirs;
    several outputs count alike, each by its own power. Nothing for tensors that no output depends
    on smoothly.

    Raises RuntimeError (torch's) for a model that has no derivatives.
    """
    with torch.no_grad():
        powers: dict[str, float] = {}
        for inputs in images:
            for name, output in _smooth(model.graph(*inputs)):
                powers[name] = powers.get(name, 0.0) + float(output.double().square().sum())
    counted = [name for name, power in powers.items() if power]
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for inputs in images:
        watch = _Watch(model.graph, plan.tensors)
        with torch.enable_grad():
            first, *others = inputs
            result = watch.run(first.clone().requires_grad_(first.is_floating_point()), *others)
            outputs = [(n, x) for n, x in _smooth(result) if n in counted and x.requires_grad]
        values = {n: x for n, x in watch.values.items() if x.requires_grad}
        errors = {
            n: fake_quantize(x.detach(), plan.tensors[n].params) - x.detach()
            for n, x in values.items()
        }
        for _ in range(_DRAWS if outputs else 0):
            signs = [
                (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1) / powers[n] ** 0.5
                for n, x in outputs
            ]
            slopes = torch.autograd.grad(
                [x for _, x in outputs], list(values.values()), signs,
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            for name, slope in zip(values, slopes, strict=True):
                if slope is not None:
                    moved = float((slope * errors[name]).sum(dtype=torch.float64))
                    found[name] = found.get(name, 0.0) + moved**2 / _DRAWS / len(counted)
    return found


def _smooth(result: object) -> Iterable[tuple[str, Tensor]]:
    return [(n, x) for n, x in tensors(result).items() if x.is_floating_point() and x.numel()]


class _Watch(Interpreter):
    """Runs a graph and keeps the values of these names."""

    def __init__(self, graph: GraphModule, names: Iterable[str]) -> None:
        super().__init__(graph)
        self._names = set(names)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> object:
        """Keeps it if it is asked for."""
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value
        return value
