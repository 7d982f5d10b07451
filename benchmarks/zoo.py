"""Converts, reloads and measures architectures of torchvision and timm, and writes tables of them.

    make zoo      27 of torchvision's, the quick run    (close other programs first)
    make zoo-all  all that fit, in some hours: goes on where it was stopped

    python benchmarks/zoo.py --only resnet18,densenet121            (printed, not written)
    python benchmarks/zoo.py --all --failed docs/zoo.md             (repeats what was refused)
    python benchmarks/zoo.py --all --again resnet18 docs/zoo.md     (repeats it, and goes on)

Each model is one run of `qconvert benchmark` in a process of its own. The exit code is 1 when a
model could not be converted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import zoo_models as zoo
from zoo_page import page, progress
from zoo_run import ROOT, Run, Runner, file_name, load, save


@dataclass(frozen=True)
class Zoo:
    """A selection of models, their results and their page."""

    command: str
    build: Path
    names: Sequence[str]
    large: dict[str, int]
    written: Path | None

    def result(self, name: str) -> Path:
        """The file of a model that is done."""
        return self.build / "results" / f"{file_name(name)}.json"

    def done(self) -> list[Run]:
        """All that is there, in the order of the page."""
        return [load(self.result(name)) for name in self.names if self.result(name).exists()]

    def forget(self, names: Iterable[str]) -> None:
        """Has them run again."""
        for name in names:
            self.result(name).unlink(missing_ok=True)

    def page(self) -> str:
        """Of all that is there."""
        return page(self.done(), self.command, len(self.names), self.large)

    def write(self) -> None:
        """The page, or nothing when no file was given."""
        if self.written is not None:
            part = self.written.with_name(self.written.name + ".part")
            part.write_text(self.page(), encoding="utf-8")
            part.replace(self.written)


def run_all(selected: Zoo, names: Sequence[str], workers: int) -> None:
    """Runs the models that are not done, and writes the page after each."""
    runner, lock = Runner(selected.build), threading.Lock()

    def run(place: int, name: str) -> None:
        run = runner.run(name)
        if run is None:
            return
        with lock:
            save(run, selected.result(name))
            print(f"[{place:3}/{len(names)}] {progress(run)}", file=sys.stderr, flush=True)
            selected.write()

    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(run, place, name) for place, name in enumerate(names, 1)]
            for future in futures:
                future.result()
        except BaseException:
            runner.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C: what runs is ended too."""
    raise KeyboardInterrupt


def selected_by(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Zoo:
    """The zoo that the options mean."""
    names, large = zoo.selection() if options.all else (list(zoo.QUICK), {})
    command = "make zoo-all" if options.all else "make zoo"
    if options.only and not options.all:
        command = f"benchmarks/zoo.py --only {','.join(options.only)}"
    known = set(names)
    for asked in (options.only, options.again):
        if unknown := [name for name in asked or () if name not in known]:
            parser.error(f"not in the zoo: {', '.join(unknown)}")
    if not options.all:
        names = options.only or names
    build = ROOT / ("build/zoo-all" if options.all else "build/zoo")
    return Zoo(command, build, names, large, options.page)


def main() -> int:
    """Runs the models; writes the page, or prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, help="the file to write (default: stdout)")
    parser.add_argument("--all", action="store_true", help="all that fit, and timm's")
    parser.add_argument("--only", metavar="NAME,NAME", type=_names, help="a part of the models")
    parser.add_argument("--again", metavar="NAME,NAME", type=_names, help="repeat them")
    parser.add_argument("--failed", action="store_true", help="repeat those that were refused")
    parser.add_argument("--workers", type=int, default=1, help="models at a time (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _stop)
    selected = selected_by(options, parser)
    if not options.all:  # the quick run begins anew
        selected.forget(selected.names)
    selected.forget(options.again or ())
    if options.failed:
        selected.forget(r.name for r in selected.done() if r.report is None)
    names = [n for n in options.only or selected.names if not selected.result(n).exists()]
    try:
        run_all(selected, names, options.workers)
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130
    selected.write()
    if options.page is None:
        print(selected.page())
    return 1 if any(r.report is None for r in selected.done()) else 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
