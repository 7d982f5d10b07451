"""The models and images of `make zoo`: torchvision's architectures with random weights.

Random weights have the shapes and the speed of trained ones. Their batch norms get statistics from
images, because without them activations grow or fade from layer to layer and no 8-bit range fits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlock

SEED = 7
CALIBRATION, EVALUATION = range(8), range(8, 12)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

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
TRANSFORMERS = ("vit_b_16", "swin_t")
NAMES = CLASSIFICATION + SEGMENTATION

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# torchvision's ConvNeXt starts with branches of one millionth of the main path, in which int8 could
# do anything unseen; its ViT starts with a last layer of zeros. Neither is so after training.
_LAYER_SCALE = 0.1
_HEAD_SCALE = 0.02


def side(name: str) -> int:
    """Height and width of a model's input in pixels."""
    return 299 if name == "inception_v3" else 224


def build(name: str) -> nn.Module:
    """The model that a qconfig of the zoo names: the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = skeleton(name)
        _wake(model)
    _set_statistics(model, side(name))
    return model


def skeleton(name: str) -> nn.Module:
    """The architecture as torchvision initializes it, in eval mode."""
    options: dict[str, object] = {"weights": None}
    if name in SEGMENTATION:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": True, "aux_logits": False, "transform_input": False}
    return models.get_model(name, **options).eval()


def picture(index: int, pixels: int) -> np.ndarray:
    """An RGB image (pixels, pixels, 3) of uint8: fields with waves in some discs and half-planes,
    the texture of photographs over them, and the grain of a sensor.

    An index gives the same picture at every size, but for texture and grain. Without these a random
    network's filters of high frequency see next to nothing, and batch norms make noise of it.
    """
    generator = np.random.default_rng([SEED, index])
    steps = (np.arange(pixels) + 0.5) / pixels
    y, x = np.meshgrid(steps, steps, indexing="ij")
    image = _field(generator, x, y)
    for shape in range(8):
        if shape % 2:
            (a, b), radius = generator.uniform(0, 1, 2), generator.uniform(0.05, 0.3)
            inside = (x - a) ** 2 + (y - b) ** 2 < radius**2
        else:
            angle, distance = generator.uniform(0, 2 * np.pi), generator.uniform(0.1, 0.5)
            inside = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) > distance
        image = np.where(inside[..., None], _field(generator, x, y), image)
    image = image + 0.1 * _texture(generator, pixels) + generator.normal(0, 0.02, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _texture(generator: np.random.Generator, pixels: int) -> np.ndarray:
    """Noise of variance 1 with amplitudes as 1 / frequency, as in photographs (Field 1987)."""
    frequencies = np.fft.fftfreq(pixels)
    radius = np.hypot(frequencies[:, None], frequencies[None])
    radius[0, 0] = np.inf  # no mean
    noise = generator.normal(size=(pixels, pixels, 3))
    spectrum = np.fft.fft2(noise, axes=(0, 1)) / radius[..., None]
    texture = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return texture / texture.std()


def _field(generator: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A colour and waves around it; as in photographs, the shorter a wave the weaker it is."""
    image = np.broadcast_to(generator.uniform(0.1, 0.9, 3), (*x.shape, 3)).copy()
    for _ in range(12):
        frequency = 2 ** generator.uniform(0, 5)
        angle, phase = generator.uniform(0, 2 * np.pi, 2)
        wave = np.cos(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        tint = generator.normal(1, 0.3, 3)
        image += 0.15 / frequency**0.5 * wave[..., None] * tint
    return image


def _wake(model: nn.Module) -> None:
    """Gives layers that start with nothing something to do."""
    for module in model.modules():
        if isinstance(module, CNBlock):
            nn.init.constant_(module.layer_scale, _LAYER_SCALE)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=_HEAD_SCALE)


def _set_statistics(model: nn.Module, pixels: int) -> None:
    """Batch norms keep the statistics of the calibration images, taken in one batch; dropout and
    all else stays in eval mode, so that these are the activations that eval mode will have."""
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    if not norms:
        return
    images = np.stack([picture(index, pixels) for index in CALIBRATION])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    batch = (batch - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
