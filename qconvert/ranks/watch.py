"""Signs of life: each rank counts up a number in the store, and sees whether others do."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qconvert.errors import QConvertError, RankLostError
from qconvert.ranks.place import LIMIT, Place
from qconvert.ranks.store import Store, reachable

_INTERVAL_S = 1.0
# After a signal to all ranks: so long without a sign of life, and a rank is not just slow to end.
_GRACE_S = 8.0
_LEAVING_S = 8.0
# torchrun's summary names the rank that ends first as the cause: rank 0, which knows more.
_AFTER_S = 0.3
# For a thread that is inside the store, which answers in no time, or not at all.
_ENDING_S = 2.0
_END = "end"


@dataclass(frozen=True)
class End:
    """How rank 0 has ended: its exit code, and the error if it is about the ranks."""

    code: int
    error: QConvertError | None = None


class Watch:
    """Watches from a thread of its own, on a connection of its own: the store serves one request
    of a connection at a time. `stuck` is called there, once, when the store itself stops to
    answer, on which the whole process may be waiting inside torch."""

    def __init__(self, store: Store, here: Place, stuck: Callable[[RankLostError], None]) -> None:
        self._store = store.clone()
        self._here = here
        self._stuck = stuck
        watched = here.others if here.first else (0,)
        now = time.monotonic()
        self._seen = dict.fromkeys(watched, (0, now))
        self._answered = now
        self._gone: set[int] = set()
        self._end: End | None = None
        self._broken: RankLostError | None = None
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=w, daemon=True) for w in (self._beat, self._guard)]
        for thread in self._threads:
            thread.start()

    @property
    def end(self) -> End | None:
        """How rank 0 has ended, if it has."""
        return self._end

    def check(self) -> None:
        """Raises RankLostError when a rank that is watched has ended or is silent for too long."""
        if self._end is not None:
            return
        if self._gone:
            raise RankLostError(f"{_named(self._gone)} ended before the work was done")
        if self._broken is not None:
            raise self._broken
        silent = self._silent(self._here.limit_s)
        if silent:
            raise RankLostError(
                f"nothing was heard of {_named(silent)} for {self._here.limit_s:g} s ({LIMIT})"
            )

    def announce(self, end: End) -> None:
        """Tells all ranks that rank 0 has ended, and how."""
        with reachable():
            self._store.set(_END, pickle.dumps(end))

    def leave_together(self) -> None:
        """Waits until every rank has come here, for a while: torchrun ends all of them when one
        has ended with an error, which the others must have told before."""
        everyone = [_left(rank) for rank in range(self._here.world)]
        until = time.monotonic() + _LEAVING_S
        try:
            self._store.set(_left(self._here.rank), b"")
            while time.monotonic() < until and not self._store.check(everyone):
                time.sleep(0.02)
        except RuntimeError:
            return  # who held the store has gone
        if not self._here.first:
            time.sleep(_AFTER_S)

    def missing(self) -> list[int]:
        """After a signal that all ranks have had: those that have neither ended by it nor show a
        sign of life."""
        waiting = set(range(self._here.world)) - {self._here.rank}
        counts: dict[int, int] = {}
        until = time.monotonic() + _GRACE_S
        try:
            self._store.set(_left(self._here.rank), b"")
            while waiting and time.monotonic() < until:
                for rank in list(waiting):
                    count = self._store.add(_beats(rank), 0)
                    if self._store.check([_left(rank)]) or counts.setdefault(rank, count) != count:
                        waiting.discard(rank)
                time.sleep(0.1)
        except RuntimeError:
            return [0]
        return sorted(waiting)

    def stop(self) -> None:
        """Ends the threads.

        An interpreter that ends while one of them is inside torch aborts the process: on its way
        back into Python the thread is ended by an exception that no C++ may catch.
        """
        self._stopped.set()
        for thread in self._threads:
            thread.join(_ENDING_S)

    def _beat(self) -> None:
        try:
            while not self._stopped.is_set():
                self._look()
                self._answered = time.monotonic()
                self._stopped.wait(_INTERVAL_S)
        except RuntimeError:
            self._broken = RankLostError("rank 0, or the torchrun beside it, has ended")

    def _look(self) -> None:
        self._store.add(_beats(self._here.rank), 1)
        for rank, (before, _) in self._seen.items():
            count = self._store.add(_beats(rank), 0)
            if count != before:
                self._seen[rank] = (count, time.monotonic())
        # Rank 0 tells how it has ended before it leaves: looked at in the other order.
        gone = {rank for rank in self._seen if self._store.check([_left(rank)])}
        if not self._here.first and self._end is None and self._store.check([_END]):
            self._end = pickle.loads(self._store.get(_END))
        self._gone = gone

    def _silent(self, limit_s: float) -> list[int]:
        now = time.monotonic()
        return [rank for rank, (_, since) in self._seen.items() if now - since > limit_s]

    def _guard(self) -> None:
        # Twice the time: whoever is not inside torch has found out by itself.
        while not self._stopped.wait(_INTERVAL_S):
            if self._broken is None and time.monotonic() - self._answered > 2 * self._here.limit_s:
                self._stuck(
                    RankLostError(
                        f"the machine of rank 0 has not answered for {2 * self._here.limit_s:g} s"
                    )
                )
                return


def _beats(rank: int) -> str:
    return f"beats/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"


def _named(ranks: Collection[int]) -> str:
    names = ", ".join(map(str, sorted(ranks)))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"
