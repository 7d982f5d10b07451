"""How steps talk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from qconvert.images.stream import Progress, no_progress


class Voice(Protocol):
    """How a step talks while it works; results are returned, not said."""

    def say(self, text: str) -> None:
        """One line: a decision, a fallback, a warning."""
        ...

    def progress(self, title: str) -> AbstractContextManager[Progress]:
        """A progress display for one loop over images."""
        ...

    def busy(self, title: str) -> AbstractContextManager[None]:
        """A sign of life for work that cannot be counted."""
        ...


class Silent:
    """The voice of a process that leaves talking to another."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """None."""
        yield no_progress

    @contextmanager
    def busy(self, title: str) -> Iterator[None]:
        """None."""
        yield
