"""Student and teacher of a session; and the part that other ranks have in training."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from qconvert.images.augmentation import change_of
from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.plan import Plan
from qconvert.quantization.training.features import block_outputs, with_features
from qconvert.quantization.training.learner import Example, Learner
from qconvert.quantization.training.losses import Loss
from qconvert.quantization.training.student import Student
from qconvert.ranks.place import place
from qconvert.ranks.team import First, Helper
from qconvert.steps.measured import Measured
from qconvert.steps.requests import Step
from qconvert.steps.session import Session


@dataclass(frozen=True)
class Gradients:
    """A rank's part of a step."""

    loss: float
    values: list[Tensor]


def device() -> str:
    """A GPU, if there is one: that of this rank."""
    if not torch.cuda.is_available():
        return "cpu"
    here = place()
    return f"cuda:{0 if here is None else here.rank % torch.cuda.device_count()}"


def learner_of(
    session: Session,
    teacher: FusedModel,
    model: FusedModel,
    plan: Plan,
    seen: Measured,
    rounds: bool = True,
) -> Learner:
    """The student that begins as `model` and `plan` and rounds its weights or does not, beside the
    float model that these were made of (its channels may be equalized)."""
    section, where = session.config.finetune, device()
    features = block_outputs(model, plan) if section.features else []
    nodes = nodes_by_name(teacher)
    taught = with_features(teacher.graph, {name: nodes[name] for name in features})
    original = session.fused.graph
    rows = seen.answers and len(seen.shape) == 2
    loss = Loss(
        powers={},
        features=section.features,
        teaches=section.teacher != "labels",
        classes=seen.name if rows and section.teacher != "float" else None,
    )
    return Learner(
        Student(model, plan, features, where, rounds),
        _on(taught, where),
        _on(original, where),
        partial(_read, session),
        loss,
        seen.name if seen.answers else None,
        where,
    )


def _on(graph: GraphModule, where: str) -> GraphModule:
    return graph if where == "cpu" else copy.deepcopy(graph).to(where)


def _read(session: Session, path: Path, epoch: int) -> Inputs:
    """An image as it is in an epoch; as it is in epoch 0."""
    section = session.config.finetune
    if not epoch:
        return session.read(path)
    return session.read(path, change_of(section.augmentation, section.seed, epoch, path))


class TrainingTeam:
    """See `train.Others`: the other ranks, each of which has every n-th image of a batch."""

    def __init__(self, others: First) -> None:
        self._others = others
        self._world = others.place.world

    @property
    def processes(self) -> int:
        """This one, too."""
        return self._world

    def ask(self, state: Sequence[Tensor], examples: Sequence[Example], epoch: int) -> None:
        """See `train.Others`."""
        self._others.ask(Step(list(state), tuple(examples), epoch))

    def own(self, examples: Sequence[Example]) -> Sequence[Example]:
        """See `train.Others`."""
        return examples[:: self._world]

    def add_gradients(self, parameters: Sequence[Tensor]) -> float:
        """See `train.Others`."""
        loss = 0.0
        for rank in self._others.others:
            found: Gradients = self._others.take(rank)
            loss += found.loss
            for parameter, value in zip(parameters, found.values, strict=True):
                value = value.to(parameter.device)
                parameter.grad = value if parameter.grad is None else parameter.grad + value
        return loss


def lend_step(learner: Learner, step: Step, helper: Helper) -> None:
    """Another rank's part of a step."""
    student, here = learner.student, helper.place
    student.load(step.state)
    for parameter in student.parameters:
        parameter.grad = None
    groups = learner.load(step.examples[here.rank :: here.world], step.epoch)
    loss = learner.add_gradients(groups, len(step.examples))
    values = [torch.zeros(p.shape) if p.grad is None else p.grad.cpu() for p in student.parameters]
    helper.give(Gradients(loss, values))
