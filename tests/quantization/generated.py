"""Small networks by seed, for tests that compare many of them with the reference.

Each takes one image tensor and has a handful of operators, with the shapes, settings and weights
that conversions get wrong: odd channel counts, strides that do not divide, dilations, branches,
dead channels, ranges without width.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[nn.Module, list[Tensor]], Tensor]
_LARGEST = 24_000  # elements of one value


class Steps(nn.Module):
    """Runs steps one after the other; each reads the values of all before it, the input first."""

    def __init__(self, modules: dict[str, nn.Module], steps: list[Step]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._steps = steps

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self._steps:
            values.append(step(self, values))
        return values[-1]


@dataclass(frozen=True)
class Network:
    """A network in eval mode, images to calibrate it on and others to try, (N, ...) each."""

    seed: int
    module: nn.Module
    calibration: Tensor
    images: Tensor


def network(seed: int) -> Network:
    """The network of a seed, the same on every machine."""
    rng = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        builder = _Builder(rng)
        builder.build()
        module = Steps(builder.modules, builder.steps).eval().requires_grad_(False)
        shape, scale = builder.shape, rng.choice([0.05, 1, 1, 1, 8])
        calibration, images = torch.randn(4, *shape), torch.randn(5, *shape) * 1.2
        if rng.random() < 0.3:
            calibration, images = calibration.abs(), images.abs()
        return Network(seed, module, calibration * scale, images * scale)


class _Builder:
    """Adds steps, and runs each on an example to know the shapes; `at` is the current value."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        kinds = ["2d"] * 14 + ["1d", "3d", "linear"]
        self.family = rng.choice(kinds)
        self.axes = {"1d": 1, "2d": 2, "3d": 3, "linear": 0}[self.family]
        longest = {0: 40, 1: 20, 2: 20, 3: 9}[self.axes]
        size = [rng.randint(7, longest) for _ in range(self.axes)]
        self.shape = (rng.randint(1, 5) if self.axes else rng.randint(3, 70), *size)
        self.values = [torch.randn(2, *self.shape)]
        self.at = 0

    def build(self) -> None:
        """First a layer, then blocks, then a head."""
        layer = self.linear if self.axes == 0 else self.conv
        layer()
        self.activate()
        for _ in range(self.rng.randint(1, 3)):
            if self.axes == 0:
                self.rng.choice([self.linear, self.linear_sum])()
                self.activate()
            else:
                self.block()
        self.head()

    # The parts of which steps are made.

    @property
    def value(self) -> Tensor:
        return self.values[self.at]

    def step(self, step: Step) -> int:
        """Adds one and makes its result the current value."""
        holder = Steps(self.modules, []).eval()
        with torch.no_grad():
            result = step(holder, [value.clone() for value in self.values])
        self.steps.append(step)
        self.values.append(result)
        self.at = len(self.values) - 1
        return self.at

    def module(self, module: nn.Module) -> int:
        """A step that calls a new module on the current value."""
        name = f"{type(module).__name__.lower()}{len(self.modules)}"
        self.modules[name] = module
        return self.call(name)

    def call(self, name: str) -> int:
        at = self.at
        return self.step(lambda net, values: getattr(net, name)(values[at]))

    def function(self, function: Callable[[Tensor], Tensor]) -> int:
        at = self.at
        return self.step(lambda net, values: function(values[at]))

    def both(self, function: Callable[[Tensor, Tensor], Tensor], a: int, b: int) -> int:
        return self.step(lambda net, values: function(values[a], values[b]))

    # Layers.

    def channels(self) -> int:
        wide = [64, 104, 116, 120] if self.value[0, 0].numel() <= 150 else [32]
        return self.rng.choice([1, 3, 5, 7, 8, 12, 16, 24, 33, *wide])

    def conv(self, channels: int | None = None, same: bool = False) -> int:
        """A convolution with whatever settings fit, maybe with a batch norm."""
        rng, axes = self.rng, self.axes
        channels_in, size = self.value.shape[1], self.value.shape[2:]
        kernel, stride, padding, dilation = [], [], [], []
        for length in size:
            k = rng.choice([1, 3, 5] if same else [1, 1, 2, 3, 3, 4, 5])
            d = rng.choice([1, 1, 1, 2])
            if same or d * (k - 1) + 1 > length or rng.random() < 0.6:
                p = d * (k - 1) // 2
            else:
                p = rng.randint(0, k)
            if d * (k - 1) + 1 > length + 2 * p:
                k, d, p = 1, 1, 0
            kernel.append(k)
            dilation.append(d)
            padding.append(p)
            stride.append(1 if same else rng.choice([1, 1, 1, 2, 3]))
        if rng.random() < 0.7:  # square
            kernel, stride, padding, dilation = (
                [v[0]] * axes for v in (kernel, stride, padding, dilation)
            )
            if any(dilation[0] * (kernel[0] - 1) + 1 > n + 2 * padding[0] for n in size):
                kernel, padding, dilation = [1] * axes, [0] * axes, [1] * axes
        groups = 1
        channels = channels or self.channels()
        if rng.random() < 0.35:
            if rng.random() < 0.6 and (not same or channels == channels_in):
                groups, channels = channels_in, channels_in * (1 if same else rng.choice([1, 1, 2]))
            else:
                shared = [g for g in (2, 3, 4, 5) if channels_in % g == 0 and channels % g == 0]
                groups = rng.choice(shared) if shared else 1
        factory = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        layer = factory(
            channels_in, channels, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation),
            groups, bias=rng.random() < 0.7,
        )  # fmt: skip
        self.strange(layer)
        functional = axes == 2 and rng.random() < 0.1
        at = self.functional_conv(layer) if functional else self.module(layer)
        if rng.random() < 0.4:
            at = self.norm()
        return at

    def functional_conv(self, layer: nn.Conv2d) -> int:
        """A layer whose weights are parameters of something else."""
        name = f"weights{len(self.modules)}"
        held = {"weight": layer.weight, "bias": layer.bias}
        given = [key for key, value in held.items() if value is not None]
        self.modules[name] = nn.ParameterDict({key: held[key] for key in given})
        at, settings = self.at, (layer.stride, layer.padding, layer.dilation, layer.groups)

        def step(net: nn.Module, values: list[Tensor]) -> Tensor:
            parameters = {key: getattr(net, name)[key] for key in given}
            weight, bias = parameters["weight"], parameters.get("bias")
            return F.conv2d(values[at], weight, bias, *settings)

        return self.step(step)

    def linear(self, outputs: int | None = None) -> int:
        layer = nn.Linear(self.value.shape[-1], outputs or self.rng.choice([1, 5, 16, 33, 64]))
        self.strange(layer)
        return self.module(layer)

    def linear_sum(self) -> int:
        before = self.at
        self.linear(self.value.shape[-1])
        return self.both(torch.add, before, self.at)

    def norm(self) -> int:
        """A batch norm with the statistics of a trained one."""
        factory = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[self.axes]
        norm = factory(self.value.shape[1], affine=self.rng.random() < 0.8)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 2)
        if norm.affine:
            norm.weight.data.uniform_(-1.5, 1.5)
            norm.bias.data.normal_()
        return self.module(norm.eval())

    def strange(self, layer: nn.Module) -> None:
        """Sometimes gives a layer weights of an unusual range."""
        weight, bias = layer.weight.data, layer.bias
        kind = self.rng.random()
        if kind < 0.08:
            weight.mul_(30)
        elif kind < 0.14:
            weight.mul_(1e-3)
        elif kind < 0.20:
            weight[self.rng.randrange(len(weight))] = 0
        elif kind < 0.23:
            weight.zero_()
        elif kind < 0.27:
            weight[self.rng.randrange(len(weight))] *= 1e-5
        elif kind < 0.30:
            weight.mul_(1e4)
        elif kind < 0.36:
            weight.abs_()
        elif kind < 0.40:
            weight.copy_(weight.abs().neg())
        if bias is not None and self.rng.random() < 0.15:
            bias.data.mul_(20)

    # Activations.

    def activate(self) -> int:
        """An activation, or none."""
        rng = self.rng
        channels = self.value.shape[1]
        choices: list[Callable[[], int]] = [
            lambda: self.at,
            lambda: self.module(nn.ReLU()),
            lambda: self.module(nn.ReLU(inplace=True)),
            lambda: self.function(F.relu),
            lambda: self.function(lambda x: x.relu()),
            lambda: self.module(nn.ReLU6()),
            lambda: self.function(F.relu6),
            lambda: self.function(lambda x: torch.clamp(x, 0.0, 1.5)),
            lambda: self.function(lambda x: x.clamp(-0.5, 1.0)),
            lambda: self.module(nn.Hardtanh(-1, 2)),
            lambda: self.module(nn.LeakyReLU(rng.choice([0.01, 0.2]))),
            lambda: self.function(lambda x: F.leaky_relu(x, 0.1)),
            lambda: self.module(nn.PReLU(channels)),
            lambda: self.module(nn.ELU()),
            lambda: self.module(nn.Hardswish()),
            lambda: self.function(F.hardswish),
            lambda: self.module(nn.SiLU()),
            lambda: self.function(F.silu),
            lambda: self.module(nn.GELU()),
            lambda: self.module(nn.GELU(approximate="tanh")),
            lambda: self.module(nn.Sigmoid()),
            lambda: self.module(nn.Hardsigmoid()),
            lambda: self.module(nn.Tanh()),
        ]
        return rng.choice(choices if rng.random() < 0.6 else choices[1:6])()

    # Blocks.

    def block(self) -> None:
        """One of them; those that need an image of two axes are for such."""
        rng = self.rng
        blocks = [self.plain, self.residual, self.joined, self.product, self.repeated, self.pooled]
        if self.axes == 2:
            blocks += [
                self.plain, self.depthwise, *[self.residual] * 4, self.joined,
                self.halves, self.squeezed, self.pooled, self.rearranged, self.resized,
                self.transposed, self.normed,
            ]  # fmt: skip
        rng.choice(blocks)()

    def plain(self) -> None:
        self.conv()
        self.activate()

    def depthwise(self) -> None:
        """Wide, with channel counts that kernels find hard."""
        wide = self.rng.choice([5, 13, 24, 104, 116, 120, 128])
        while wide * self.value[0, 0].numel() > _LARGEST:
            self.module(nn.MaxPool2d(2))
        self.module(nn.Conv2d(self.value.shape[1], wide, 1))
        self.activate()
        kernel, dilation = self.rng.choice([3, 3, 5]), self.rng.choice([1, 1, 2])
        layer = nn.Conv2d(
            wide, wide, kernel, self.rng.choice([1, 2]), dilation * (kernel // 2), dilation, wide
        )
        self.strange(layer)
        self.module(layer)
        self.activate()

    def residual(self) -> None:
        """An addition of a layer and what it read, or of two layers."""
        rng = self.rng
        before = self.at
        channels = self.value.shape[1]
        if rng.random() < 0.25:
            # In place: the skip connection reads what the activation has changed.
            self.conv(channels, same=True)
            before = self.at
            self.module(nn.ReLU(inplace=True))
        elif rng.random() < 0.7:
            self.conv(channels, same=True)
            self.activate()
        self.conv(channels, same=True)
        after = self.at
        if rng.random() < 0.3:
            self.at = before
            self.conv(channels, same=True)
            before = self.at
        a, b = (before, after) if rng.random() < 0.5 else (after, before)
        self.both(rng.choice([torch.add, lambda x, y: x + y]), a, b)
        if rng.random() < 0.6:
            self.activate()
        if rng.random() < 0.2:
            # Reads the term again, which a fused sum would overwrite.
            self.both(torch.add, self.at, before)

    def joined(self) -> None:
        """A concatenation of two or three branches."""
        rng, before = self.rng, self.at
        parts = []
        for _ in range(rng.randint(2, 3)):
            self.at = before
            if rng.random() < 0.75:
                self.conv(rng.choice([3, 8, 5, 16]), same=True)
                self.activate()
            elif rng.random() < 0.5 and self.axes == 2:
                self.module(nn.MaxPool2d(3, 1, 1))
            parts.append(self.at)
        name = rng.choice(["dim", "axis"])
        self.step(
            lambda net, values: torch.cat([values[i] for i in parts], **{name: 1})  # type: ignore
        )

    def product(self) -> None:
        """A product of two values of one shape."""
        before = self.at
        self.conv(self.value.shape[1], same=True)
        if self.rng.random() < 0.5:
            self.activate()
        self.both(self.rng.choice([torch.mul, lambda x, y: x * y]), before, self.at)
        if self.rng.random() < 0.3:
            self.module(nn.ReLU())

    def repeated(self) -> None:
        """A module that is called twice."""
        channels = self.value.shape[1]
        factory = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.axes]
        layer = factory(channels, channels, 3, padding=1)
        self.strange(layer)
        self.module(layer)
        name = next(n for n, m in self.modules.items() if m is layer)
        self.activate()
        self.call(name)
        if self.rng.random() < 0.5:
            self.activate()

    def pooled(self) -> None:
        """A pooling."""
        rng, axes = self.rng, self.axes
        if min(self.value.shape[2:]) < 4:
            return
        kernel = rng.choice([2, 3])
        stride, padding, ceil = rng.choice([1, 2, 3]), rng.randint(0, 1), rng.random() < 0.3
        largest = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[axes]
        average = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[axes]
        adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
        included = rng.random() < 0.5
        functional = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[axes]
        choices = [
            lambda: self.module(largest(kernel, stride, padding, ceil_mode=ceil)),
            lambda: self.module(largest(kernel, stride, padding, dilation=1)),
            lambda: self.function(lambda x: functional(x, kernel, stride, padding)),
            lambda: self.module(average(kernel, stride, padding, ceil, included)),
            lambda: self.module(adaptive[axes](rng.choice([2, 3]))),
        ]
        rng.choice(choices)()
        if rng.random() < 0.3 and axes == 2:
            self.activate()

    def halves(self) -> None:
        """A split of the channels, a layer on one part, both joined and shuffled."""
        if self.value.shape[1] % 2:
            self.module(nn.Conv2d(self.value.shape[1], 16, 1))
        channels = self.value.shape[1] // 2
        before = self.at
        first = self.step(lambda net, values: values[before].chunk(2, 1)[0])
        self.at = before
        self.step(lambda net, values: values[before].chunk(2, dim=1)[1])
        self.conv(channels, same=True)
        self.activate()
        self.both(lambda a, b: torch.cat([a, b], 1), first, self.at)
        if self.rng.random() < 0.7:
            self.shuffled(2)

    def shuffled(self, groups: int) -> None:
        def by_hand(x: Tensor) -> Tensor:
            n, c, h, w = x.shape
            return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

        if self.rng.random() < 0.5:
            self.function(by_hand)
        else:
            self.module(nn.ChannelShuffle(groups))

    def squeezed(self) -> None:
        """Squeeze and excitation."""
        before, channels = self.at, self.value.shape[1]
        if self.rng.random() < 0.5:
            self.module(nn.AdaptiveAvgPool2d(1))
        else:
            self.function(lambda x: x.mean((2, 3), keepdim=True))
        self.module(nn.Conv2d(channels, 4, 1))
        self.module(nn.ReLU())
        self.module(nn.Conv2d(4, channels, 1))
        self.module(self.rng.choice([nn.Sigmoid, nn.Hardsigmoid])())
        self.both(torch.mul, before, self.at)

    def rearranged(self) -> None:
        """Values at other places."""
        rng, channels = self.rng, self.value.shape[1]
        choices = [
            lambda: self.module(nn.ZeroPad2d((1, 2, 0, 1))),
            lambda: self.function(lambda x: F.pad(x, (1, 1, 2, 0))),
            lambda: self.function(lambda x: x[:, :, 1:, ::2]),
            lambda: self.function(lambda x: x.permute(0, 1, 3, 2)),
            lambda: self.function(lambda x: x.transpose(2, 3).contiguous()),
        ]
        if channels % 4 == 0:
            choices += [lambda: self.module(nn.PixelShuffle(2)), lambda: self.shuffled(4)]
        rng.choice(choices)()
        self.conv()
        self.activate()

    def resized(self) -> None:
        mode = self.rng.choice(["nearest", "nearest", "bilinear"])
        if self.value[0].numel() > _LARGEST // 4:
            self.module(nn.MaxPool2d(2))
        if self.rng.random() < 0.5:
            self.module(nn.Upsample(scale_factor=2, mode=mode))
        else:
            self.function(lambda x: F.interpolate(x, size=(9, 11), mode=mode))
        self.conv()

    def transposed(self) -> None:
        if self.value[0].numel() > _LARGEST // 4:
            self.module(nn.MaxPool2d(2))
        channels = self.rng.choice([4, 7])
        self.module(nn.ConvTranspose2d(self.value.shape[1], channels, 2, 2))
        self.activate()
        self.conv()

    def normed(self) -> None:
        """A batch norm that no layer can take."""
        before = self.at
        self.conv(self.value.shape[1], same=True)
        self.both(torch.add, before, self.at)
        self.norm()
        self.activate()
        if self.rng.random() < 0.5:
            self.conv()

    def head(self) -> None:
        """What a network ends with."""
        rng = self.rng
        if self.axes == 0:
            if rng.random() < 0.5:
                self.linear(10)
            return
        kind = rng.random()
        if kind < 0.35:
            adaptive = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
            self.module(adaptive[self.axes](1))
            self.module(nn.Flatten())
            self.linear(10)
        elif kind < 0.6 and self.value[0].numel() < 4000:
            flatten = rng.choice([
                lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1),
                lambda x: x.flatten(1),
            ])  # fmt: skip
            self.function(flatten)
            self.linear(10)
            self.activate()
        elif kind < 0.8:
            self.conv(rng.choice([1, 4, 10]))
        elif kind < 0.9:
            axes = tuple(range(2, 2 + self.axes))
            self.function(lambda x: x.mean(axes))
