"""Which operators are tried in float, one set after the other, each by what was found before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

# Yields a set of names, and is sent whether the budgets are met with it.
Search = Generator[frozenset[str], bool, None]


def search(ordered: Sequence[str], latency_s: Callable[[frozenset[str]], float]) -> Search:
    """Looks for the fewest of the first operators that meet the budgets: one, two, four and so on
    until they do, then by halves between the last two. Of these it gives back, the dearest first,
    what the budgets are met without.

    Ends when nothing is left to be tried. Without an `ordered` operator nothing is.

    >>> trials = search("abcdefgh", lambda names: len(names))
    >>> wanted, tried = next(trials), []
    >>> try:
    ...     while True:
    ...         tried.append("".join(sorted(wanted)))
    ...         wanted = trials.send({"b", "e"} <= wanted)
    ... except StopIteration:
    ...     print(" ".join(tried))
    a ab abcd abcdefgh abcdef abcde bcde cde bde be
    """
    most = len(ordered)
    missed, met = 0, min(1, most)
    while met:
        if (yield frozenset(ordered[:met])):
            break
        missed = met
        if met == most:
            return
        met = min(2 * met, most)
    while met - missed > 1:
        middle = (missed + met) // 2
        if (yield frozenset(ordered[:middle])):
            met = middle
        else:
            missed = middle
    yield from _without_the_needless(list(ordered[:met]), latency_s)


def _without_the_needless(kept: list[str], latency_s: Callable[[frozenset[str]], float]) -> Search:
    """The last of them is needed: it was just tried without."""
    needed = set(kept[-1:])
    while True:
        now = latency_s(frozenset(kept))
        savings = {
            name: now - latency_s(frozenset(kept) - {name}) for name in kept if name not in needed
        }
        worth_it = [name for name, saving in savings.items() if saving > 0]
        if not worth_it:
            return
        dearest = max(worth_it, key=lambda name: savings[name])
        if (yield frozenset(kept) - {dearest}):
            kept.remove(dearest)
        else:
            needed.add(dearest)
