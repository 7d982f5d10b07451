"""A model that takes pixels computes what it does on normalized pixels, up to the borders of the
image, with its normalization in the convolutions that read it; or says why it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from qconvert.models.division import Wishes
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.models.operators import kind_of, module_of, operator_name
from qconvert.models.pixel_folding import WHY_FLOAT
from qconvert.models.pixels import PixelInput, inner_path

MEAN, STD = (0.485, 0.2, 0.75), (0.229, 0.5, 0.1)
PIXELS = torch.randint(0, 256, (2, 3, 13, 18), generator=torch.Generator().manual_seed(0)).byte()


class Padded(nn.Module):
    """Pads unevenly by itself, as networks do that were ported from TensorFlow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, [0, 1, 2, 1]))


class TwoStems(nn.Module):
    """Reads its input twice, and its size."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.near(x).relu() + self.far(x)
        return F.interpolate(found, size=x.shape[-2:], mode="nearest")


def stem(**settings: object) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, **settings), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )


FOLDED = {
    "without padding": (stem(), [0, 0, 0, 0]),
    "padding": (stem(padding=1), [1, 1, 1, 1]),
    "of two lengths": (stem(padding=(2, 1), stride=2, dilation=2), [1, 1, 2, 2]),
    "same": (stem(padding="same"), [1, 1, 1, 1]),
    "without bias": (stem(padding=1, bias=False), [1, 1, 1, 1]),
    "depthwise": (stem(padding=1, groups=3), [1, 1, 1, 1]),
    "uneven": (Padded, [0, 1, 2, 1]),
    "even filter, same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), [1, 2, 1, 2]),
}


def captured(network: Callable[[], nn.Module], mean=MEAN, std=STD) -> tuple[nn.Module, GraphModule]:
    torch.manual_seed(0)
    model = network().eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, capture(PixelInput(model, mean, std), [PIXELS[:1]])


def kinds(graph: GraphModule) -> list[str]:
    return [kind_of(graph, n) for n in graph.graph.nodes if n.op == "call_module"]


def paddings(graph: GraphModule) -> list[list[int]]:
    found = [
        n for n in graph.graph.nodes if n.op == "call_module" and kind_of(graph, n) == "pixels"
    ]
    return [module_of(graph, node).widths for node in found]


def check(model: nn.Module, graph: GraphModule, mean=MEAN, std=STD) -> None:
    """Also at another size than that of the example, and near the borders."""
    mean, std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    for pixels in (PIXELS, PIXELS.repeat(1, 1, 2, 3)[:, :, :21]):
        want = model((pixels.float() / 255 - mean) / std)
        torch.testing.assert_close(graph(pixels), want, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", FOLDED)
def test_first_convolution_reads_pixels(case: str) -> None:
    network, widths = FOLDED[case]
    model, graph = captured(network)
    assert "normalization" not in kinds(graph)
    assert paddings(graph) == [widths]
    check(model, graph)
    check(model, fuse(graph).graph)


def test_each_padding_is_made_once_and_sizes_are_those_of_the_pixels() -> None:
    model, graph = captured(TwoStems)
    assert sorted(paddings(graph)) == [[1, 1, 1, 1], [2, 2, 2, 2]]
    check(model, graph)


@pytest.mark.parametrize("mean", [(0.0,), (127 / 255,), (0.4,) * 3, (1.0,) * 3], ids=str)
def test_a_mean_that_is_a_pixel_is_padded_by_the_convolution_itself(mean) -> None:
    model, graph = captured(stem(padding=1), mean, (0.5,))
    assert paddings(graph) == [[0, 0, 0, 0]]
    check(model, graph, mean, (0.5,))


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x


class Again(Skips):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


class Returns(Skips):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


IN_FLOAT = {
    "sum": (Skips, MEAN, "add reads normalized pixels, and is no convolution"),
    "pool": (
        lambda: nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)),
        MEAN,
        "0 reads normalized pixels, and is no convolution",
    ),
    "reflection": (
        stem(padding=1, padding_mode="reflect"),
        MEAN,
        "0 reads normalized pixels, and has reflect padding",
    ),
    "called twice": (
        Again,
        MEAN,
        "conv reads normalized pixels, and is called for something else, too",
    ),
    "no colour": (
        stem(padding=1),
        (-0.5, 0.5, 0.5),
        "the mean is no pixel (data.preprocess.mean), and convolutions pad with it",
    ),
}


@pytest.mark.parametrize("case", IN_FLOAT)
def test_otherwise_the_normalization_stays_and_has_its_reason(case: str) -> None:
    network, mean, why = IN_FLOAT[case]
    model, graph = captured(network, mean)
    (node,) = (n for n in graph.graph.nodes if WHY_FLOAT in n.meta)
    assert (operator_name(node), node.meta[WHY_FLOAT]) == ("normalization", why)
    assert "pixels" not in kinds(graph)
    check(model, graph, mean)


def test_normalized_pixels_that_are_returned_stay() -> None:
    _, graph = captured(Returns)
    assert kinds(graph)[0] == "normalization"
    _, returned = graph(PIXELS)
    torch.testing.assert_close(returned[0, 1], (PIXELS[0, 1].float() / 255 - 0.2) / 0.5)


def test_a_mean_that_is_no_colour_is_folded_where_nothing_pads_with_it() -> None:
    model, graph = captured(stem(), (-0.5, 0.5, 2.0))
    assert paddings(graph) == [[0, 0, 0, 0]]
    check(model, graph, (-0.5, 0.5, 2.0))


def test_operators_have_the_names_of_the_model_itself() -> None:
    torch.manual_seed(0)
    model = TwoStems().eval()

    def names(graph: GraphModule) -> list[str]:
        calls = [n for n in graph.graph.nodes if n.op.startswith("call_")]
        return [operator_name(n) for n in calls if kind_of(graph, n) not in ("getattr", "getitem")]

    found = names(capture(PixelInput(model, MEAN, STD), [PIXELS]))
    assert found == ["pixels", "pixels:2", *names(capture(model, [PIXELS.float()]))]


class Chooses(nn.Module):
    """Its code depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = stem(padding=1)(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 100:
            return self.head(self.body(-x))
        return self.head(self.body(x))


def test_model_that_is_kept_as_written_has_its_normalization_before_it() -> None:
    model = Chooses().eval().requires_grad_(False)
    wrapped = PixelInput(model, MEAN, STD)
    fused = fuse(capture(wrapped, [PIXELS[:1]]))
    assert "the model" in {kept.name for kept in fused.kept}
    torch.testing.assert_close(fused.assembly.script(fused.graph)(PIXELS), wrapped(PIXELS))
    listed = Wishes(fixed=frozenset({inner_path("")}))
    fused = fuse(capture(wrapped, [PIXELS[:1]], listed))
    assert kinds(fused.graph)[0] == "pixels"  # what chose is gone
    torch.testing.assert_close(fused.graph(PIXELS), wrapped(PIXELS), rtol=1e-4, atol=1e-4)
