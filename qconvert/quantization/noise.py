"""How much a quantized model adds to what the float model returns."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor


class NoiseShare:
    """Power of the noise as a share of the signal's, over any number of images. Several outputs
    count alike, each by its own power."""

    def __init__(self) -> None:
        self._signal: dict[Hashable, float] = {}
        self._noise: dict[Hashable, float] = {}

    def add(self, output: Hashable, want: Tensor, found: Tensor) -> None:
        """What one output is and should be, of the same shape; what holds no floats is left out."""
        if not want.is_floating_point() or not want.numel():
            return
        power, error = want.double().square(), (found - want).double().square()
        self._signal[output] = self._signal.get(output, 0.0) + float(power.sum())
        self._noise[output] = self._noise.get(output, 0.0) + float(error.sum())

    @property
    def shares(self) -> list[float]:
        """One for each output that is not zero throughout."""
        return [self._noise[name] / power for name, power in self._signal.items() if power]
