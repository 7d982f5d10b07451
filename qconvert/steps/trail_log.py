"""Keeps what `tune` has tried: whole on disk after each trial, to be used again by later runs."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from qconvert.qconfig import BudgetSection
from qconvert.qconfig_file import as_given
from qconvert.reports.trail import Anchor, Proof, Settings, Trail, Tried, trial_line
from qconvert.steps.session import Session
from qconvert.steps.trying import tuned_config
from qconvert.workspace import write_atomically

RECORD = "tune.json"
QCONFIG = "tuned.yaml"
# The output folder of the tuned qconfig, in that of the user's.
FOLDER = "tuned"


class TrailLog:
    """The trials so far, and the best of them, whose qconfig is written as soon as it is known."""

    def __init__(self, session: Session, key: str) -> None:
        self._session = session
        self._limits: BudgetSection = session.config.budgets
        set_ = {name: limit for name, limit in self._limits if limit is not None}
        self.trail = Trail(
            key=key, name=session.config_path.stem, budgets=set_, met=False, best=None,
            ended="it was ended from outside", trials=(), anchor=None, noise={},
            ordered=(), notes=(),
        )  # fmt: skip
        if (before := self._before(key)) is not None:
            kept = ("trials", "anchor", "noise", "ordered")
            self._change(**{name: getattr(before, name) for name in kept})
            if before.trials:
                session.voice.say(f"tune: {len(before.trials)} trials of before are used again")
        self._written: Settings | None = None

    @property
    def path(self) -> Path:
        """Where the best trial's qconfig is."""
        return self._session.config.tune.qconfig or self._session.workspace.path(QCONFIG)

    @property
    def folder(self) -> Path:
        """Where it sends everything."""
        return self._session.workspace.path(FOLDER)

    @property
    def best(self) -> Tried:
        """Of all trials so far."""
        return min(self.trail.trials, key=lambda tried: tried.place(self._limits))

    def of(self, settings: Settings) -> Tried | None:
        """The trial of these settings, if there was one."""
        return next((t for t in self.trail.trials if t.settings == settings), None)

    def add(self, tried: Tried) -> None:
        """Keeps a trial, and says it."""
        self._change(trials=(*self.trail.trials, tried))
        self.save()
        self.write_qconfig(self.best)
        self._session.voice.say(f"tune: {trial_line(tried, self._limits, self.best)}")

    def prove(self, tried: Tried, proof: Proof) -> Tried:
        """Keeps what was measured of a trial's file."""
        proved = tried.model_copy(update={"proof": proof})
        trials = (proved if t.number == tried.number else t for t in self.trail.trials)
        self._change(trials=tuple(trials))
        self.save()
        return proved

    def anchor(self, anchor: Anchor) -> None:
        """Keeps what latency is predicted from."""
        self._change(anchor=anchor)
        self.save()

    def noise(self, name: str, share: float) -> None:
        """Keeps what an operator alone in int8 costs."""
        self._change(noise={**self.trail.noise, name: share})
        self.save()

    def order(self, names: tuple[str, ...]) -> None:
        """Keeps the order in which operators go to float."""
        self._change(ordered=names)
        self.save()

    def end(self, best: Tried, ended: str, notes: tuple[str, ...]) -> Trail:
        """Keeps the result."""
        met = best.proof is not None and best.met(self._limits)
        self._change(best=best.number, met=met, ended=ended, notes=notes)
        self.save()
        return self.trail

    def save(self) -> None:
        """Writes the record."""
        content = self.trail.model_dump_json(indent=1) + "\n"
        write_atomically(self._session.workspace.path(RECORD), content.encode())

    def write_qconfig(self, tried: Tried) -> None:
        """Writes the qconfig of a trial, unless it is there."""
        if tried.settings == self._written:
            return
        session, path = self._session, self.path
        config = tuned_config(session.config, tried.settings)
        config = config.model_copy(update={"output": self.folder})
        tree = as_given(config, path.resolve().parent)
        tree.pop("tune", None)
        missed = "" if tried.met(self._limits) else ", which misses budgets"
        head = (
            f"# Written by `qconvert tune` from {session.config_path.name}: trial {tried.number}"
            f"{missed}.\n# It was chosen by its accuracy on "
            f"{'tune.images' if session.config.tune.images else 'the evaluation images'}.\n"
        )
        text = head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        write_atomically(path, text.encode())
        self._written = tried.settings

    def _before(self, key: str) -> Trail | None:
        record = self._session.workspace.read(RECORD)
        if record is None or self._session.force:
            return None
        try:
            before = Trail.model_validate(record)
        except ValidationError:
            self._session.voice.say(f"tune: {RECORD} is of another version: it is not used")
            return None
        if before.key == key:
            return before
        self._session.voice.say(
            f"tune: its inputs have changed: {len(before.trials)} trials of before are not used"
        )
        return None

    def _change(self, **changes: object) -> None:
        self.trail = self.trail.model_copy(update=changes)
