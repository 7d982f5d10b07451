"""Which images are unlike the others."""

from __future__ import annotations

import numpy as np
import pytest

from qconvert.quantization.audit import foreign as foreign_images
from qconvert.quantization.audit.facts import ImageFacts, SetFacts
from qconvert.quantization.audit.foreign import FEWEST, distances
from qconvert.quantization.distribution import Glimpse

TENSORS = 30


def facts(sizes: np.ndarray, balances: np.ndarray) -> SetFacts:
    """Images that show tensors of these sizes (of absolute values), so one-sided."""
    found = SetFacts()
    for size, balance in zip(sizes, balances, strict=True):
        tensors = {
            f"t{i:02}": Glimpse(-3 * s, 4 * s, b * s, s)
            for i, (s, b) in enumerate(zip(size, balance, strict=True))
        }
        found.add(ImageFacts(tensors))
    return found


def ordinary(count: int, seed: int, heavy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images that vary in three ways which all tensors follow, and a little by themselves."""
    random = np.random.default_rng(seed)
    ways = random.standard_t(4, (count, 3)) if heavy else random.normal(size=(count, 3))
    own = random.normal(size=(2, count, TENSORS))
    mixed = ways @ random.normal(size=(3, 2 * TENSORS))
    sizes = np.exp(0.2 * mixed[:, :TENSORS] + 0.05 * own[0])
    return sizes, np.tanh(0.2 * mixed[:, TENSORS:] + 0.05 * own[1])


@pytest.mark.parametrize("heavy", [False, True], ids=["even", "heavy tails"])
@pytest.mark.parametrize("count", [FEWEST, 60, 400])
def test_few_of_an_ordinary_set_are_named(count: int, heavy: bool) -> None:
    far = [distances(facts(*ordinary(count, seed, heavy))) for seed in range(5)]
    assert all(found is not None for found in far)
    assert sum(len(found.far) for found in far if found) <= 0.05 * 5 * count


@pytest.mark.parametrize("count", [60, 400])
def test_images_that_break_what_the_others_follow_are_named(count: int) -> None:
    """They are of ordinary size in each tensor, and alike: neither hides them."""
    sizes, balances = ordinary(count, 0, heavy=False)
    foreign = list(range(0, count, 20))
    sizes[foreign] = np.median(sizes, 0) * np.exp(0.3 * (-1.0) ** np.arange(TENSORS))
    found = distances(facts(sizes, balances))
    assert found is not None
    assert set(foreign) <= set(found.far)
    assert len(found.far) <= len(foreign) + 0.05 * count


def test_order_of_the_images_does_not_matter() -> None:
    sizes, balances = ordinary(50, 3, heavy=True)
    forth, back = (distances(facts(*(x[::step] for x in (sizes, balances)))) for step in (1, -1))
    assert forth is not None
    assert back is not None
    np.testing.assert_allclose(forth.values, back.values[::-1], rtol=1e-6)


def test_many_images_are_compared_in_parts(monkeypatch) -> None:
    sizes, balances = ordinary(240, 0, heavy=False)
    sizes[[3, 64, 65, 205]] *= 3
    monkeypatch.setattr(foreign_images, "_COMPARED", 60)
    found = distances(facts(sizes, balances))
    assert found is not None
    assert {3, 64, 65, 205} <= set(found.far)
    assert len(found.far) <= 4 + 0.05 * 240
    assert len(set(found.limits)) == 4


def test_kind_of_its_own_belongs_to_the_set() -> None:
    """Crops of one photograph are alike: three of sixty are foreign, six are a kind."""
    for count, is_foreign in ((3, True), (6, False)):
        sizes, balances = ordinary(60, 0, heavy=False)
        varied = np.random.default_rng(1).normal(0, 0.02, (count, TENSORS))
        sizes[:count], balances[:count] = 3 * sizes[0] * np.exp(varied), balances[0] + varied
        found = distances(facts(sizes, balances))
        assert found is not None
        assert (set(range(count)) <= set(found.far)) == is_foreign
        assert bool(set(range(count)) & set(found.far)) == is_foreign


def test_too_few_images_are_not_judged_and_equal_ones_are_not_named() -> None:
    sizes, balances = ordinary(FEWEST, 0, heavy=False)
    assert distances(facts(sizes[1:], balances[1:])) is None
    equal = distances(facts(np.ones_like(sizes), np.zeros_like(balances)))
    assert equal is None
