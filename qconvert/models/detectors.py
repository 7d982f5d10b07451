"""torchvision's detection models as models of a batch of images."""

from __future__ import annotations

from typing import Dict, List  # noqa: UP035 (TorchScript's names)

from torch import Tensor, nn

_ROOM = "torchvision.models.detection."


def is_detector(module: nn.Module) -> bool:
    """Whether it is one of torchvision's, which take a list of images, or a class made from one."""
    classes = [c for c in type(module).__mro__ if c.__module__.startswith(_ROOM)]
    return bool(classes) and hasattr(module, "transform")


class Detector(nn.Module):
    """A detection model that takes a batch, (N, 3, H, W) with values from 0 to 1, and returns for
    each image its `boxes`, `labels`, `scores` and what else the model finds.

    The model resizes and normalizes by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if hasattr(model, "_has_warned"):
            # In TorchScript the model warns that it returns its losses too; here it does not.
            model._has_warned = True  # type: ignore[assignment]

    def forward(self, images: Tensor) -> List[Dict[str, Tensor]]:  # noqa: UP006
        """The detections of each image."""
        result = self.model(list(images.unbind(0)))
        if isinstance(result, tuple):  # in TorchScript, where the losses come first
            return result[1]
        return result
