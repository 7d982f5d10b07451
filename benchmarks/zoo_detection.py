"""torchvision's detection models with random weights: scores that are all alike, so that thresholds
made for trained ones would let no box pass, or all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 320
# Each box costs a mask or a pose: as many as a usual image has, and not the 100 that are allowed.
MOST_BOXES = 10
# So many pairs of box and class are above the threshold, as with trained weights.
CANDIDATES = 300


def options(name: str) -> dict[str, Any]:
    """Arguments of a builder; SSD has a size and a threshold of its own."""
    if name.startswith("ssd"):
        return {}
    size = {"min_size": SIDE, "max_size": SIDE}
    if name.startswith(("retinanet", "fcos")):
        return size
    # Low at first: the masks' batch norms need boxes to have statistics of.
    return size | {"box_score_thresh": 0.015, "box_detections_per_img": MOST_BOXES}


def set_threshold(model: nn.Module, images: Iterable[Tensor]) -> None:
    """In each of the images at least `CANDIDATES` scores are above it."""
    last: list[Any] = []
    owner: Any = getattr(model, "roi_heads", model)
    head: Any = owner.head if owner is model else owner.box_predictor
    with torch.no_grad(), head.register_forward_hook(lambda *called: last.append(called[2])):
        for image in images:
            model([image])
    owner.score_thresh = min(
        round(_scores(model, out).flatten().topk(CANDIDATES).values[-1].item(), 5) for out in last
    )


def _scores(model: nn.Module, out: Any) -> Tensor:
    """What a model compares with its threshold, from what its head returns."""
    if isinstance(out, tuple):  # logits and boxes of R-CNN; the first class is the background
        return out[0].softmax(-1)[..., 1:]
    logits = out["cls_logits"]
    if "bbox_ctrness" in out:  # FCOS
        return (logits.sigmoid() * out["bbox_ctrness"].sigmoid()).sqrt()
    return logits.softmax(-1)[..., 1:] if "SSD" in type(model).__name__ else logits.sigmoid()
