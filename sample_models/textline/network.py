"""TextLine: a convolutional-recurrent network that reads a line of printed text of any width.

After Shi et al. 2015 (arXiv:1507.05717): convolutions with batch norms, a bidirectional LSTM along
the line, a linear layer, and the outputs of connectionist temporal classification (Graves 2006).
"""

from torch import Tensor, nn


def _layer(channels_in: int, channels: int, pool: tuple[int, int] | None) -> nn.Sequential:
    layers = [
        nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool)] if pool else []))


class TextLine(nn.Module):
    """Maps (batch, 1, 32, width) normalized float images to (batch, width // 4, classes) logits.

    Output 0 is the blank. 0.85 million multiply-accumulates a pixel column, 1.2 million parameters.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _layer(1, 32, (2, 2)),
            _layer(32, 64, (2, 2)),
            _layer(64, 128, None),
            _layer(128, 128, (2, 1)),
            _layer(128, 160, (2, 1)),
        )
        self.rows = nn.LSTM(2 * 160, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * 128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x, _ = self.rows(x.flatten(1, 2).transpose(1, 2))
        return self.head(x)


def text_line(classes: int = 44) -> TextLine:
    """Builds the network with random weights; the qconfig names this function."""
    return TextLine(classes)
