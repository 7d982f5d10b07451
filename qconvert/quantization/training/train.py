"""The loop: epochs of steps, judged on held-out images, until one of the limits."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from typing import Literal, Protocol

import torch
from torch import Tensor

from qconvert.images.stream import Progress
from qconvert.qconfig import FinetuneSection
from qconvert.quantization.training.checkpoints import Checkpoint, Keep
from qconvert.quantization.training.history import Epoch
from qconvert.quantization.training.learner import Example, Group, Learner
from qconvert.quantization.training.schedule import ahead, share

Ended = Literal["epochs", "minutes", "patience", "diverged"]


class Others(Protocol):
    """Other processes that compute their parts of each batch."""

    def ask(self, state: Sequence[Tensor], examples: Sequence[Example], epoch: int) -> None:
        """Sends the learned values, and the images of a batch; each takes its own of them."""
        ...

    def own(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The images that are left to this process."""
        ...

    def add_gradients(self, parameters: Sequence[Tensor]) -> float:
        """Adds what the others found, and returns their parts of the loss."""
        ...


@dataclass(frozen=True)
class Talk:
    """How training tells of itself: lines, and images done of all."""

    say: Callable[[str], None]
    progress: Progress


class Trainer:
    """Trains a learner's student; deterministic, but for a limit of minutes that comes before that
    of the epochs. `others` share each batch."""

    def __init__(
        self,
        learner: Learner,
        training: Sequence[Example],
        held_out: Sequence[Example],
        section: FinetuneSection,
        talk: Talk,
        keep: Keep,
        others: Others | None = None,
    ) -> None:
        self._learner, self._student = learner, learner.student
        self._training, self._held_out = training, held_out
        self._section, self._talk, self._keep, self._others = section, talk, keep, others
        self._optimizer = torch.optim.AdamW(
            [
                {"params": self._student.weights, "rate": section.learning_rate},
                {"params": self._student.scales, "rate": section.scale_learning_rate},
                {"params": self._student.channels, "rate": section.channel_learning_rate},
            ],
            weight_decay=0.0,
        )

    def run(self, found: Checkpoint | None) -> tuple[Checkpoint, Ended]:
        """From the start or from a checkpoint to the end; leaves the best in the student."""
        if found is None:
            found = self._start()
            self._keep(found)
        else:
            self._student.load(found.state)
            self._optimizer.load_state_dict(found.optimizer)
        while (ended := self._why_ended(found)) is None:
            after = self._epoch(found)
            if after is None:
                ended = "diverged"
                break
            found = after
            self._keep(found)
        self._student.load(found.best)
        return found, ended

    def _start(self) -> Checkpoint:
        start = time.perf_counter()
        self._student.keep_within()
        before = self._learner.judge(self._held_out)
        epoch = Epoch(epoch=0, loss=None, held_out=before, seconds=time.perf_counter() - start)
        self._talk.say(f"finetune: start: held-out images: {before.words}")
        state = self._student.state()
        return Checkpoint((epoch,), state, state, 0, self._optimizer.state_dict(), 0.0)

    def _why_ended(self, found: Checkpoint) -> Ended | None:
        section, done = self._section, len(found.history) - 1
        if done >= section.epochs:
            return "epochs"
        if found.progress >= 1.0 or self._out_of_time(found):
            return "minutes"
        if section.patience is not None and done - found.best_epoch >= section.patience:
            return "patience"
        return None

    def _out_of_time(self, found: Checkpoint) -> bool:
        """Whether there is not even half the time of one more epoch. The last one may end a little
        late: without it the rates would not have come down."""
        done = len(found.history) - 1
        if self._section.minutes is None or not done:
            return False
        spent_s = sum(epoch.seconds for epoch in found.history)
        return 60 * self._section.minutes - spent_s < spent_s / done / 2

    def _epoch(self, found: Checkpoint) -> Checkpoint | None:
        """One more; None if it came to no number."""
        start, number = time.perf_counter(), len(found.history)
        until = self._until(found)
        loss = self._steps(number, found.progress, until)
        if not isfinite(loss):
            self._talk.say(
                f"finetune: epoch {number}: the loss is {loss}: ended; smaller learning rates "
                "(finetune.learning_rate, finetune.scale_learning_rate) may help"
            )
            return None
        judged = self._learner.judge(self._held_out)
        seconds = time.perf_counter() - start
        epoch = Epoch(epoch=number, loss=loss, held_out=judged, seconds=seconds)
        state, teacher = self._student.state(), self._section.teacher
        best = found.history[found.best_epoch].held_out
        better = judged.rank(teacher) > best.rank(teacher)
        self._talk.say(
            f"finetune: epoch {number} of {self._section.epochs} at most: loss {loss:.4g}; "
            f"held-out images: {judged.words}{', the best' if better else ''}; {seconds:.0f} s"
        )
        return Checkpoint(
            history=(*found.history, epoch),
            state=state,
            best=state if better else found.best,
            best_epoch=number if better else found.best_epoch,
            optimizer=self._optimizer.state_dict(),
            progress=until,
        )

    def _until(self, found: Checkpoint) -> float:
        """How far the schedule is after the next epoch."""
        minutes = self._section.minutes
        spent_s = sum(epoch.seconds for epoch in found.history)
        budget_s = None if minutes is None else 60 * minutes
        done = len(found.history) - 1
        return ahead(found.progress, done, self._section.epochs, spent_s, budget_s)

    def _steps(self, number: int, begin: float, until: float) -> float:
        """The mean loss of an epoch's steps."""
        examples = list(self._training)
        random.Random(f"{self._section.seed} {number}").shuffle(examples)
        size = self._section.batch_size
        batches = [examples[i : i + size] for i in range(0, len(examples), size)]
        total, done = 0.0, 0
        for i, (batch, groups) in enumerate(self._loaded(batches, number)):
            rate = share(begin + (until - begin) * i / len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = group["rate"] * rate
            total += len(batch) * self._step(batch, groups, number)
            done += len(batch)
            self._talk.progress(done, len(examples))
            if not isfinite(total):
                break
        return total / len(examples)

    def _step(self, batch: Sequence[Example], groups: Sequence[Group], number: int) -> float:
        self._optimizer.zero_grad()
        if self._others is not None:
            self._others.ask(self._student.state(), batch, number)
        loss = self._learner.add_gradients(groups, len(batch))
        if self._others is not None:
            loss += self._others.add_gradients(self._student.parameters)
        self._optimizer.step()
        self._student.keep_within()
        return loss

    def _loaded(
        self, batches: Sequence[Sequence[Example]], number: int
    ) -> Iterator[tuple[Sequence[Example], list[Group]]]:
        """Each batch with the images of it that are left to this process, read while the one
        before is computed."""
        own = self._others.own if self._others is not None else lambda batch: batch
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._learner.load, own(batches[0]), number)
            for i, batch in enumerate(batches):
                groups = coming.result()
                if i + 1 < len(batches):
                    coming = pool.submit(self._learner.load, own(batches[i + 1]), number)
                yield batch, groups
