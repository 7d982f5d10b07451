"""A student beside its teacher: what each batch teaches, and how good the student is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from qconvert.images.preprocess import Inputs
from qconvert.measurement.statistics import decibels
from qconvert.models.outputs import tensors
from qconvert.quantization.training.history import HeldOut
from qconvert.quantization.training.losses import Loss
from qconvert.quantization.training.student import Student


@dataclass(frozen=True)
class Example:
    """An image, and the index of its class if that is known."""

    path: Path
    label: int | None = None


@dataclass(frozen=True)
class Group:
    """Images of one size: a model's inputs for all, and their labels."""

    inputs: Inputs
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs[0])


# Reads an image as it is in an epoch.
ReadIn = Callable[[Path, int], Inputs]


class Learner:
    """`teacher` is the float model that the student was made of, with its features; `original` the
    one that outputs are judged by. Of these `answers` names the one whose largest values are
    answers, if there is one."""

    def __init__(
        self,
        student: Student,
        teacher: GraphModule,
        original: Callable[..., Any],
        read: ReadIn,
        loss: Loss,
        answers: str | None,
        device: str = "cpu",
    ) -> None:
        self.student = student
        self._teacher, self._original = teacher, original
        self._read, self.loss, self._answers = read, loss, answers
        self._device = device

    def measure_powers(self, examples: Sequence[Example]) -> None:
        """Sets the loss's powers by what the teacher computes for these images."""
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for example in examples:
                outputs, features = self._teacher(*self._placed(self._read(example.path, 0)))
                for name, value in {**_floats(outputs), **features}.items():
                    sums.setdefault(name, []).append(float(value.double().square().mean()))
        self.set_powers({name: sum(found) / len(found) for name, found in sums.items()})

    def set_powers(self, powers: Mapping[str, float]) -> None:
        """What the loss is measured in proportion to, by what `measure_powers` found."""
        self.loss = replace(self.loss, powers=powers)

    def load(self, examples: Sequence[Example], epoch: int) -> list[Group]:
        """The images as they are in an epoch, those of one size together."""
        found: dict[tuple[torch.Size, ...], list[tuple[Inputs, int | None]]] = {}
        for example in examples:
            inputs = self._read(example.path, epoch)
            found.setdefault(tuple(x.shape for x in inputs), []).append((inputs, example.label))
        groups = []
        for members in found.values():
            inputs = tuple(map(torch.cat, zip(*(one for one, _ in members), strict=True)))
            labels = [label for _, label in members if label is not None]
            groups.append(Group(inputs, torch.tensor(labels) if labels else None))
        return groups

    def add_gradients(self, groups: Sequence[Group], of: int) -> float:
        """Adds what these images teach, as a part of a batch `of` so many; their part of its
        loss."""
        total = 0.0
        for group in groups:
            inputs = self._placed(group.inputs)
            labels = None if group.labels is None else group.labels.to(self._device)
            wanted: Mapping[str, Tensor] = {}
            wanted_features: Mapping[str, Tensor] = {}
            if self.loss.teaches:
                with torch.no_grad():
                    result, wanted_features = self._teacher(*inputs)
                wanted = _floats(result)
            result, features = self.student(*inputs)
            loss = self.loss(_floats(result), features, wanted, wanted_features, labels)
            loss = loss * (len(group) / of)
            loss.backward()
            total += loss.item()
        return total

    @torch.no_grad()
    def judge(self, examples: Sequence[Example]) -> HeldOut:
        """The student beside the original model, image by image."""
        signal, noise = dict[str, float](), dict[str, float]()
        same, right, entropy = list[float](), list[float](), list[float]()
        for example in examples:
            inputs = self._placed(self._read(example.path, 0))
            wanted, found = _floats(self._original(*inputs)), _floats(self.student(*inputs)[0])
            for name, want in wanted.items():
                error = found[name].double() - want.double()
                signal[name] = signal.get(name, 0.0) + float(want.double().square().sum())
                noise[name] = noise.get(name, 0.0) + float(error.square().sum())
            if self._answers is not None:
                answers = found[self._answers].argmax(1)
                same.append(float((answers == wanted[self._answers].argmax(1)).double().mean()))
                if example.label is not None and answers.numel() == 1:
                    right.append(float(answers.item() == example.label))
                    logs = found[self._answers].double().log_softmax(1)
                    entropy.append(-float(logs[0, example.label]))
        shares = [noise[name] / power for name, power in signal.items() if power]
        return HeldOut(
            images=len(examples),
            sqnr_db=decibels(float(len(shares)), sum(shares)),
            agreement=_mean(same),
            top1=_mean(right),
            cross_entropy=_mean(entropy),
        )

    def _placed(self, inputs: Inputs) -> Inputs:
        """On the device, in the memory layout that convolutions are fast with."""
        return tuple(
            x.to(self._device).contiguous(memory_format=torch.channels_last)
            if x.dim() == 4
            else x.to(self._device)
            for x in inputs
        )


def _floats(result: Any) -> Mapping[str, Tensor]:
    return {name: x for name, x in tensors(result).items() if x.is_floating_point()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
