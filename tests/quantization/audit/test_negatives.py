"""Negatives among calibration images: they are more usual when they are inverted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from qconvert.images.preprocess import Negative, Preprocessed
from qconvert.qconfig import Preprocess
from qconvert.quantization.audit.facts import ImageFacts, SetFacts, profile_of
from qconvert.quantization.audit.foreign import distances
from qconvert.quantization.audit.negatives import negatives, suspects
from qconvert.quantization.distribution import Glimpse


def scene(generator: np.random.Generator) -> np.ndarray:
    """A few small bright squares on a dark ground that grows darker downwards: (3, 32, 32)."""
    image = np.linspace(0.4, 0.1, 32)[None, :, None] * np.ones((3, 1, 32))
    image *= generator.uniform(0.7, 1.3, (3, 1, 1))
    for _ in range(generator.integers(2, 9)):
        y, x = generator.integers(0, 26, 2)
        image[:, y : y + 5, x : x + 5] = generator.uniform(0.5, 1.0, (3, 1, 1))
    return (image + generator.normal(0, 0.02, image.shape)).clip(0, 1)


def facts_of(images: Sequence[np.ndarray]) -> SetFacts:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 8, 3)
    )
    found = SetFacts()
    for image in images:
        seen, x = ImageFacts(), torch.from_numpy(image).float()[None]
        with torch.no_grad():
            for i, layer in enumerate(network):
                x = layer(x)
                low, high = map(float, x.aminmax())
                seen.see(str(i), Glimpse(low, high, float(x.mean()), float(x.abs().mean())))
                seen.profiles[str(i)] = profile_of(x)
        found.add(seen)
    return found


def test_negatives_are_named_and_no_others() -> None:
    generator = np.random.default_rng(0)
    images = [scene(generator) for _ in range(100)]
    for place in (17, 60):
        images[place] = 1 - images[place]
    facts = facts_of(images)
    found = distances(facts)
    assert found is not None
    asked: list[int] = []

    def run(places: Sequence[int]) -> SetFacts:
        asked.extend(places)
        return facts_of([1 - images[i] for i in places])

    assert negatives(facts, found, run) == [17, 60]
    assert set(suspects(found)) <= set(asked)
    assert len(asked) <= 12 + 16


def test_a_set_without_negatives_has_none() -> None:
    generator = np.random.default_rng(1)
    images = [scene(generator) for _ in range(60)]
    facts = facts_of(images)
    found = distances(facts)
    assert found is not None
    assert negatives(facts, found, lambda at: facts_of([1 - images[i] for i in at])) == []


def test_negatives_cannot_be_told_where_inverting_makes_nothing_odder() -> None:
    """Noise around the middle: whatever is odd is so by chance."""
    generator = np.random.default_rng(2)
    images = [0.5 + generator.normal(0, 0.1, (3, 32, 32)).clip(-0.5, 0.5) for _ in range(60)]
    facts = facts_of(images)
    found = distances(facts)
    assert found is not None
    assert negatives(facts, found, lambda at: facts_of([1 - images[i] for i in at])) == []


@pytest.mark.parametrize("as_pixels", [False, True])
def test_negative_is_of_the_picture(save_image, tmp_path, as_pixels: bool) -> None:
    """Black for white, before the normalization."""
    steps = Preprocess(mean=(0.25, 0.5, 0.5), std=(0.5, 0.25, 0.25))
    read = Preprocessed(steps, as_pixels)
    path = save_image(tmp_path / "image.png", (8, 8), seed=0)
    (positive,), (negative,) = read(path), Negative(read, steps.mean, steps.std)(path)
    if as_pixels:
        assert torch.equal(positive.int() + negative.int(), torch.full_like(positive.int(), 255))
        return
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (steps.mean, steps.std))
    shares = [x * std + mean for x in (positive, negative)]
    assert torch.allclose(shares[0] + shares[1], torch.ones_like(positive), atol=1e-5)
