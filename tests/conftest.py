"""Fixtures that several test files share."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Gives the batch norms of a model values as after training; returns it in eval mode."""

    def fill(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor in (module.running_mean, module.bias):
                    if tensor is not None:
                        tensor.data.normal_(generator=generator)
                for tensor in (module.running_var, module.weight):
                    if tensor is not None:
                        tensor.data.uniform_(0.5, 2.0, generator=generator)
        return model.eval().requires_grad_(False)

    return fill


@pytest.fixture
def save_image() -> Callable[..., Path]:
    """Writes an image of noise, the same for the same arguments, and returns its path."""

    def save(
        path: Path, size: tuple[int, int] = (24, 16), seed: int = 0, mode: str = "RGB"
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
        return path

    return save


@pytest.fixture
def claim_size() -> Callable[[Path, int], Path]:
    """Changes the header of a PNG file, so that a small file claims to be a large square."""

    def claim(path: Path, side: int) -> Path:
        content = bytearray(path.read_bytes())
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
        return path

    return claim
