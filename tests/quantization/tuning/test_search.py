"""The order in which operators go to float, and the sets that are tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.quantization.tuning.order import order
from qconvert.quantization.tuning.prediction import Prediction
from qconvert.quantization.tuning.search import search

NAMES = "abcdefghijklmnop"


def run(
    ordered: str, met: Callable[[frozenset[str]], bool], latency: Callable[[frozenset[str]], float]
) -> list[tuple[frozenset[str], bool]]:
    """Every set that is tried, and whether it meets the budgets."""
    steps, found = search(ordered, latency), []
    try:
        names = next(steps)
        while True:
            found.append((names, met(names)))
            names = steps.send(found[-1][1])
    except StopIteration:
        return found


@given(st.integers(1, 16), st.sets(st.sampled_from(NAMES)))
def test_ends_with_what_is_needed_and_nothing_else(count: int, needed: set[str]) -> None:
    """Where all of some operators are needed, whichever else is in float."""
    ordered, needed = NAMES[:count], needed & set(NAMES[:count])
    tried = run(ordered, lambda names: needed <= names, len)
    assert len({names for names, _ in tried}) == len(tried)
    fewest = min((names for names, met in tried if met), key=len)
    assert fewest == (needed or {"a"})


@given(st.integers(1, 16), st.integers(1, 16))
def test_few_trials_find_how_many_are_needed(count: int, needed: int) -> None:
    """Where their number decides: twice the logarithm, and one for each that is given back."""
    tried = run(NAMES[:count], lambda names: len(names) >= needed, len)
    met = [names for names, met in tried if met]
    assert bool(met) == (needed <= count)
    assert len(tried) <= 2 * count.bit_length() + (needed if met else 0)
    if met:
        assert len(min(met, key=len)) == needed


def test_the_dearest_is_given_back_first() -> None:
    prices = dict(zip("abcd", (1, 7, 3, 5), strict=True))
    tried = run("abcd", lambda names: "d" in names, lambda names: sum(prices[n] for n in names))
    assert ["".join(sorted(names)) for names, _ in tried] == [
        "a",
        "ab",
        "abcd",
        "abc",
        "acd",
        "ad",
        "d",
    ]


def test_nothing_that_makes_it_slower_is_given_back() -> None:
    """In float beside its neighbours an operator may be faster."""
    tried = run("abcd", lambda names: len(names) == 4, lambda names: -len(names))
    assert len(tried) == 4


@pytest.mark.parametrize(("ordered", "expected"), [("", 0), ("a", 1), ("abc", 3)])
def test_what_cannot_be_met_ends(ordered: str, expected: int) -> None:
    assert len(run(ordered, lambda names: False, len)) == expected


def ordered(
    gains: dict[str, float], seconds: Callable[[str], float], least: float = 0.0
) -> list[str]:
    """Of operators in a row, each the neighbour of the next."""
    names = sorted(gains)
    around = {name: {x for x in names if abs(ord(x) - ord(name)) == 1} for name in names}

    def predict(chosen: frozenset[str]) -> Prediction:
        return Prediction(seconds("".join(sorted(chosen))), 1 - len(chosen) / len(names))

    return order(gains, predict, around, lambda found: found.int8_macs >= least)


def boundaries(chosen: str) -> float:
    """One second for each operator, ten for each row of neighbours."""
    rows = sum(chr(ord(name) - 1) not in chosen for name in chosen)
    return len(chosen) + 10 * rows


def test_a_neighbour_of_float_is_cheaper() -> None:
    """`b` gains less than `d`, which would need boundaries of its own."""
    gains = {"a": 8.0, "b": 2.0, "c": 0.1, "d": 5.0}
    assert ordered(gains, len) == ["a", "d", "b", "c"]
    assert ordered(gains, boundaries) == ["a", "b", "d", "c"]


def test_what_costs_nothing_is_first_and_what_gains_nothing_last() -> None:
    prices = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0}
    gains = {"a": 9.0, "b": 0.1, "c": -0.1, "d": 3.0}
    assert ordered(gains, lambda chosen: sum(prices[x] for x in chosen)) == ["b", "a", "d", "c"]


def test_what_may_not_be_in_float_is_left_out() -> None:
    gains = dict(zip("abcd", (4.0, 3.0, 2.0, 1.0), strict=True))
    assert ordered(gains, len, least=0.5) == ["a", "b"]
