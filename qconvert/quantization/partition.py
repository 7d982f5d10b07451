"""Divides a graph's operators between two ways to compute them at the least cost.

Each operator costs something on either side, and so does each value that is read on the other side
than it is made on, once however many read it. The cheapest division is a minimum cut (Greig,
Porteous and Seheult 1989), found exactly by scipy's maximum flow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

# No choice: more than any sum of costs, and two of them fit into 32 bits.
NEVER = 1_000_000_000


@dataclass(frozen=True)
class Value:
    """What operator `maker` gives to the operators `readers`, all indices, and what it costs to
    bring it from the first side to the second, and back."""

    maker: int
    readers: tuple[int, ...]
    forth: int
    back: int


def divide(costs: Sequence[tuple[int, int]], values: Sequence[Value]) -> list[bool]:
    """Whether each operator goes to the second side; `costs` are what it costs on the first and
    on the second. Where both are as cheap, the first side has as few as possible.

    The operator in the middle would be cheaper on the second side, but for the way there and back:

    >>> divide([(0, NEVER), (5, 3), (0, NEVER)], [Value(0, (1,), 2, 2), Value(1, (2,), 2, 2)])
    [False, False, False]
    >>> divide([(0, NEVER), (9, 3), (0, NEVER)], [Value(0, (1,), 2, 2), Value(1, (2,), 2, 2)])
    [False, True, False]
    """
    source, sink = len(costs), len(costs) + 1
    edges: dict[tuple[int, int], int] = {}

    def edge(start: int, end: int, capacity: int) -> None:
        edges[start, end] = min(edges.get((start, end), 0) + capacity, NEVER)

    for i, (first, second) in enumerate(costs):
        # What is reached from the source stays on the first side.
        edge(source, i, second)
        edge(i, sink, first)
    following = sink + 1
    for value in values:
        forth, back, following = following, following + 1, following + 2
        edge(value.maker, forth, value.forth)
        edge(back, value.maker, value.back)
        for reader in value.readers:
            edge(forth, reader, NEVER)
            edge(reader, back, NEVER)
    pairs = np.array(list(edges), dtype=np.int32).reshape(-1, 2)
    capacities = np.array(list(edges.values()), dtype=np.int32)
    size = (following, following)
    network = csr_matrix((capacities, (pairs[:, 0], pairs[:, 1])), shape=size)
    left = (network - maximum_flow(network, source, sink).flow).tocsr()
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = set(breadth_first_order(left, source, return_predecessors=False).tolist())
    return [i not in reached for i in range(len(costs))]
