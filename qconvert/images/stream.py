"""Runs a function over images on all cores, results in order, memory bounded.

Every image is decoded and run on its own, on one thread: a result depends on nothing but the
image (float sums differ with the batch size and the number of threads), and the cores work on
different images.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from qconvert.errors import ImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import load, size_after
from qconvert.qconfig import Preprocess

Result = TypeVar("Result")
# Called with the number of images done and the number of all.
Progress = Callable[[int, int], None]


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
    function: Callable[[Tensor], Result],
    images: ImageSet,
    preprocess: Preprocess,
    *,
    batch_size: int = 8,
    progress: Progress = no_progress,
) -> Generator[Result, None, None]:
    """Yields `function(input)` for every image, in the order of `images.files`.

    An input is (1, channels, height, width) float32. `batch_size` images are handed to a worker
    at a time; results do not depend on it.
    """

    def work(paths: Sequence[Path]) -> list[Result]:
        with torch.inference_mode():
            return [function(load(path, preprocess)) for path in paths]

    starts = range(0, len(images), batch_size)
    batches = deque(images.files[i : i + batch_size] for i in starts)
    done, workers = 0, cores()
    pending: deque[Future[list[Result]]] = deque()
    progress(0, len(images))
    with (
        one_thread(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            while batches or pending:
                while batches and len(pending) < 2 * workers:
                    pending.append(pool.submit(work, batches.popleft()))
                results = pending.popleft().result()
                done += len(results)
                yield from results
                progress(done, len(images))
        finally:
            for future in pending:
                future.cancel()


def input_shape(images: ImageSet, preprocess: Preprocess) -> tuple[int, ...]:
    """The shape of one input, (1, channels, height, width), the same for all images.

    Raises ImageError when the images differ in size after the preprocessing.
    """
    sizes: dict[tuple[int, int], Path] = {}
    for path in images.files:
        try:
            with Image.open(path) as image:
                sizes.setdefault(size_after(image.size, preprocess), path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # named with its reason when it is decoded
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ImageError(
            f"the inputs differ in size: {a[0]} x {a[1]} from {first.name}, "
            f"{b[0]} x {b[1]} from {second.name}",
            where=str(images.root),
            fix="set `data.preprocess.resize: [height, width]`, or a `crop`",
        )
    return tuple(load(images.files[0], preprocess).shape)
