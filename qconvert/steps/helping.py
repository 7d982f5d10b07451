"""What a rank does that is not the first: its share of whatever rank 0 asks for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qconvert import torchscript
from qconvert.errors import QConvertError
from qconvert.qconfig import QConfig
from qconvert.quantization.calibration import lend_calibration
from qconvert.quantization.recovery.corrected import with_corrections
from qconvert.quantization.training.learner import Learner
from qconvert.ranks.team import Helper, Over
from qconvert.ranks.watch import End
from qconvert.steps.agreement import facts
from qconvert.steps.calibrate import split_of
from qconvert.steps.convert import simulate
from qconvert.steps.judging import lend_judging
from qconvert.steps.learning import learner_of, lend_step
from qconvert.steps.measured import measured
from qconvert.steps.readable import Skipped
from qconvert.steps.recovery import corrections_of
from qconvert.steps.requests import Calibrating, Judging, Kept, Learning, Recipe, Step
from qconvert.steps.same_model import model_facts
from qconvert.steps.session import Session
from qconvert.steps.two_terms import made
from qconvert.steps.voice import Silent


@dataclass(frozen=True)
class _Share:
    """What a rank has: its session, the files that it was given, by digest, and the learner that it
    made last. `told` is what rank 0 skips, before the session asks for it."""

    session: Session
    helper: Helper
    told: set[Skipped] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    learners: list[Learner] = field(default_factory=list)

    def do(self, request: Any) -> None:
        """Answers one request."""
        if isinstance(request, Kept):
            self.files[request.digest] = request.content
            return
        if isinstance(request, Step):
            lend_step(self.learners[-1], request, self.helper)
            return
        self.told.update(request.skipped)
        if isinstance(request, Calibrating):
            self._calibrate(request)
        elif isinstance(request, Judging):
            self._judge(request)
        elif isinstance(request, Learning):
            self._learn(request)

    def _calibrate(self, request: Calibrating) -> None:
        session, section = self.session, self.session.config.calibration
        self.helper.give(model_facts(session))
        lend_calibration(
            session.equalized if request.equalized else session.fused,
            session.calibration_images,
            session.read,
            self.helper,
            batch_size=section.batch_size,
            averaging=section.averaging,
            split=split_of(session),
        )

    def _judge(self, request: Judging) -> None:
        if request.recipe.plan is not None:
            self.helper.give(model_facts(self.session))
        original = torchscript.load(self.files[request.original])
        model = self._made(request.recipe)
        lend_judging(self.session, original, model, request.fused, self.helper)

    def _learn(self, request: Learning) -> None:
        session = self.session
        self.helper.give(model_facts(session))
        teacher = made(session, request.base)
        corrections = corrections_of(self.files[request.weights])
        model, plan = with_corrections(teacher, request.plan, corrections)
        seen = measured(request.fused)
        learner = learner_of(session, teacher, model, plan, seen, request.rounds)
        learner.set_powers(request.powers)
        self.learners[:] = [learner]

    def _made(self, recipe: Recipe) -> Callable[..., Any]:
        if recipe.file is not None:
            return torchscript.load(self.files[recipe.file])
        assert recipe.plan is not None
        return simulate(made(self.session, recipe.base), recipe.plan)


def help_first(helper: Helper, load: Callable[[], QConfig], path: Path) -> End:
    """Works for rank 0 until it ends, and returns how it has. What goes wrong here is sent to rank
    0, who tells it.

    Raises RankLostError.
    """
    warnings.simplefilter("ignore")  # rank 0 has the same
    try:
        try:
            share = _share(helper, load, path)
            while True:
                share.do(helper.asked())
        except Over:
            raise
        except Exception as error:
            helper.fail(error)
            while True:  # no more than waiting for the end
                helper.asked()
    except Over as over:
        return over.end


def _share(helper: Helper, load: Callable[[], QConfig], path: Path) -> _Share:
    told: set[Skipped] = set()
    try:
        session = Session(load(), path, Silent(), told=told)
        helper.give(facts(session))
    except QConvertError as error:
        helper.give(error)  # a fact, too: rank 0 has come further
        while True:
            helper.asked()
    return _Share(session, helper, told)
