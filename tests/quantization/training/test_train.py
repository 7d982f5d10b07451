"""The loop, on a small network that int8 harms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qconvert.images.folder import ImageSet
from qconvert.images.stream import no_progress
from qconvert.qconfig import FinetuneSection
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.training.checkpoints import Checkpoint
from qconvert.quantization.training.features import block_outputs, with_features
from qconvert.quantization.training.learner import Example, Learner
from qconvert.quantization.training.losses import Loss
from qconvert.quantization.training.student import Student
from qconvert.quantization.training.train import Talk, Trainer

SECTION = FinetuneSection(epochs=12, minutes=None, batch_size=4, learning_rate=0.02)


def uneven() -> nn.Module:
    """Channels of sizes from 1 to 1/30 in a tensor that has one scale, before a SiLU, through
    which no equalization goes."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3),
        nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    sizes = torch.logspace(0, -1.5, 16)
    for layer, after in ((network[0], network[2]), (network[2], network[4])):
        layer.weight.data *= sizes.view(16, 1, 1, 1)
        after.weight.data /= sizes.view(1, 16, 1, 1)
    return network


@pytest.fixture
def trainer(converted, image_set: ImageSet) -> Callable[..., Trainer]:
    """Makes the trainer of one network anew each time."""
    found = converted(uneven)
    examples = [Example(path, i % 5) for i, path in enumerate(image_set.files)]

    def read(path: Path, epoch: int) -> tuple[torch.Tensor]:
        place = image_set.files.index(path)
        return (found.images[place : place + 1],)

    def make(
        section: FinetuneSection = SECTION, keep: Any = lambda checkpoint: None, **more: Any
    ) -> Trainer:
        names = block_outputs(found.fused, found.plan)
        nodes = nodes_by_name(found.fused)
        teacher = with_features(found.fused.graph, {name: nodes[name] for name in names})
        classes = "output" if section.teacher != "float" else None
        loss = Loss({}, section.features, section.teacher != "labels", classes)
        student = Student(found.fused, found.plan, names)
        learner = Learner(student, teacher, found.fused.graph, read, loss, "output")
        learner.measure_powers(examples[8:])
        talk = Talk(lambda line: None, no_progress)
        return Trainer(learner, examples[:8], examples[8:], section, talk, keep, **more)

    return make


def result(trainer: Trainer) -> bytes:
    return trainer._student.finetuned().to_bytes()


def test_the_float_model_teaches(trainer) -> None:
    found, ended = trainer().run(None)
    first, best = found.history[0].held_out, found.history[found.best_epoch].held_out
    assert ended == "epochs"
    assert len(found.history) == 13
    assert best.sqnr_db > first.sqnr_db + 2


@pytest.mark.parametrize("teacher", ["labels", "both"])
def test_labels_teach(trainer, teacher: str) -> None:
    """They are no function of these images: what is learned of them is seen in the loss."""
    settings = {"teacher": teacher, "epochs": 40, "learning_rate": 0.2}
    found, _ = trainer(SECTION.model_copy(update=settings)).run(None)
    assert found.history[-1].loss < found.history[1].loss
    ranks = [epoch.held_out.rank(teacher) for epoch in found.history]
    assert found.best_epoch == ranks.index(max(ranks))


def test_a_resumed_run_ends_as_an_uninterrupted_one(trainer) -> None:
    kept: list[bytes] = []
    whole = trainer(keep=lambda checkpoint: kept.append(checkpoint.to_bytes()))
    found, _ = whole.run(None)
    assert len(kept) == 13
    resumed = trainer()
    again, _ = resumed.run(Checkpoint.from_bytes(kept[3]))
    assert result(resumed) == result(whole)
    assert [e.held_out for e in again.history] == [e.held_out for e in found.history]
    assert [e.loss for e in again.history] == [e.loss for e in found.history]


def test_never_worse_on_held_out_images_than_the_start(trainer) -> None:
    """Steps that are far too large: the start is the best."""
    wild = trainer(SECTION.model_copy(update={"learning_rate": 1e3, "epochs": 2}))
    before = result(wild)
    found, _ = wild.run(None)
    assert found.best_epoch == 0
    assert found.history[-1].held_out.sqnr_db < found.history[0].held_out.sqnr_db
    assert result(wild) == before


def test_patience_ends(trainer) -> None:
    settings = {"learning_rate": 1e3, "epochs": 9, "patience": 2}
    found, ended = trainer(SECTION.model_copy(update=settings)).run(None)
    assert (len(found.history) - 1, ended) == (2, "patience")


def test_what_is_no_number_ends_with_the_best_before(trainer) -> None:
    section = SECTION.model_copy(update={"scale_learning_rate": 1e30})
    broken = trainer(section)
    before = result(broken)
    found, ended = broken.run(None)
    assert ended == "diverged"
    assert found.best_epoch == 0
    assert result(broken) == before


def test_time_ends(trainer) -> None:
    """An epoch that takes longer than there is: it is the last, and its steps become small."""
    section = SECTION.model_copy(update={"minutes": 1e-9, "epochs": 1000})
    found, ended = trainer(section).run(None)
    assert ended == "minutes"
    assert len(found.history) - 1 < 5


class Halves:
    """The other half of each batch, computed here."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def ask(self, state: Sequence[torch.Tensor], examples: Sequence[Example], epoch: int) -> None:
        groups = self._learner.load(examples[1::2], epoch)
        self._learner.student.load(state)
        self._loss = self._learner.add_gradients(groups, len(examples))

    def own(self, examples: Sequence[Example]) -> Sequence[Example]:
        return examples[::2]

    def add_gradients(self, parameters: Sequence[torch.Tensor]) -> float:
        for parameter, other in zip(parameters, self._learner.student.parameters, strict=True):
            assert parameter.grad is not None
            assert other.grad is not None
            parameter.grad += other.grad
            other.grad = None
        return self._loss


def test_shared_batches_teach_the_same(trainer) -> None:
    """But for the order of float sums."""
    section = SECTION.model_copy(update={"epochs": 1})
    alone, _ = trainer(section).run(None)
    other = trainer(section)._learner
    shared, _ = trainer(section, others=Halves(other)).run(None)
    assert shared.history[1].loss == pytest.approx(alone.history[1].loss, rel=1e-3)


def test_images_of_two_sizes_are_one_batch(trainer) -> None:
    learner = trainer()._learner
    sizes = {"a": 24, "b": 30, "c": 24}
    read = lambda path, epoch: (torch.ones(1, 3, sizes[path.name], 24),)  # noqa: E731
    learner._read = read
    groups = learner.load([Example(Path(name), 1) for name in "abc"], 1)
    assert [len(group) for group in groups] == [2, 1]
    assert learner.add_gradients(groups, 3) > 0


def test_loss_is_measured_in_the_powers_of_the_float_model() -> None:
    """Noise of a tenth of the power counts as a tenth, whatever the size."""
    loss = Loss({"output": 400.0, "inside": 1e-6}, 2.0, True, None)
    outputs, wanted = {"output": torch.full((1, 3), 20.0)}, {"output": torch.zeros(1, 3)}
    values = torch.full((1, 2, 2, 2), 1e-3)
    noise = torch.tensor([[1e-3, -1e-3], [1e-3, -1e-3]])
    found = loss(outputs, {"inside": values + noise}, wanted, {"inside": values}, None)
    # With noise as large as the value, half of the value is nearest.
    assert float(found) == pytest.approx(1.0 + 2.0 * 0.5)
    without = replace(loss, features=0.0)
    assert float(without(outputs, {"inside": noise}, wanted, {"inside": values}, None)) == (
        pytest.approx(1.0)
    )


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 7, 3), (4, 3)])
def test_channels_inside_may_be_of_any_size(shape) -> None:
    """What makes a channel larger, and is made up for after it, is no noise."""
    axis = 2 if len(shape) == 3 else 1
    sizes = torch.tensor([1.0, 30.0, 0.01]).view([3 if i == axis else 1 for i in range(len(shape))])
    wanted = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    noise = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    output = {"output": torch.zeros(4, 3)}
    loss = Loss({"output": 1.0, "inside": 1.0}, 1.0, True, None)

    def of(found: torch.Tensor) -> float:
        return float(loss(output, {"inside": found}, output, {"inside": wanted}, None))

    assert of(sizes * wanted) == pytest.approx(0.0, abs=1e-9)
    assert of(sizes * (wanted + noise)) == pytest.approx(of(wanted + noise), rel=1e-4)
    assert of(wanted + noise) > 0.002
