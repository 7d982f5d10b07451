"""tune: the fastest settings that meet the budgets of accuracy; recovery first, then operators in
float, those that cost most accuracy for each millisecond that int8 saves.

Every trial is kept as soon as it is judged, and the best one's qconfig is written: a run that is
killed loses the trial that it was at, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from qconvert.errors import QConfigError, VerificationError
from qconvert.qconfig import RecoverySection
from qconvert.qconfig_file import load
from qconvert.quantization.recovery.trial import METHODS
from qconvert.quantization.tuning.order import order
from qconvert.quantization.tuning.prediction import Prediction
from qconvert.quantization.tuning.search import search
from qconvert.reports.plots import trail_svg
from qconvert.reports.record import Report, accuracy_found
from qconvert.reports.trail import Proof, Trail, Tried, missed_line
from qconvert.steps.benchmark import JSON, make_report
from qconvert.steps.convert import INT8, make_int8
from qconvert.steps.fuse import FUSED
from qconvert.steps.judging import what_judges
from qconvert.steps.measured import FLOAT
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import RECORD as TIMINGS
from qconvert.steps.trail_log import TrailLog
from qconvert.steps.trying import (
    Start,
    convert_start,
    judging_session,
    try_in_float,
    try_start,
)
from qconvert.workspace import Workspace, digest, write_atomically

PICTURE = "tune.svg"
# Where the start is converted, if it is not what the user's qconfig converts to.
_STARTING = "tune"


def make_tuned(session: Session) -> Trail:
    """Searches, and leaves the best trial's qconfig and its output folder, converted, verified and
    measured; `tune.json` has all trials, `tune.svg` their picture.

    Raises QConfigError for a budget that cannot be measured.
    """
    return _Tuning(session).result()


class _Tuning:
    def __init__(self, session: Session) -> None:
        self._end = time.monotonic() + 60 * session.config.tune.minutes
        self._session = session
        self._limits = session.config.budgets
        self._judging = judging_session(session)
        self._starts = [convert_start(session)]
        key = digest(
            {
                "start": self._starts[0].record["key"],
                "judging": self._judging.evaluation_images.digest,
                "by": what_judges(self._judging),
            }
        )
        self._log = TrailLog(session, key)
        self._ended = "nothing is left to be tried that could be faster"

    def result(self) -> Trail:
        with Workspace(self._log.folder).exclusive(self._session.voice.say):
            self._search()
            best = self._proved_best()
            trail = self._log.end(best, self._ended, tuple(self._notes(best)))
        picture = trail_svg(trail, self._limits)
        write_atomically(self._session.workspace.path(PICTURE), picture)
        return trail

    # The search.

    def _search(self) -> None:
        start = self._recovery_first()
        # Not the best of all: a run before this one may have been killed on its way to a better.
        if self._started(start).met(self._limits):
            self._ended = "no operator need be in float"
            return
        if self._over():
            return
        ordered = self._ordered(start)
        if ordered is None:
            return
        anchor = self._log.trail.anchor
        assert anchor is not None
        steps = search(ordered, lambda names: start.predictor(names).latency_s)
        try:
            names = next(steps)
            while True:
                settings = start.settings.model_copy(update={"in_float": _in_order(names, ordered)})
                tried = self._log.of(settings)
                if tried is None:
                    if self._over():
                        return
                    with self._session.voice.busy("tune: the next trial"):
                        number = len(self._log.trail.trials) + 1
                        tried = try_in_float(start, self._judging, settings, number, anchor)
                    self._log.add(tried)
                names = steps.send(tried.met(self._limits))
        except StopIteration:
            return

    def _recovery_first(self) -> Start:
        """The start that comes nearest to the budgets: the qconfig's own, or one with the methods
        of recovery that it has switched off."""
        own = self._starts[0]
        tried = self._started(own)
        self._check_measurable(tried)
        off = [m for m in METHODS if getattr(self._session.config.recovery, m) == "off"]
        if tried.met(self._limits) or not off or self._over():
            return own
        self._session.voice.say(f"tune: with recovery: {', '.join(off)}")
        config = self._session.config
        recovery = config.recovery.model_copy(update=dict.fromkeys(off, "auto"))
        folder = self._session.workspace.path(_STARTING)
        config = config.model_copy(update={"recovery": RecoverySection(**recovery.model_dump()),
                                           "output": folder})  # fmt: skip
        with Workspace(folder).exclusive(self._session.voice.say):
            session = replace(self._session, config=config, force=False, others=None)
            _adopt(self._session.workspace, session.workspace)
            other = convert_start(session)
            self._starts.append(other)
            return min((own, other), key=lambda start: self._started(start).place(self._limits))

    def _check_measurable(self, tried: Tried) -> None:
        names = [name for name in self._limits.set_of_accuracy if tried.found[name] is None]
        if names:
            raise QConfigError(
                [f"budgets.{name}: the evaluation images do not tell it" for name in names],
                where="qconfig",
                fix="give labels (data.labels), or set what needs none: budgets.min_agreement of "
                "classes and texts, budgets.min_cosine of numbers",
            )

    def _started(self, start: Start) -> Tried:
        """The trial that a start is."""
        known = self._log.of(start.settings)
        if known is not None:
            return known
        anchor = self._log.trail.anchor
        if anchor is None:
            with self._session.voice.busy("tune: measuring the latency of the first trial"):
                anchor = start.measure()
            self._log.anchor(anchor)
        number = len(self._log.trail.trials) + 1
        tried = try_start(start, self._judging, start.settings, number, anchor)
        self._log.add(tried)
        return tried

    def _ordered(self, start: Start) -> list[str] | None:
        """The operators in the order in which they go to float; None when time is over before it
        is known."""
        known = self._log.trail
        if known.ordered:
            return list(known.ordered)
        names = start.candidates
        with self._session.voice.progress("tune: what each operator costs") as progress:
            left = [name for name in names if name not in known.noise]
            for i, name in enumerate(left):
                progress(len(names) - len(left) + i, len(names))
                if self._over():
                    return None
                self._log.noise(name, start.noise_of(name))
        predictor, noise = start.predictor, self._log.trail.noise
        found = order(noise, predictor, predictor.neighbours(), self._allowed(start))
        self._log.order(tuple(found))
        return found

    def _allowed(self, start: Start) -> Callable[[Prediction], bool]:
        """Whether a plan has int8 at all, is no slower than float, and keeps the budgets that have
        nothing to do with accuracy, as far as these are predicted. What even the start misses is
        none to keep."""
        anchor, limits = self._log.trail.anchor, self._limits
        assert anchor is not None
        first = start.predictor(frozenset())
        slowest = start.predictor.all_in_float.latency_s
        if limits.min_speedup is not None:
            slowest = min(
                slowest, anchor.float_s / limits.min_speedup * first.latency_s / anchor.int8_s
            )
        slowest = max(slowest, first.latency_s)
        least = min(limits.min_int8_macs or 0, first.int8_macs)

        def allowed(found: Prediction) -> bool:
            return found.latency_s <= slowest and 0 < found.int8_macs >= least

        return allowed

    def _over(self) -> bool:
        """Whether no trial may begin any more; then why is known."""
        section = self._session.config.tune
        if len(self._log.trail.trials) >= section.trials:
            self._ended = f"{section.trials} trials (tune.trials)"
        elif time.monotonic() >= self._end:
            self._ended = f"{section.minutes:g} minutes (tune.minutes)"
        else:
            return False
        return True

    # The proof.

    def _proved_best(self) -> Tried:
        """The best trial, converted and measured as any other. Where its file misses what the trial
        promised, the next best is."""
        failed: set[int] = set()
        proved: Tried | None = None
        while True:
            left = [t for t in self._log.trail.trials if t.number not in failed]
            if proved is not None and time.monotonic() >= self._end:
                left = [tried for tried in left if tried.proof is not None]
            best = min(left, key=lambda tried: tried.place(self._limits))
            if best.proof is not None:
                # The folder may hold the file of another.
                there = proved is not None and proved.number == best.number
                return best if there else self._prove(best)
            try:
                proved = self._prove(best)
            except VerificationError as error:
                if len(left) == 1:
                    raise
                self._session.voice.say(f"tune: trial {best.number}: {error.message}")
                failed.add(best.number)
                continue
            missed = missed_line(proved.budgets(self._limits))
            if missed and best.met(self._limits):
                self._session.voice.say(
                    f"tune: trial {best.number} as a file: missed {missed}: the next one"
                )

    def _prove(self, tried: Tried) -> Tried:
        """Converts a trial with its qconfig, and measures the file, unless that is done."""
        self._log.write_qconfig(tried)
        session = self._session
        tuned = Session(load(self._log.path), self._log.path, session.voice)
        _adopt(session.workspace, tuned.workspace)
        if tried.proof is None:
            session.voice.say(f"tune: trial {tried.number} is converted and measured")
        file = make_int8(tuned)["files"][INT8]
        if tried.proof is not None and tried.proof.file == file and _has_report(tuned):
            return tried
        return self._log.prove(tried, _proof(make_report(tuned), file))

    def _notes(self, best: Tried) -> Iterator[str]:
        """What a reader must know to trust the figures, and to use the file."""
        if best.proof is not None and best.proof.speedup.value < 1:
            yield "The file is slower than float: `budgets.min_speedup` would not allow that."
        images = self._judging.evaluation_images
        if self._session.config.tune.images is not None:
            yield f"Trials were judged on the {len(images)} images of tune.images."
        elif self._session.judged_on_calibration_images:
            yield "Trials were judged on the calibration images: set `data.evaluation`."
        else:
            yield (
                f"The {len(images)} images of data.evaluation chose these settings: their figures "
                "are a little too good. tune.images names others to choose by."
            )


def _in_order(names: frozenset[str], ordered: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in ordered if name in names)


def _adopt(source: Workspace, target: Workspace) -> None:
    """Copies what does not depend on what trials change."""
    for name in (FLOAT, FUSED, FUSE_RECORD, TIMINGS):
        path = source.path(name)
        if path.is_file():
            content = path.read_bytes()
            there = target.path(name)
            if not there.is_file() or there.read_bytes() != content:
                write_atomically(there, content)


def _has_report(session: Session) -> bool:
    return (session.workspace.read(JSON) or {}).get("digests") == make_int8(session)["files"]


def _proof(report: Report, file: str) -> Proof:
    latency = report.latency[0]
    return Proof(
        file=file,
        found={
            **accuracy_found(report.accuracy),
            "min_speedup": latency.speedups["int8"].value,
            "max_size_ratio": report.size.ratio,
            "min_int8_macs": report.coverage.int8_macs_share,
        },
        latency_s=latency.models["int8"].median_s,
        speedup=latency.speedups["int8"],
    )
