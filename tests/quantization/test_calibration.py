"""Calibration: the same bytes whatever the order and the number of workers, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qconvert.errors import NotFiniteImageError
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.preprocess import Preprocessed
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.qconfig import Preprocess
from qconvert.quantization.audit.facts import SetFacts
from qconvert.quantization.calibration import Calibration, calibrate

READ = Preprocessed(Preprocess(mean=(0.5,), std=(0.25,)))
INPUT = "x"


class Named(nn.Module):
    """A network after an input of a known name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.fixture
def model(trained) -> FusedModel:
    torch.manual_seed(0)
    return fuse(capture(trained(Named(networks.plain())), [torch.zeros(1, 3, 24, 24)]))


def run(model: FusedModel, images: ImageSet, batch_size: int = 4, **kwargs) -> Calibration:
    settings = {"averaging": 0.25, **kwargs}
    return calibrate(model, images, READ, batch_size=batch_size, **settings)


def facts(calibration: Calibration, averages: bool = True) -> dict[str, list]:
    """Everything that is known of each tensor, comparable."""
    return {
        name: [
            seen.images, seen.minimum, seen.maximum,
            seen.histogram.exponent, seen.histogram.first, seen.histogram.counts.tolist(),
            *([seen.average_min, seen.average_max] if averages else []),
        ]
        for name, seen in calibration.tensors.items()
    }  # fmt: skip


def test_bytes_are_read_back_as_they_were(model, image_set) -> None:
    original = run(model, image_set)
    content = original.to_bytes()
    again = Calibration.from_bytes(content)
    assert again.images == original.images == 12
    assert list(again.tensors) == list(original.tensors)
    assert facts(again) == facts(original)
    assert again.to_bytes() == content


@pytest.mark.parametrize(("batch_size", "threads"), [(4, 1), (1, 1), (7, 2), (100, 3)])
def test_bytes_are_the_same_in_every_run(model, image_set, batch_size: int, threads: int) -> None:
    expected = run(model, image_set).to_bytes()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert run(model, image_set, batch_size).to_bytes() == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_only_the_moving_average_depends_on_the_order(model, image_set) -> None:
    backwards = replace(image_set, files=image_set.files[::-1])
    forth, back = run(model, image_set), run(model, backwards)
    assert facts(forth, averages=False) == facts(back, averages=False)
    assert facts(forth) != facts(back)


def test_figures_of_the_input_are_those_of_the_images(model, image_set) -> None:
    seen = run(model, image_set).tensors[INPUT]
    pixels = torch.cat([READ(path)[0] for path in image_set.files])
    assert (seen.minimum, seen.maximum) == (float(pixels.min()), float(pixels.max()))
    assert seen.histogram.counts.sum() == pixels.numel()
    mean = np.average(seen.histogram.centers, weights=seen.histogram.counts)
    assert mean == pytest.approx(float(pixels.mean()), abs=2.0**seen.histogram.exponent)


def test_facts_of_the_input_are_those_of_each_image(model, image_set) -> None:
    found = SetFacts()
    run(model, image_set, facts=found)
    pixels = [READ(path)[0] for path in image_set.files]
    expected = [[x.min(), x.max(), x.mean(), x.abs().mean()] for x in pixels]
    np.testing.assert_allclose(found.tensors[INPUT], expected, atol=1e-5)
    means = [[*x.mean((0, 2, 3)), *x.abs().mean((0, 2, 3))] for x in pixels]
    np.testing.assert_allclose(found.profiles[INPUT], means, atol=1e-5)


def test_share_that_held_out_images_would_clip(model, tmp_path: Path) -> None:
    """A quarter of the pixels of the fourth image is brighter than all of the others."""
    for i in range(7):
        pixels = np.full((24, 24, 3), 100 + i, np.uint8)
        if i == 3:
            pixels[:12, :12] = 200
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    found = SetFacts()
    images = read_folder(tmp_path, "none", None)
    seen = run(model, images, facts=found).tensors[INPUT]
    assert found.clipped[INPUT] == 0.25
    assert seen.maximum == pytest.approx((200 / 255 - 0.5) / 0.25)
    assert seen.images == 7


def test_moving_average_goes_by_file_name(model, tmp_path: Path) -> None:
    for i, grey in enumerate((200, 100, 40)):
        Image.new("RGB", (24, 24), (grey,) * 3).save(tmp_path / f"{i}.png")
    seen = run(model, read_folder(tmp_path, "none", None), 1).tensors[INPUT]
    expected = [(grey / 255 - 0.5) / 0.25 for grey in (200, 100, 40)]
    average = 0.75 * (0.75 * expected[0] + 0.25 * expected[1]) + 0.25 * expected[2]
    assert (seen.average_min, seen.average_max) == pytest.approx((average, average), abs=1e-5)


def test_boundaries_are_recorded_and_the_inside_of_pairs_is_not(model, image_set) -> None:
    tensors = run(model, image_set).tensors
    values = [n.name for n in model.graph.graph.nodes if n.op != "output"]
    assert len(model.pairs) == 3
    assert set(tensors) == set(values) - set(model.pairs)
    assert {INPUT, *model.pairs.values()} < set(tensors)
    assert all(tensors[name].minimum == 0 for name in model.pairs.values())


def test_without_pairs_the_layer_is_recorded(trained, image_set) -> None:
    torch.manual_seed(0)
    network = trained(nn.Sequential(*networks.conv(3, 16), *networks.head(16)))
    apart = run(fuse(capture(network, [torch.zeros(1, 3, 24, 24)]), []), image_set).tensors
    names = set(run(fuse(capture(network, [torch.zeros(1, 3, 24, 24)])), image_set).tensors)
    assert len(apart) > len(names)
    assert names < set(apart)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.log, "log"),
        (lambda x: torch.sqrt(x - 0.1), "sqrt"),
        (lambda x: (torch.relu(x * 2) + 1) / x, "truediv"),
    ],
    ids=["minus infinity", "NaN", "infinity"],
)
def test_image_that_is_not_finite_is_named(
    tmp_path: Path, function, operator: str, batch_size: int
) -> None:
    """Image 3 is black, and so is 5; the first in order is named, with the operator."""
    for i in range(8):
        grey = 0 if i in (3, 5) else 60 + i
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / f"{i}.png")

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    images = read_folder(tmp_path, "none", None)
    fused = fuse(capture(Model(), [torch.ones(1, 3, 8, 8)]))
    with pytest.raises(NotFiniteImageError, match="computes NaN or infinity") as error:
        calibrate(
            fused, images, Preprocessed(Preprocess(mean=(0.0,), std=(1.0,))),
            batch_size=batch_size, averaging=0.1,
        )  # fmt: skip
    assert error.value.where == str(tmp_path / "3.png")
    assert operator in error.value.facts[0]


def test_progress_ends_with_all_images(model, image_set) -> None:
    seen: list[tuple[int, int]] = []
    run(model, image_set, 5, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


GROWTH = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from PIL import Image
from torch import nn
from qconvert.images.folder import read_folder
from qconvert.images.preprocess import Preprocessed
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.qconfig import Preprocess
from qconvert.quantization.calibration import calibrate

folder, random = Path(sys.argv[1]), np.random.default_rng(0)
for i in range(400):
    pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:03}.png")
layers = [l for i in range(4) for l in (nn.Conv2d(3 if i == 0 else 16, 16, 3), nn.Tanh())]
model = fuse(capture(nn.Sequential(*layers).eval(), [torch.zeros(1, 3, 32, 32)]))
images, peaks = read_folder(folder, "none", None), []
for count in (40, 400):
    some = replace(images, files=images.files[:count])
    calibrate(model, some, Preprocessed(Preprocess()), batch_size=8, averaging=0.01)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """To keep the distributions of 360 more images would take 50 MB, their tensors 170 MB."""
    command = [sys.executable, "-c", GROWTH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 1024
