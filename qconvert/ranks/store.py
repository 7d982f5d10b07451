"""The only importer of torch.distributed: the store that all ranks see, and messages through it.

The store is torchrun's own (rank 0 holds it where another launcher started the ranks). Every rank
needs one connection, to one address and port, and no rank waits inside torch: a waiting rank looks
for its message, sleeps, and can be interrupted between the two. The collectives of gloo could do
neither, and need connections between all ranks.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from qconvert.errors import RankLostError, RankSetupError
from qconvert.ranks.place import LIMIT, Place

# Ranks start at different times: importing torch from a busy file system alone takes a minute.
_JOINING = 5.0
# The store refuses values of more than 8 MiB.
_CHUNK = 4 << 20
_FIRST_NAP_S, _LONGEST_NAP_S = 0.0005, 0.1


class Store(Protocol):
    """What is used of torch.distributed's stores."""

    def set(self, key: str, value: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def add(self, key: str, amount: int) -> int: ...
    def delete_key(self, key: str) -> bool: ...
    def clone(self) -> Store: ...


def connect(here: Place) -> Store:
    """The store of all ranks.

    Raises RankSetupError when it cannot be reached, or ranks are missing for too long.
    """
    # What torch logs of lost connections is said by us.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    wait_s = _JOINING * here.limit_s

    def meet() -> Any:
        return next(rendezvous("env://", timeout=timedelta(seconds=wait_s)))[0]

    try:
        store = _interruptible(meet)
    except (RuntimeError, ValueError) as error:
        raise RankSetupError(
            f"the {here.world} ranks did not meet within {wait_s:g} s: "
            f"{str(error).strip().splitlines()[0]}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            fix=f"start all ranks at about the same time, let them reach this address, or set "
            f"{LIMIT} to a fifth of the seconds to wait",
        ) from None
    found: Any = PrefixStore("qconvert", store)  # whose declarations know str alone
    joined: Store = found
    return joined


def _interruptible(work: Callable[[], Any]) -> Any:
    """Does the work in another thread: Ctrl-C would wait for the end of what is inside torch."""
    found: Future[Any] = Future()

    def done() -> None:
        try:
            found.set_result(work())
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=done, daemon=True).start()
    return found.result()


@contextmanager
def reachable() -> Iterator[None]:
    """Raises RankLostError where the store does not answer."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are
        raise RankLostError("rank 0, or the torchrun beside it, has ended") from error


class Post:
    """Messages between ranks: each is a value that pickle can hold, of any size, and is deleted
    when it was read. Those under one name come in the order in which they were sent."""

    def __init__(self, store: Store, alive: Callable[[], None]) -> None:
        """`alive` is called while waiting, and raises when there is nobody to wait for."""
        self._store = store
        self._alive = alive
        self._count: Counter[str] = Counter()

    def put(self, name: str, value: Any) -> None:
        """Sends a message; does not wait for its reader."""
        key, content = self._next(name), pickle.dumps(value)
        chunks = [content[i : i + _CHUNK] for i in range(0, len(content), _CHUNK)]
        with reachable():
            for i, chunk in enumerate(chunks[1:], 1):
                self._store.set(f"{key}/{i}", chunk)
            self._store.set(key, len(chunks).to_bytes(4, "little") + chunks[0])

    def take(self, name: str, readers: int = 1) -> Any:
        """Waits for the next message; the last of its `readers` deletes it."""
        key = self._next(name)
        self._wait(key)
        with reachable():
            first = self._store.get(key)
            keys = [key, *(f"{key}/{i}" for i in range(1, int.from_bytes(first[:4], "little")))]
            content = b"".join([first[4:], *map(self._store.get, keys[1:])])
            if readers > 1:
                counter = f"{key}/readers"
                keys = [*keys, counter] if self._store.add(counter, 1) == readers else []
            for old in keys:
                self._store.delete_key(old)
        return pickle.loads(content)

    def _next(self, name: str) -> str:
        self._count[name] += 1
        return f"{name}/{self._count[name]}"

    def _wait(self, key: str) -> None:
        nap_s = _FIRST_NAP_S
        while True:
            with reachable():
                if self._store.check([key]):
                    return
            self._alive()
            time.sleep(nap_s)
            nap_s = min(1.5 * nap_s, _LONGEST_NAP_S)
