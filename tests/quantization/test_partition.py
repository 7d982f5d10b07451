"""The division between two ways to compute is the cheapest of all, by trying all."""

from __future__ import annotations

import itertools
import random

import pytest

from qconvert.quantization.partition import NEVER, Value, divide

Costs = list[tuple[int, int]]


def price(costs: Costs, values: list[Value], side: tuple[bool, ...]) -> int:
    """What a division costs, in plain words: each operator on its side, and each value once if it
    is read on the other side than it is made on."""
    total = sum(pair[second] for pair, second in zip(costs, side, strict=True))
    for value in values:
        crosses = any(side[reader] != side[value.maker] for reader in value.readers)
        total += crosses * (value.back if side[value.maker] else value.forth)
    return total


def problem(seed: int) -> tuple[Costs, list[Value]]:
    """A graph of up to nine operators; some have no choice, some values are read by nobody, costs
    are often equal, and often nothing."""
    rng = random.Random(seed)
    count = rng.randint(1, 9)
    largest = rng.choice((3, 100, 10_000_000))

    def cost() -> int:
        return rng.choice((0, rng.randint(0, largest)))

    costs = [(cost(), cost()) for _ in range(count)]
    for i in range(count):
        if rng.random() < 0.2:
            costs[i] = rng.choice([(NEVER, costs[i][1]), (costs[i][0], NEVER)])
    values = []
    for maker in range(count):
        for _ in range(rng.randint(0, 2)):
            later = [i for i in range(count) if i > maker]
            readers = tuple(rng.sample(later, rng.randint(0, len(later))))
            forth, back = (NEVER if rng.random() < 0.1 else cost() for _ in range(2))
            values.append(Value(maker, readers, forth, back))
    return costs, values


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_division_is_the_cheapest_of_all(first: int) -> None:
    for seed in range(first, first + 100):
        costs, values = problem(seed)
        every = itertools.product((False, True), repeat=len(costs))
        cheapest = min(price(costs, values, side) for side in every)
        if cheapest < NEVER:
            assert price(costs, values, tuple(divide(costs, values))) == cheapest, f"seed {seed}"


def test_of_divisions_as_cheap_the_first_side_has_as_few_as_possible() -> None:
    for seed in range(400, 500):
        costs, values = problem(seed)
        every = list(itertools.product((False, True), repeat=len(costs)))
        prices = [price(costs, values, side) for side in every]
        if min(prices) >= NEVER:
            continue
        best = [side for side, cost in zip(every, prices, strict=True) if cost == min(prices)]
        fewest = min(sum(not second for second in side) for side in best)
        assert sum(not second for second in divide(costs, values)) == fewest, f"seed {seed}"


def test_value_that_several_read_is_brought_once() -> None:
    """Two readers that save 3 each pay one way of 5; one of them alone would not."""
    costs = [(0, NEVER), (4, 1), (4, 1)]
    assert divide(costs, [Value(0, (1, 2), 5, 0)]) == [False, True, True]
    assert divide(costs, [Value(0, (1,), 5, 0), Value(0, (2,), 5, 0)]) == [False, False, False]
