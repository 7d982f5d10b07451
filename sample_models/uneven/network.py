"""UnevenNet: a small network for 28x28 grey images whose channels differ in size by far.

What the blocks add is concatenated, as DenseNet's (Huang et al. 2017, arXiv:1608.06993), without an
activation in between: a channel may be of any size there if whoever reads it scales it back. int8
has one scale for all channels of a tensor.
"""

import torch
from torch import Tensor, nn

WIDTH, BLOCKS = 16, 3


class Block(nn.Module):
    """What one block adds: a 3x3 and a 1x1 convolution."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.reads = nn.Conv2d(channels_in, 2 * WIDTH, 3, padding=1)
        self.relu = nn.ReLU()
        self.writes = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.writes(self.relu(self.reads(x)))


class UnevenNet(nn.Module):
    """Maps (batch, 1, 28, 28) normalized float images to (batch, classes) logits."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(WIDTH * (i + 1)) for i in range(BLOCKS))
        self.last = nn.Conv2d(WIDTH * (BLOCKS + 1), 64, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.head(self.relu(self.last(x)).mean((2, 3)))

    @torch.no_grad()
    def make_uneven(self, largest: float, seed: int = 0) -> None:
        """Scales the concatenated channels by factors from 1 to `largest`, in drawn order, and what
        reads them back: computes the same in float."""
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.logspace(0, 1, WIDTH * (BLOCKS + 1)) ** torch.tensor(largest).log10()
        sizes = sizes[torch.randperm(len(sizes), generator=generator)]
        writers = [self.stem, *(block.writes for block in self.blocks)]
        readers = [*(block.reads for block in self.blocks), self.last]
        for i, (writer, reader) in enumerate(zip(writers, readers, strict=True)):
            own = sizes[WIDTH * i : WIDTH * (i + 1)]
            writer.weight *= own.view(-1, 1, 1, 1)
            writer.bias *= own
            reader.weight /= sizes[: WIDTH * (i + 1)].view(1, -1, 1, 1)


def uneven_net(classes: int = 10) -> UnevenNet:
    """Builds the network with random weights."""
    return UnevenNet(classes)
