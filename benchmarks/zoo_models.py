"""The models of `make zoo` and `make zoo-all`: torchvision's and timm's architectures with random
weights, which have the shapes and the speed of trained ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import timm
import torch
import zoo_detection
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from zoo_images import FRAMES, MEAN, SEED, STD, frames, normalized, pixels_of
from zoo_weights import set_statistics, wake

# The quick zoo.
CLASSIFICATION = (
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x2_0",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "densenet121",
    "googlenet",
    "inception_v3",
    "squeezenet1_1",
    "vgg11_bn",
    "alexnet",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
)
SEGMENTATION = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50")
QUICK = CLASSIFICATION + SEGMENTATION

# One model of each of 40 of timm's families (a module of timm.models, but for the hybrids that
# share one), the smallest or the most usual, chosen for what people use and not for what converts.
TIMM = (
    # convolutional
    "byobnet/repvgg_a0",
    "convnext/convnext_nano",
    "cspnet/cspresnet50",
    "densenet/densenet121",
    "dla/dla34",
    "dpn/dpn68",
    "efficientnet/efficientnet_b0",
    "ghostnet/ghostnet_100",
    "hgnet/hgnetv2_b0",
    "hrnet/hrnet_w18_small",
    "inception_next/inception_next_tiny",
    "metaformer/poolformer_s12",
    "mobilenetv3/mobilenetv3_large_100",
    "nfnet/eca_nfnet_l0",
    "regnet/regnety_008",
    "res2net/res2net50_26w_4s",
    "resnest/resnest14d",
    "resnet/resnet26d",
    "resnetv2/resnetv2_50",
    "rexnet/rexnet_100",
    "sknet/skresnet18",
    "starnet/starnet_s1",
    "tresnet/tresnet_m",
    "vovnet/ese_vovnet19b_dw",
    # with attention, or mixing positions by linear layers
    "cait/cait_xxs24_224",
    "davit/davit_tiny",
    "edgenext/edgenext_small",
    "efficientformer/efficientformer_l1",
    "fastvit/fastvit_t8",
    "levit/levit_128",
    "maxxvit/coatnet_nano_rw_224",
    "mlp_mixer/mixer_s16_224",
    "mobilevit/mobilevit_s",
    "pvt_v2/pvt_v2_b0",
    "swin_transformer/swin_tiny_patch4_window7_224",
    "swin_transformer_v2/swinv2_tiny_window8_256",
    "tiny_vit/tiny_vit_5m_224",
    "twins/twins_svt_small",
    "vision_transformer/vit_small_patch16_224",
    "xcit/xcit_nano_12_p16_224",
)
_TIMM = "timm:"

MOST_PARAMETERS = 110_000_000
# In the order in which they run: what is usual and fast comes first.
SECTIONS = ("classification", "quantization", "timm", "segmentation", "video", "detection")
FEW = ("video", "detection")  # slow, and judged by fewer pictures


@cache
def selection() -> tuple[list[str], dict[str, int]]:
    """The names of the whole zoo in the order in which they run, and the parameters of those of
    torchvision's that are too large for it. Optical flow takes pairs of images and is left out."""
    names, large = [_TIMM + name.partition("/")[2] for name in TIMM], {}
    for name in models.list_models():
        if section(name) not in SECTIONS:
            continue
        if (count := parameters(name)) < MOST_PARAMETERS:
            names.append(name)
        else:
            large[name] = count
    return sorted(names, key=lambda name: SECTIONS.index(section(name))), large


def section(name: str) -> str:
    """What a model is for, as torchvision's folders say it; `timm` for all of timm's."""
    if name.startswith(_TIMM):
        return "timm"
    parts = models.get_model_builder(name).__module__.split(".")
    return parts[2] if len(parts) > 3 else "classification"


def side(name: str) -> int:
    """Height and width of a model's input in pixels."""
    if name.startswith(_TIMM):
        return int(timm.get_pretrained_cfg(name.removeprefix(_TIMM)).input_size[-1])
    if section(name) == "video":  # the residual networks' training had small frames
        return 112 if name.endswith("_18") else 224
    if section(name) == "detection":
        return zoo_detection.SIDE
    return 299 if "inception_v3" in name else 224


def picture_side(name: str) -> int:
    """Height and width of its pictures: a clip moves over a larger one."""
    return side(name) * 8 // 7 if section(name) == "video" else side(name)


def pictures(name: str) -> tuple[range, range]:
    """Which pictures to calibrate with, and which to judge by."""
    return (range(4), range(8, 10)) if section(name) in FEW else (range(8), range(8, 12))


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel; detection models have their own inside."""
    if section(name) == "detection":
        return (0.0,) * 3, (1.0,) * 3
    if name.startswith(_TIMM):
        config = timm.get_pretrained_cfg(name.removeprefix(_TIMM))
        return tuple(config.mean), tuple(config.std)
    return MEAN, STD


def build(name: str) -> nn.Module:
    """The model that a qconfig of the zoo names: the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = skeleton(name)
        wake(model)
    images = batch(name, pictures(name)[0])
    set_statistics(model, lambda: model(images))
    if section(name) == "detection":
        zoo_detection.set_threshold(model, images[:2])
    return model


def skeleton(name: str) -> nn.Module:
    """The architecture as its library initializes it, in eval mode."""
    if name.startswith(_TIMM):
        return timm.create_model(name.removeprefix(_TIMM), pretrained=False).eval()
    builder = models.get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    if "googlenet" in name or "inception_v3" in name:
        options |= {"init_weights": True, "aux_logits": False, "transform_input": False}
    if section(name) == "quantization":
        options["quantize"] = False
    if section(name) == "detection":
        options |= zoo_detection.options(name)
    return builder(**options).eval()


def batch(name: str, indices: range) -> Tensor | list[Tensor]:
    """Pictures as the model takes them; a list for detection models."""
    images = [pixels_of(index, picture_side(name)) for index in indices]
    if section(name) == "detection":
        return images
    if section(name) == "video":
        return torch.stack([frames(image) for image in images])
    return torch.stack([normalized(image, *normalization(name)) for image in images])


class _WeightsNowhere(TorchFunctionMode):
    """Weights take no memory and no time to initialize, as with `torch.device("meta")`, but a
    constructor may compute with other tensors (torchvision's RegNet does)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.empty:
            return func(*args, **(kwargs or {}) | {"device": "meta"})
        return func(*args, **kwargs or {})


def parameters(name: str) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in _weightless(name).parameters())


def _weightless(name: str) -> nn.Module:
    """The architecture without weights, as far as its constructor can do without."""
    for nowhere in (torch.device("meta"), _WeightsNowhere()):
        with suppress(RuntimeError), nowhere:
            return skeleton(name)
    return skeleton(name)


def convolution_share(name: str) -> float:
    """The part of a model's multiply-accumulates that are in convolutions: a network with more than
    0.9 of them is a convolutional one."""
    if section(name) != "detection":  # where boxes decide about shapes
        frame = (FRAMES,) if section(name) == "video" else ()
        x = torch.empty(1, 3, *frame, side(name), side(name), device="meta")
        with suppress(RuntimeError), torch.device("meta"):
            return _convolution_share(_weightless(name).to("meta"), x)
    return _convolution_share(skeleton(name), batch(name, range(1)))


def _convolution_share(model: nn.Module, x: Tensor | list[Tensor]) -> float:
    attention = torch.nn.attention.SDPBackend.MATH  # one operator otherwise, which is not counted
    model.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.nn.attention.sdpa_kernel(attention),
            torch.no_grad(),
        ):
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(n for operator, n in counts.items() if "convolution" in str(operator))
    return convolutions / max(counter.get_total_flops(), 1)
