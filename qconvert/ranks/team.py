"""Rank 0, who runs the command, and the others, who do the shares of the work that it asks for.

Only rank 0 decides anything: what is stale, what is computed, what is written. So the ranks cannot
disagree on it, and one process alone runs the same code without asking anybody.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qconvert.errors import QConvertError, RankError, RankLostError
from qconvert.ranks.place import Place, place
from qconvert.ranks.store import Post, Store, connect
from qconvert.ranks.watch import End, Watch

# A rank may have sent so many answers that rank 0 has not taken yet, which confirms them by halves:
# the answers of a fast rank must not pile up in the store.
_AHEAD = 32


class Over(Exception):  # noqa: N818
    """Rank 0 has ended, and with it the work of the others."""

    def __init__(self, end: End) -> None:
        super().__init__(end.code)
        self.end = end


class _Remote(Exception):  # noqa: N818
    """The traceback of another rank, as the cause of what is raised here."""


class First:
    """Rank 0's view of the others."""

    def __init__(self, store: Store, watch: Watch, here: Place) -> None:
        self.place = here
        self.error: QConvertError | None = None
        # Digests of the contents that every other rank has.
        self.sent: set[str] = set()
        self._post = Post(store, watch.check)
        self._taken = dict.fromkeys(here.others, 0)

    @property
    def others(self) -> range:
        """The ranks of the others."""
        return self.place.others

    def ask(self, request: Any) -> None:
        """Asks all others for their share of some work."""
        self._post.put("asked", request)

    def take(self, rank: int) -> Any:
        """Waits for the next answer of a rank.

        Raises what that rank raised instead of an answer, and RankLostError when it is lost.
        """
        answer, error, trace = self._post.take(f"given/{rank}")
        self._taken[rank] += 1
        if self._taken[rank] % (_AHEAD // 2) == 0:
            self._post.put(f"confirmed/{rank}", None)
        if error is not None:
            raise error from _Remote(f"on rank {rank}:\n{trace}")
        if trace:
            raise RuntimeError(f"on rank {rank}:\n{trace}")
        return answer


class Helper:
    """The view that another rank has of rank 0."""

    def __init__(self, store: Store, watch: Watch, here: Place) -> None:
        self.place = here
        self._watch = watch
        self._post = Post(store, self._alive)
        self._given = 0

    def asked(self) -> Any:
        """Waits for the next request.

        Raises Over when rank 0 has ended, RankLostError when it is lost.
        """
        return self._post.take("asked", readers=self.place.world - 1)

    def give(self, answer: Any) -> None:
        """Sends an answer."""
        self._give((answer, None, ""))

    def fail(self, error: Exception) -> None:
        """Sends an error in place of an answer: rank 0 raises it where it would have found it."""
        trace = "".join(traceback.format_exception(error))
        self._give((None, error if isinstance(error, QConvertError) else None, trace))

    def _give(self, answer: tuple[Any, QConvertError | None, str]) -> None:
        self._alive()
        if self._given >= _AHEAD and self._given % (_AHEAD // 2) == 0:
            self._post.take(f"confirmed/{self.place.rank}")
        self._given += 1
        self._post.put(f"given/{self.place.rank}", answer)

    def _alive(self) -> None:
        if self._watch.end is not None:
            raise Over(self._watch.end)
        self._watch.check()


@contextmanager
def noting(team: First | None) -> Iterator[None]:
    """Remembers an error that every rank must tell, since it is about the ranks."""
    try:
        yield
    except RankError as error:
        if team is not None:
            team.error = error
        raise


@contextmanager
def joined(stuck: Callable[[RankLostError], None]) -> Iterator[First | Helper | None]:
    """Meets the other ranks; None where this process is alone. On the way out, rank 0 tells the
    others how it has ended, and all leave together.

    `stuck` tells an error and ends the process: it is called from another thread when this one
    may wait forever.

    Raises RankSetupError, and RankLostError when torchrun ends this rank because of a lost one.
    """
    here = place()
    if here is None:
        yield None
        return
    store = connect(here)
    watch = Watch(store, here, stuck)
    team = First(store, watch, here) if here.first else Helper(store, watch, here)
    code = 0
    try:
        yield team
    except Exception as error:
        code = getattr(error, "exit_code", 1)
        raise
    except BaseException as ended:
        number = getattr(ended, "number", 0)
        code = 128 + number
        if number == signal.SIGTERM and (lost := watch.missing()):
            names = ", ".join(map(str, lost))
            raise RankLostError(f"rank {names} was killed or crashed") from None
        raise
    finally:
        _leave(team, watch, code)


def _leave(team: First | Helper, watch: Watch, code: int) -> None:
    # torchrun sends it to all when the first has left, and everything has been told.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        if isinstance(team, First):
            watch.announce(End(code, team.error))
        watch.leave_together()
    except RankLostError:  # nobody is left to be told
        pass
    finally:
        watch.stop()
