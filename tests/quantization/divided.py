"""Networks whose code depends on what is in the image: torch.fx traces parts of them only. All take
(N, 3, 24, 24); images of noise, normalized, go both ways through their branches."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple  # noqa: UP035 (TorchScript's names)

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution with its batch norm and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Gate(nn.Module):
    """A branch with layers of its own for bright images, and one for dark ones."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.bright = nn.Sequential(block(channels, 8), nn.Conv2d(8, 8, 3))
        self.dark = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bright(x) + 1 if x.mean() > 0 else self.dark(x) - 1
        return self.head(y.mean((2, 3)))


class Routes(nn.Module):
    """Chooses between two whole branches; a part of a network beside layers of the network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = block(channels, channels), block(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x[:, :, 0].mean() > x[:, :, -1].mean():
            return self.one(x)
        return self.other(x) * 2


class GateInside(nn.Module):
    """Traceable code around a module that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.routes = block(3, 8), Routes(8)
        self.last, self.head = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.routes(x)
        return self.head(self.last(x).mean((2, 3)))


class Nested(nn.Module):
    """Kept code, below it a part, in it kept code, and in that parts again."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.again = GateInside(), GateInside()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if y.max() > 0:
            y = y - self.again(x.flip(3))
        return y


class Rounds(nn.Module):
    """Calls a part as often as the image says, at least once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step, self.head = block(3, 8), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        for _ in range(1 + int((x.mean() > 0).sum())):
            y = torch.relu(self.step(y)) - 0.1
        return self.head(y.mean((2, 3)))


class Neck(nn.Module):
    """Takes and returns a list of feature maps."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)])

    def forward(self, maps: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        fine, coarse = self.lateral[0](maps[0]), self.lateral[1](maps[1])
        fine = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return [fine, coarse]


class Pyramid(nn.Module):
    """As a detection model: a backbone, feature maps, one head for all of them, and a choice among
    what is found."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = block(3, 8), block(8, 16, 2)
        self.neck, self.head = Neck(), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        fine = self.fine(x)
        scores: List[Tensor] = []  # noqa: UP006
        for found in self.neck([fine, self.coarse(fine)]):
            scores.append(self.head(found).flatten(2))
        rows = torch.cat(scores, 2).mT.flatten(0, 1)
        best = rows[:, 0].sigmoid()
        chosen = torch.where(best > 0.5)[0]
        if chosen.numel() == 0:
            chosen = best.argmax()[None]
        return {"rows": rows[chosen], "scores": best[chosen]}


class Shared(nn.Module):
    """One module under two names, one of them in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same = block(3, 8), block(8, 8)
        self.tail = nn.Sequential(self.same, nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if x.mean() > 0:
            y = self.same(y)
        return self.tail(self.same(y)).mean((2, 3))


class Trains(nn.Module):
    """Calls what a part does not have, when it is trained."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3))

        def compute_loss(self, x: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(x, target)

    def __init__(self) -> None:
        super().__init__()
        self.head = self.Head()

    def forward(self, x: Tensor, target: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        y = self.head(x)
        if self.training:
            if target is None:
                raise ValueError("no target")
            return self.head.compute_loss(y, target)
        if y.sum() > 0:
            return y
        return -y


class EachImage(nn.Module):
    """Gives a module a list with each image of the batch."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images: List[Tensor]) -> Tensor:  # noqa: UP006
            rows: List[Tensor] = []  # noqa: UP006
            for image in images:
                rows.append(self.conv(image[None]).mean((2, 3))[0])
            return torch.stack(rows)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rows = nn.Conv2d(3, 3, 3), self.Rows()

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if y.sum() > 0:
            y = y * 2
        return self.rows(list(y.unbind(0)))


class Pairs(nn.Module):
    """Calls parts with a dict, a tuple, arguments by name, and no tensor at all."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(
            self,
            maps: Dict[str, Tensor],  # noqa: UP006
            pair: Tuple[Tensor, Tensor],  # noqa: UP006
            gain: float = 1.0,
            mask: Optional[Tensor] = None,  # noqa: UP045
        ) -> Tuple[Tensor, Tensor]:  # noqa: UP006
            x = self.conv(maps["a"] - 2 * maps["b"]) * gain
            if mask is not None:
                x = x * mask
            return x + pair[0].mean(), pair[1] * 2

    def __init__(self) -> None:
        super().__init__()
        self.joined = self.Joined()

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        y = x.flip(3)
        if x.mean() > 0:
            return self.joined({"a": x, "b": y}, pair=(x, y), gain=0.5)
        return self.joined({"a": y, "b": x}, gain=0.5, pair=(y, x))


class Counted(nn.Module):
    """Returns a number beside a tensor, as poolings of video transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        y = self.conv(x)
        return y, (y.shape[-2], y.shape[-1])


class Sized(nn.Module):
    """Its kept code calls a module whose result is not of tensors only."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def forward(self, x: Tensor) -> Tensor:
        y, (height, width) = self.counted(x)
        if y.sum() > 0:
            y = -y
        return y.sum((2, 3)) / (height * width)


class Work(nn.Module):
    """Multiplies by a weight in the code that is kept, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 1), nn.Parameter(torch.randn(5, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            y = -y
        return F.conv2d(y, self.weight).mean((2, 3))


class NoPart(nn.Module):
    """Its layers are calls of functions in the code that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight)
        if y.sum() > 0:
            y = -y
        return y.mean((2, 3))


class NoScript(nn.Module):
    """Code that neither can be traced nor compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).mean((2, 3))
        if y.sum() > 0:
            y = -y
        names = {str(i): y for i in range(2)}
        return names["{}".format(*["1"])]


DIVIDED = [
    Gate, GateInside, Nested, Rounds, Pyramid, Shared, Trains, EachImage, Pairs, Work, Sized,
]  # fmt: skip
