"""The course of fine-tuning: first only tensors are rounded, so that weights learn to live with
their noise; then the weights are rounded together; then all that int8 rounds is refined."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Inputs
from qconvert.models.fusion import FusedModel
from qconvert.models.operators import module_of
from qconvert.qconfig import FinetuneSection
from qconvert.quantization.fewer_bits import nodes_by_name
from qconvert.quantization.plan import Plan
from qconvert.quantization.recovery.corrected import (
    Corrected,
    corrected_layers,
    with_corrections,
)
from qconvert.quantization.training.checkpoints import Checkpoint
from qconvert.quantization.training.finetuned import Finetuned, with_finetuned
from qconvert.quantization.training.history import HeldOut, Training
from qconvert.quantization.training.learner import Learner
from qconvert.quantization.training.train import Ended, Talk, Trainer
from qconvert.steps.learning import TrainingTeam, device, learner_of
from qconvert.steps.measured import Measured
from qconvert.steps.recovery import Recovered, bytes_of
from qconvert.steps.requests import Learning, send_content
from qconvert.steps.same_model import check_model
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.training_images import divided
from qconvert.steps.two_terms import base_of, int8_base
from qconvert.workspace import Workspace, write_atomically

# Where each part goes on after it was interrupted; they are removed at the end.
CHECKPOINTS = ("finetune.1.checkpoint", "finetune.2.checkpoint")
# What is refined moves so much less.
_REFINING = 0.02
# Images that the loss is measured in proportion to.
_MEASURED = 32


class Form(NamedTuple):
    """A model and its plan."""

    model: FusedModel
    plan: Plan


class Course:
    """One training of a session, from what recovery left on; goes on from checkpoints of `key`."""

    def __init__(
        self, session: Session, begin: Recovered, images: ImageSet, seen: Measured, key: str
    ) -> None:
        self._session, self._seen, self._key = session, seen, key
        self._section = session.config.finetune
        self._base = int8_base(session)
        self._begin = Form(begin.model, begin.plan)
        self._training, self._held_out = divided(images, self._section.held_out)
        self._powers: dict[str, float] = {}

    def run(self) -> tuple[Training, Finetuned]:
        """How it was trained, and what is to be applied where it began."""
        began, say = time.perf_counter(), self._session.voice.say
        learner = self._learner(self._begin, rounds=True)
        before = learner.judge(self._held_out)
        say(
            f"finetune: {len(self._training)} images to train with, {len(self._held_out)} held "
            f"out, on which the plan has {before.words}; "
            f"{sum(p.numel() for p in learner.student.parameters):,} learned values; {device()}"
        )
        section, team = self._section, self._session.others
        first = round(section.epochs * section.unrounded)
        done, spent_s, form = 0, 0.0, self._begin
        ended: Ended = "epochs"
        left = section.epochs - first
        if first:
            found, ended, form, rounding_s = self._unrounded(first, before)
            done, spent_s = len(found.history) - 1, _seconds(found) + rounding_s
            # An epoch takes a little longer where weights are rounded.
            if section.minutes is not None and (
                spent_s + _seconds(found) / max(done, 1) > 60 * section.minutes
            ):
                left, ended = 0, "minutes"
        learner = self._learner(form, rounds=True)
        refined, again = self._refined(learner, form, left, spent_s)
        ended = again if left else ended
        best = refined.history[refined.best_epoch].held_out
        better = best.rank(section.teacher) > before.rank(section.teacher)
        training = Training(
            teacher=section.teacher,
            images=len(self._training),
            epochs=done + len(refined.history) - 1,
            best_epoch=done + refined.best_epoch if better else 0,
            before=before,
            after=best if better else before,
            ended=ended,
            device=device().partition(":")[0],
            processes=1 if team is None else team.place.world,
            seconds=max(time.perf_counter() - began, spent_s + _seconds(refined)),
        )
        say(f"finetune: ended by {ended}: {training.line}")
        return training, learner.student.finetuned()

    def _unrounded(self, epochs: int, before: HeldOut) -> tuple[Checkpoint, Ended, Form, float]:
        """With weights as they are; then these are rounded together, in so many seconds. Where that
        is no better than the beginning, the rest goes on from there."""
        section, say = self._section, self._session.voice.say
        share = section.unrounded
        minutes = None if section.minutes is None else section.minutes * share
        part = section.model_copy(update={"epochs": epochs, "minutes": minutes})
        free = Form(self._base, self._begin.plan)
        learner = self._learner(free, rounds=False)
        found, ended = self._trained(learner, free, part, CHECKPOINTS[0], "weights not rounded")
        start = time.perf_counter()
        form = self._rounded(Form(*with_finetuned(*free, learner.student.finetuned())))
        judged = self._learner(form, rounds=True).judge(self._held_out)
        say(f"finetune: weights rounded: held-out images: {judged.words}")
        if judged.rank(section.teacher) <= before.rank(section.teacher):
            say("finetune: no better than the plan, from which the rest goes on")
            form = self._begin
        return found, ended, form, time.perf_counter() - start

    def _rounded(self, form: Form) -> Form:
        """With integers that are chosen together, if the qconfig allows it."""
        session = self._session
        if session.config.recovery.rounding == "off":
            return form
        count = sum(map(len, session.recovery_images))
        step = max(1, -(-len(self._training) // count))
        inputs: list[Inputs] = [session.read(x.path) for x in self._training[::step]]
        with session.voice.progress("finetune: rounding weights") as progress:
            corrections = corrected_layers(
                *form, inputs, rounding=True, bias_correction=False, progress=progress
            )
        return Form(*with_corrections(*form, corrections))

    def _refined(
        self, learner: Learner, form: Form, epochs: int, spent_s: float
    ) -> tuple[Checkpoint, Ended]:
        """All that int8 rounds, with steps of full size where nothing else came before."""
        section = self._section
        scale = _REFINING if form is not self._begin else 1.0
        minutes = None if section.minutes is None else max(section.minutes - spent_s / 60, 1e-3)
        part = section.model_copy(update={
            "epochs": epochs,
            "minutes": minutes,
            "learning_rate": section.learning_rate * scale,
            "scale_learning_rate": section.scale_learning_rate * scale,
        })  # fmt: skip
        return self._trained(learner, form, part, CHECKPOINTS[1], "weights rounded")

    def _trained(
        self, learner: Learner, form: Form, part: FinetuneSection, name: str, title: str
    ) -> tuple[Checkpoint, Ended]:
        voice = self._session.voice
        with voice.progress(f"finetune: {title}") as progress:
            trainer = Trainer(
                learner, self._training, self._held_out, part, Talk(voice.say, progress),
                lambda checkpoint: self._keep(name, checkpoint), self._team(form, learner),
            )  # fmt: skip
            return trainer.run(self._checkpoint(name))

    def _learner(self, form: Form, rounds: bool) -> Learner:
        learner = learner_of(self._session, self._base, *form, self._seen, rounds)
        if not self._powers:
            learner.measure_powers(self._held_out[:_MEASURED])
            self._powers = dict(learner.loss.powers)
        learner.set_powers(self._powers)
        return learner

    def _team(self, form: Form, learner: Learner) -> TrainingTeam | None:
        session, others = self._session, self._session.others
        if others is None:
            return None
        weights = send_content(others, bytes_of(_weights(form)))
        record = session.workspace.read(FUSE_RECORD) or {}
        others.ask(
            Learning(
                session.skipped, record, form.plan, weights, base_of(session),
                learner.student.rounds, self._powers,
            )
        )  # fmt: skip
        check_model(session, others)
        return TrainingTeam(others)

    def _keep(self, name: str, checkpoint: Checkpoint) -> None:
        workspace = self._session.workspace
        write_atomically(workspace.path(name), checkpoint.to_bytes())
        workspace.write_record(f"{name}.json", self._key, (name,), {})

    def _checkpoint(self, name: str) -> Checkpoint | None:
        """Where an interrupted run with the same inputs was."""
        session, workspace = self._session, self._session.workspace
        stale = workspace.why_stale(f"{name}.json", lambda _: self._key)
        if session.force or stale is not None:
            return None
        found = Checkpoint.from_bytes(workspace.path(name).read_bytes())
        session.voice.say(f"finetune: goes on after epoch {len(found.history) - 1}")
        return found


def remove_checkpoints(workspace: Workspace) -> None:
    """At the end."""
    for name in CHECKPOINTS:
        for path in (workspace.path(f"{name}.json"), workspace.path(name)):
            path.unlink(missing_ok=True)


def _weights(form: Form) -> dict[str, Corrected]:
    """Of all int8 layers."""
    nodes, found = nodes_by_name(form.model), {}
    for operator in form.plan.operators:
        if operator.precision == "int8" and operator.weight is not None:
            module: Any = module_of(form.model.graph, nodes[operator.node])
            bias = None if module.bias is None else module.bias.detach()
            found[operator.node] = Corrected(module.weight.detach(), bias)
    return found


def _seconds(found: Checkpoint) -> float:
    return sum(epoch.seconds for epoch in found.history)
