"""Where torchrun has put this process; read without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from qconvert.errors import RankSetupError

# Seconds without a sign of life after which a rank is given up.
LIMIT = "QCONVERT_RANK_TIMEOUT"
_USUAL_LIMIT_S = 60.0
_SHORTEST_LIMIT_S = 5.0
# torchrun sets all four, as every other launcher of torch.distributed does.
_NEEDED = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This process is number `rank` (from 0) of `world`, `local` of which share its machine;
    `limit_s` is how long a rank may be silent."""

    rank: int
    world: int
    local: int = 1
    limit_s: float = _USUAL_LIMIT_S

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, prints and measures latency."""
        return self.rank == 0

    @property
    def others(self) -> range:
        """The ranks that help the first."""
        return range(1, self.world)


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that the environment gives this process; None where it is alone.

    Raises RankSetupError when the variables are not those of torchrun.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    rank, world = (_whole(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if world == 1:
        return None
    if rank >= world:
        raise RankSetupError(f"RANK is {rank}, WORLD_SIZE is {world}", where="environment")
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        raise RankSetupError(
            f"RANK and WORLD_SIZE are set, {' and '.join(missing)} not", where="environment"
        )
    _whole(environment, "MASTER_PORT")
    # Launchers other than torchrun leave it out: then each process may use all cores it is given.
    local = _whole(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 1
    return Place(rank, world, max(1, local), _limit_s(environment))


def _whole(environment: Mapping[str, str], name: str) -> int:
    if not environment[name].isdecimal():
        raise RankSetupError(f"{name} is {environment[name]!r}, no number", where="environment")
    return int(environment[name])


def _limit_s(environment: Mapping[str, str]) -> float:
    text = environment.get(LIMIT, "")
    if not text:
        return _USUAL_LIMIT_S
    try:
        limit_s = float(text)
    except ValueError:
        limit_s = 0.0
    if not _SHORTEST_LIMIT_S <= limit_s <= 1e6:
        raise RankSetupError(
            f"{LIMIT} is {text!r}",
            where="environment",
            fix=f"set seconds, from {_SHORTEST_LIMIT_S:g} on, or leave it out ({_USUAL_LIMIT_S:g})",
        )
    return limit_s
