"""Runs a function over images on all cores, results in order, memory bounded.

Every image is decoded and run on its own, on one thread: a result depends on nothing but the
image (float sums differ with the batch size and the number of threads), and the cores work on
different images. So may other processes, here or on other machines: batches are dealt out in turn,
and the results come back in the order of the images.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from qconvert.errors import BadImageError, ModelInputError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs, Reader, shapes_of
from qconvert.ranks.place import Place, place

Item = TypeVar("Item")
Result = TypeVar("Result")
# Called with the number of images done and the number of all.
Progress = Callable[[int, int], None]
Size = tuple[int, int]


class Others(Protocol):
    """The other processes that run a function over the same images: rank 0's view of them."""

    @property
    def others(self) -> range:
        """Their ranks."""
        ...

    def take(self, rank: int) -> Any:
        """The next answer of one of them; raises what it raised."""
        ...


class Receiver(Protocol):
    """Another rank's view of rank 0."""

    @property
    def place(self) -> Place:
        """Which share is this rank's."""
        ...

    def give(self, answer: Any) -> None:
        """Sends an answer."""
        ...


def no_progress(done: int, total: int) -> None:
    """The progress of a caller that shows none."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch's operators on one thread inside, and puts the setting back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_images(
    function: Callable[[Inputs], Result],
    images: ImageSet,
    read: Reader,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
    others: Others | None = None,
) -> Generator[Result, None, None]:
    """Yields `function(inputs)` for every image, in the order of `images.files`.

    `batch_size` images are handed to a worker at a time; results do not depend on it. Of `others`,
    who call `lend` with the same, each has its turn; their results and errors come in their place.

    Raises BadImageError that names all unreadable files, ModelInputError when torch's operators
    refuse an image.
    """
    return map_numbered(
        lambda inputs, _: function(inputs), images, read, batch_size=batch_size, progress=progress,
        others=others,
    )  # fmt: skip


def map_numbered(
    function: Callable[[Inputs, int], Result],
    images: ImageSet,
    read: Reader,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
    others: Others | None = None,
) -> Generator[Result, None, None]:
    """As `map_images`, with the place of the image in `images.files`."""
    work = _on_image(function, read)
    found = _in_order(work, list(enumerate(images.files)), batch_size, progress, others)
    with closing(found) as results:
        try:
            yield from results
        except BadImageError as error:
            raise all_unreadable(images, read) or error from None


def lend(
    function: Callable[[Inputs, int], Result],
    images: ImageSet,
    read: Reader,
    receiver: Receiver,
    *,
    batch_size: int,
) -> None:
    """Runs the share of this rank, and sends rank 0 the results of each batch.

    Raises what `function` raises and BadImageError; whoever calls sends that, too.
    """
    here = receiver.place
    batches = _batches(list(enumerate(images.files)), batch_size)[here.rank :: here.world]
    with _pool() as pool, closing(_computed(pool, _on_image(function, read), batches)) as found:
        for results in found:
            receiver.give(results.result())


def _on_image(
    function: Callable[[Inputs, int], Result], read: Reader
) -> Callable[[tuple[int, Path]], Result]:
    def work(item: tuple[int, Path]) -> Result:
        place, path = item
        inputs = read(path)
        try:
            return function(inputs, place)
        except (RuntimeError, IndexError, AssertionError) as error:
            shapes = shapes_of(inputs)
            raise ModelInputError(
                f"the model fails on this image, whose input is {shapes}: {error}",
                where=str(path),
            ) from error

    return work


def unreadable(
    images: ImageSet, read: Reader, progress: Progress = no_progress
) -> dict[Path, BadImageError]:
    """Decodes every image and returns what is wrong with those that cannot be read."""

    def attempt(path: Path) -> BadImageError | None:
        try:
            read(path)
        except BadImageError as error:
            return error
        return None

    found = _in_order(attempt, images.files, 8, progress)
    with closing(found) as results:
        wrong = dict(zip(images.files, results, strict=True))
    return {path: error for path, error in wrong.items() if error is not None}


def sizes(images: ImageSet, read: Reader) -> dict[Size, list[Path]]:
    """The images by height and width of their inputs, as far as their headers tell.

    Raises BadImageError that names all unreadable files, when a header is wrong.
    """
    found: dict[Size, list[Path]] = {}
    wrong: list[BadImageError] = []
    for path in images.files:
        try:
            size = read.size(path)
        except BadImageError as error:
            wrong.append(error)
            continue
        if size is not None:
            found.setdefault(size, []).append(path)
    if wrong:
        # Those whose header is right may be damaged further in.
        raise all_unreadable(images, read) or _as_one(wrong)
    return found


def all_unreadable(images: ImageSet, read: Reader) -> BadImageError | None:
    """One error that names every image that cannot be read, or None."""
    wrong = list(unreadable(images, read).values())
    return _as_one(wrong) if wrong else None


def _as_one(wrong: Sequence[BadImageError]) -> BadImageError:
    """One error with the facts of all, each with its file."""
    if len(wrong) == 1:
        return wrong[0]
    facts = [f"{error.where}: {fact}" for error in wrong for fact in error.facts]
    fixes = {error.fix for error in wrong}
    return BadImageError(facts, fix=fixes.pop() if len(fixes) == 1 else None)


def _in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    batch_size: int,
    progress: Progress,
    others: Others | None = None,
) -> Generator[Result, None, None]:
    """`function` of every item; the batches of other ranks are taken from them."""
    ranks = [0, *(others.others if others is not None else ())]
    batches = _batches(items, batch_size)
    done = 0
    progress(0, len(items))
    with _pool() as pool, closing(_computed(pool, function, batches[:: len(ranks)])) as own:
        for i in range(len(batches)):
            rank = ranks[i % len(ranks)]
            results: list[Result]
            results = next(own).result() if others is None or not rank else others.take(rank)
            done += len(results)
            yield from results
            progress(done, len(items))


def _batches(items: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    return [items[i : i + batch_size] for i in range(0, len(items), batch_size)]


def _workers() -> int:
    """The cores, shared with the ranks on this machine."""
    here = place()
    return -(-cores() // here.local) if here is not None else cores()


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as this process has cores; each runs torch on one."""
    with (
        one_thread(),
        ThreadPoolExecutor(_workers(), initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool


def _computed(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], batches: Sequence[Sequence[Item]]
) -> Generator[Future[list[Result]], None, None]:
    """`function` of the items of each batch, a few batches ahead of what is read."""

    def work(batch: Sequence[Item]) -> list[Result]:
        with torch.inference_mode():
            return [function(item) for item in batch]

    ahead, pending = 2 * _workers(), deque[Future[list[Result]]]()
    try:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) == ahead:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        for future in pending:
            future.cancel()
