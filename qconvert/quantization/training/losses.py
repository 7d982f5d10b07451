"""What a student is to make small: the noise of its outputs and features beside the float model's,
each as a share of the float model's own power, and the cross-entropy of its classes.

The channels of a feature may be of any size: what a layer makes larger, the next can make smaller,
and training is to find which size serves best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A power that is smaller is that of values which are all zero.
_LEAST_POWER = 1e-20


@dataclass(frozen=True)
class Loss:
    """`powers` are the mean squares of the float model's outputs and features, `features` weighs
    the latter against the outputs. With labels, `classes` names the output that holds the classes;
    `teaches` is whether the float model does."""

    powers: Mapping[str, float]
    features: float
    teaches: bool
    classes: str | None

    def __call__(
        self,
        outputs: Mapping[str, Tensor],
        features: Mapping[str, Tensor],
        wanted: Mapping[str, Tensor],
        wanted_features: Mapping[str, Tensor],
        labels: Tensor | None,
    ) -> Tensor:
        """The mean over a batch."""
        terms = []
        if self.teaches:
            terms.append(self._noise(outputs, wanted))
            if self.features and wanted_features:
                sized = {n: _sized(features[n], want) for n, want in wanted_features.items()}
                terms.append(self.features * self._noise(sized, wanted_features))
        if self.classes is not None and labels is not None:
            terms.append(F.cross_entropy(outputs[self.classes], labels))
        return torch.stack(terms).sum()

    def _noise(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """The mean share of all."""
        shares = [
            F.mse_loss(found[name], want) / max(self.powers[name], _LEAST_POWER)
            for name, want in wanted.items()
        ]
        return torch.stack(shares).mean()


def _sized(found: Tensor, want: Tensor) -> Tensor:
    """With each channel (axis 1, or the last of three) as large as makes it nearest to what is
    wanted, by least squares over the batch."""
    axis = 2 if found.dim() == 3 else 1
    axes = [i for i in range(found.dim()) if i != axis]
    with torch.no_grad():
        power = found.square().sum(axes, keepdim=True)
        # At the nearest size the noise does not depend on it: it needs no gradient.
        size = (found * want).sum(axes, keepdim=True) / power.clamp(min=_LEAST_POWER)
    return found * size
