"""Small networks, each with something that a naive conversion gets wrong. Input (N, 3, 24, 24).

"Trap 4" and so on are the measured failures of such conversions that each network stands for.
"""

import torch
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub
from torch.nn import functional as F


def head(channels: int) -> list[nn.Module]:
    """Pooling and ten outputs."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def conv(channels_in: int, channels: int, **kwargs: int) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    return [
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False, **kwargs),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]


def plain() -> nn.Module:
    """Three convolutions."""
    return nn.Sequential(*conv(3, 16), *conv(16, 32, stride=2), *conv(32, 32), *head(32))


class Residual(nn.Module):
    """Traps 5 and 7: `view`, one ReLU module used twice; an addition, a concatenation, poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 16))
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(32 * 6 * 6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(x + self.bn2(self.conv2(y)))
        y = F.avg_pool2d(torch.cat([y, x], 1), 2)
        return self.head(y.view(y.size(0), -1))


class Prelu(nn.Module):
    """Trap 4: convolutions with PReLU, which has no int8 operator here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(3, 16, 3), nn.PReLU(16)
        self.conv2, self.act2 = nn.Conv2d(16, 16, 3), nn.PReLU(16)
        self.head = nn.Sequential(*head(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.conv2(self.act1(self.conv1(x)))))


class SamePadding(nn.Conv2d):
    """A subclass of Conv2d that pads by itself, as EfficientNet-Lite's."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


def subclassed() -> nn.Module:
    """Trap 6: batch norms after a subclass."""
    return nn.Sequential(
        SamePadding(3, 16, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        SamePadding(16, 16, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *head(16),
    )  # fmt: skip


def relu6() -> nn.Module:
    """An inverted residual's layers; the first convolution's results go far beyond 6."""
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU6(inplace=True),
        nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.ReLU6(inplace=True),
        nn.Conv2d(24, 8, 1), *head(8),
    )  # fmt: skip
    network[0].weight.data *= 20
    return network


def odd_depthwise() -> nn.Module:
    """Trap 9: at 116 channels fbgemm's depthwise kernel is slower than float."""
    return nn.Sequential(*conv(3, 116), *conv(116, 116, groups=116), *head(116))


def unpadded_depthwise() -> nn.Module:
    """A filter that does not keep the size: the same."""
    return nn.Sequential(
        *conv(3, 120),
        nn.Conv2d(120, 120, 3, groups=120),
        nn.BatchNorm2d(120),
        nn.ReLU(),
        *head(120),
    )


def dilated_depthwise() -> nn.Module:
    """Trap 9: at a dilation, too."""
    return nn.Sequential(*conv(3, 120), *conv(120, 120, groups=120, dilation=2), *head(120))


class Recurrent(nn.Module):
    """Trap 11: an LSTM over the columns of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*conv(3, 16, stride=2))
        self.lstm = nn.LSTM(16 * 12, 8, batch_first=True)
        self.head = nn.Linear(8 * 12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(x)[0].flatten(1))


def dead_channel() -> nn.Module:
    """Trap 3: a layer whose result is always zero, a range without width."""
    network = plain()
    network[3].weight.data.zero_()
    network[4].register_buffer("running_mean", torch.zeros(32))
    return nn.Sequential(network[0], network[1], network[2], _AllZero(), *conv(16, 8), *head(8))


class _AllZero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.conv.weight.data.zero_()
        self.conv.bias.data.fill_(-1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(x))


def transposed() -> nn.Module:
    """Trap 16: a transposed convolution between others."""
    return nn.Sequential(
        *conv(3, 16, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2), nn.BatchNorm2d(8),
        nn.ReLU(), *conv(8, 8), *head(8),
    )  # fmt: skip


class OneDimension(nn.Module):
    """Conv1d over rows, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(72, 32, 3, padding=1), nn.BatchNorm1d(32)
        self.conv2, self.bn2 = nn.Conv1d(32, 16, 3), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1, 2)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(x.mean(2))


class ThreeDimensions(nn.Module):
    """Conv3d over the channels as depth."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x.unsqueeze(1))))
        return self.head(x.mean((2, 3, 4)))


class SkipSeesInPlace(nn.Module):
    """The skip connection reads what the in-place ReLU has written; its sum is the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Sequential(*head(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(F.relu(x, inplace=True))
        return self.head(x + y)


def wide_depthwise() -> nn.Module:
    """Trap 2: at 128 channels and large weights fbgemm's depthwise kernel overflows 16 bits."""
    network = nn.Sequential(
        nn.Conv2d(3, 128, 3), nn.ReLU6(), nn.Conv2d(128, 128, 3, groups=128), nn.ReLU(), *head(128)
    )
    network[0].weight.data *= 5
    network[2].weight.data = network[2].weight.data.abs() + 0.1
    return network


class Chunks(nn.Module):
    """Halves of an int8 value, and a concatenation whose axis is called `axis`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Sequential(*head(24))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        a, b = x.chunk(2, 1)
        a = F.relu(self.conv(a))
        return self.head(torch.cat([torch.cat([a, self.conv(b)], axis=1), b], dim=1))


class Constants(nn.Module):
    """A layer on a parameter, a sum with a size, a sum that broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.token = nn.Conv2d(3, 8, 3), nn.Parameter(torch.ones(1, 4))
        self.linear, self.head = nn.Linear(4, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = torch.add(x + x.size(1), x, alpha=2).mean((2, 3))
        return self.head(x + self.linear(self.token))


def pooled_map() -> nn.Module:
    """An average pooling to 4 x 4, between int8 layers."""
    return nn.Sequential(
        *conv(3, 8), nn.AdaptiveAvgPool2d(4), nn.Conv2d(8, 16, 3), nn.ReLU(), *head(16)
    )


class HugeRanges(nn.Module):
    """Trap 3: a map of 14943072256 nearly everywhere, which TorchScript's parser refuses as an
    integer, and a map whose range is 1e-12."""

    def __init__(self) -> None:
        super().__init__()
        self.huge, self.from_huge = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 10, 1)
        self.huge.weight.data *= 1e6
        self.huge.bias.data.fill_(14943072256.0)
        self.stem, self.tiny = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, bias=False)
        self.tiny.weight.data *= 1e-12
        self.conv = nn.Conv2d(8, 8, 3)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        huge = torch.sigmoid(self.from_huge(F.relu(self.huge(x))))
        x = F.relu(self.stem(x))
        return self.head(self.conv(x + F.relu(self.tiny(x)))) + huge.mean((2, 3))


class Viewed(nn.Module):
    """Trap 5: `view` of feature maps, whose int8 form is channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Sequential(*conv(3, 16, stride=2)), nn.Conv2d(4, 8, 3)
        self.head = nn.Linear(8 * 22 * 22, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(self.stem(x).view(x.size(0), 4, 24, 24)))
        return self.head(x.view(-1, 8 * 22 * 22))


class Gated(nn.Module):
    """Trap 11: a GRU in both directions, of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(72, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.permute(0, 3, 1, 2).flatten(2))[0][:, -1])


class Stubs(nn.Module):
    """Trap 17: the stubs of eager mode, which torch.fx traces through."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dequant(F.relu(self.conv1(self.quant(x))))
        return self.head(self.conv2(x.exp()))


def bordered() -> nn.Module:
    """Trap 18: a first convolution with zero padding; what it pads is the normalized image."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    network[0].weight.data = network[0].weight.data.abs() + 0.2
    return network


class SqueezeExcitation(nn.Module):
    """Channels weighted by a global average, two 1 x 1 convolutions and a sigmoid, as MobileNetV3's
    and EfficientNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Hardswish())
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.conv = nn.Conv2d(16, 8, 3)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = torch.sigmoid(self.up(F.relu(self.down(scale))))
        return self.head(F.silu(self.conv(x * scale)))


class NormAfterConcat(nn.Module):
    """Batch norms that no layer can fold, as DenseNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Sequential(*conv(3, 16)), nn.Conv2d(16, 8, 3, padding=1)
        self.norm, self.conv2 = nn.BatchNorm2d(24), nn.Conv2d(24, 8, 1)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(torch.cat([x, self.conv1(x)], 1)))
        return self.head(self.conv2(x))


class ClippedConcat(nn.Module):
    """A ReLU6 whose result shares its range with one that goes far beyond 6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 16, 3)
        self.conv3 = nn.Conv2d(32, 8, 1)
        self.conv1.weight.data *= 20
        self.conv2.weight.data *= 40
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu6(self.conv1(x)), F.relu(self.conv2(x))], 1)
        return self.head(self.conv3(x))


class Transformer(nn.Module):
    """Two blocks of a vision transformer on 36 patches: LayerNorm, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 36, 32) / 4)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    """Of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Resized(nn.Module):
    """Feature maps at three sizes, brought together by interpolation of either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.smaller = nn.Sequential(*conv(3, 8)), nn.Sequential(*conv(8, 8, stride=2))
        self.last, self.up = nn.Conv2d(16, 8, 3), nn.Upsample(scale_factor=2)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        half = self.smaller(x)
        smooth = F.interpolate(half, size=(24, 24), mode="bilinear", align_corners=False)
        return self.head(self.last(torch.cat([self.up(half) + x, smooth], 1)))


class Padded(nn.Module):
    """Values that zero is not the smallest of, padded with zeros by a module, by a function and by
    an average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 0, 2, 0))
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(n, 8, 3) for n in (3, 8, 8))
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.pad(self.conv1(x)), 3, 1, padding=1)
        return self.head(self.conv3(F.pad(self.conv2(x), (0, 2, 0, 1))))


class Shuffled(nn.Module):
    """A unit of ShuffleNet: halves, a depthwise layer, a shuffle of channels written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Sequential(*conv(3, 16)), nn.Sequential(*conv(8, 8))
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(16, 8, 3)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, dim=1)
        x = torch.cat([a, self.depthwise(self.conv(b))], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(self.last(x))


class BasicBlocks(nn.Module):
    """Two blocks of ResNet, the second with a strided convolution as its skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 16), nn.MaxPool2d(3, 2, 1))
        self.conv1, self.conv2 = (nn.Sequential(*conv(16, 16)[:2]) for _ in range(2))
        self.conv3, self.skip = nn.Sequential(*conv(16, 24, stride=2)), nn.Conv2d(16, 24, 1, 2)
        self.conv4 = nn.Sequential(*conv(24, 24)[:2])
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(*head(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.conv2(self.relu(self.conv1(x))) + x)
        y = self.conv4(self.conv3(x))
        y += self.skip(x)
        return self.head(self.relu(y))


class InvertedResiduals(nn.Module):
    """Two blocks of MobileNetV2, whose sums have no activation; its first layer and its last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_relu6(nn.Conv2d(3, 16, 3, stride=2, padding=1)))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *_relu6(nn.Conv2d(16, 48, 1)),
                *_relu6(nn.Conv2d(48, 48, 3, padding=1, groups=48)),
                nn.Conv2d(48, 16, 1),
                nn.BatchNorm2d(16),
            )
            for _ in range(2)
        )
        self.last = nn.Sequential(*_relu6(nn.Conv2d(16, 32, 1)))
        self.head = nn.Sequential(*head(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.last(x))


def _relu6(layer: nn.Conv2d) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU6(inplace=True)]


class ConstantChannels(nn.Module):
    """Trap 3, in the weights: half of the channels are biases alone, as batch norms leave them that
    training has switched off."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(n, 8, 3) for n in (3, 8, 8))
        self.conv1.weight.data *= 0.05
        self.conv2.weight.data *= 40
        self.conv2.weight.data[:4] = 0
        self.conv2.bias.data[:4] = torch.arange(1.0, 5.0)
        self.head = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
