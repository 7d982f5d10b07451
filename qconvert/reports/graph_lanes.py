"""Where the edges of a graph run beside its rows: one lane for each value that is read further
down, used again when the value has had its last reader, as `git log --graph` draws branches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Lane:
    """A value's way from the row that makes it to rows further down. Lane 1 is beside the rows."""

    source: int
    targets: tuple[int, ...]
    lane: int


def lanes(edges: Iterable[tuple[int, int]]) -> list[Lane]:
    """Gives each value that is read by others than the next row a lane of its own, the shortest
    ways first, so that long ones run outside. Ways that share a lane share no row.

    >>> [(w.source, w.targets, w.lane) for w in lanes([(0, 1), (1, 2), (0, 2), (0, 3), (1, 3)])]
    [(1, (3,), 1), (0, (2, 3), 2)]
    >>> [w.lane for w in lanes([(0, 2), (2, 4)])]
    [1, 1]
    """
    readers: dict[int, set[int]] = {}
    for source, target in edges:
        if target > source + 1:
            readers.setdefault(source, set()).add(target)
    taken: dict[int, list[tuple[int, int]]] = {}
    found = []
    for source in sorted(readers, key=lambda s: (max(readers[s]) - s, s)):
        last = max(readers[source])
        lane = 1
        while any(source < end and begin < last for begin, end in taken.get(lane, ())):
            lane += 1
        taken.setdefault(lane, []).append((source, last))
        found.append(Lane(source, tuple(sorted(readers[source])), lane))
    return found


def width(found: Iterable[Lane]) -> int:
    """The number of lanes."""
    return max((way.lane for way in found), default=0)


def next_rows(edges: Mapping[tuple[int, int], object]) -> list[tuple[int, int]]:
    """The edges that lead straight to the next row."""
    return sorted((a, b) for a, b in edges if b == a + 1)
