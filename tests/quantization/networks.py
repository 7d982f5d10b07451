"""Small networks, each with something that a naive conversion gets wrong. Input (N, 3, 24, 24)."""

import torch
from torch import Tensor, nn
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
    """One ReLU module used twice, an addition, a concatenation and poolings."""

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
    """Convolutions with PReLU, which has no int8 operator here."""

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
    """Batch norms after a subclass."""
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
    """116 channels: fbgemm's depthwise kernel is slower than float."""
    return nn.Sequential(*conv(3, 116), *conv(116, 116, groups=116), *head(116))


def dilated_depthwise() -> nn.Module:
    """A dilation: the same."""
    return nn.Sequential(*conv(3, 120), *conv(120, 120, groups=120, dilation=2), *head(120))


class Recurrent(nn.Module):
    """An LSTM over the columns of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*conv(3, 16, stride=2))
        self.lstm = nn.LSTM(16 * 12, 8, batch_first=True)
        self.head = nn.Linear(8 * 12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(x)[0].flatten(1))


def dead_channel() -> nn.Module:
    """A layer whose result is always zero: a range without width."""
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
    """A transposed convolution between others."""
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
    """The skip connection reads what the in-place ReLU has written."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Sequential(*head(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(F.relu(x, inplace=True))
        return self.head(x + y)


def wide_depthwise() -> nn.Module:
    """128 channels, large weights: fbgemm's depthwise kernel would overflow 16 bits."""
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
