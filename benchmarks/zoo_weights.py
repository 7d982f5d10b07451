"""Random weights that behave like trained ones: layers that start with nothing get something to do,
and batch norms get statistics from images.

Without these activations grow or fade from layer to layer, and no 8-bit range fits them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

# ConvNeXt, CaiT and many others start with branches of up to one hundredth of the main path, in
# which int8 could do anything unseen; ViT starts with a last layer of zeros, and some residual
# branches end in a norm of zeros. None of it is so after training.
_SMALL_SCALE = 0.01
_LAYER_SCALE = 0.1
_HEAD_SCALE = 0.02
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def wake(model: nn.Module) -> None:
    """Gives layers that start with nothing something to do."""
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        if isinstance(module, _LAYERS) and not weight.any():
            nn.init.normal_(weight, std=_HEAD_SCALE)
        elif weight.dim() == 1 and not weight.any():  # of a norm
            nn.init.ones_(weight)
    for name, scale in model.named_parameters():
        if not name.endswith("bias") and _is_small_constant(scale):
            nn.init.constant_(scale, _LAYER_SCALE)


def _is_small_constant(scale: Tensor) -> bool:
    """Whether it is a layer scale as it starts: one small number everywhere; or a gain of zero."""
    first = scale.detach().flatten()[:1]
    if not bool((scale == first).all()):
        return False
    return (scale.numel() == 1 and not first.any()) or 0 < abs(first.item()) <= _SMALL_SCALE


def set_statistics(model: nn.Module, run: Callable[[], Any]) -> None:
    """Batch norms keep the statistics of what they see in `run`, one batch of images.

    Dropout and all else stays in eval mode, so that these are the activations that eval mode will
    have. Frozen batch norms, as detection models have them, are set just before they compute.
    """
    modules = list(model.modules())
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    frozen = [m for m in modules if isinstance(m, FrozenBatchNorm2d)]
    if not norms and not frozen:
        return
    momenta = [norm.momentum for norm in norms]
    with ExitStack() as hooks, torch.no_grad():
        for norm in norms:
            # Only the norm itself: timm's hold a dropout or an activation too.
            norm.training, norm.momentum = True, 1.0
        for norm in frozen:
            hooks.enter_context(norm.register_forward_pre_hook(_freeze))
        run()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _freeze(norm: FrozenBatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
    """The statistics of what comes in."""
    x = inputs[0].detach()
    norm.running_mean.copy_(x.mean((0, 2, 3)))
    norm.running_var.copy_(x.var((0, 2, 3)))
