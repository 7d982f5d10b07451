"""One trial of `tune`: settings become an int8 model in memory, which is judged as a file is.

What trials share is made once: calibration, the equalized model, costs, and what layers give up for
CPUs without VNNI. The last is that of the start's plan; when a trial is converted it is measured
for its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from qconvert import torchscript
from qconvert.images.preprocess import Inputs
from qconvert.measurement.accuracy import Comparison
from qconvert.measurement.latency import measure, thread_counts
from qconvert.models.fusion import FusedModel
from qconvert.qconfig import Precision, QConfig
from qconvert.quantization.calibration import Calibration
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8
from qconvert.quantization.plan import FewerBits, Plan
from qconvert.quantization.planning import make_plan
from qconvert.quantization.recovery.corrected import with_corrections
from qconvert.quantization.recovery.recover import recover
from qconvert.quantization.tuning.noise import Noise
from qconvert.quantization.tuning.prediction import Predictor, alone_in_int8, candidates, in_float
from qconvert.reports.record import accuracy_found
from qconvert.reports.trail import Anchor, Settings, Tried
from qconvert.steps.benchmark import coverage_of, size_of
from qconvert.steps.calibrate import read_calibration
from qconvert.steps.convert import INT8, make_int8
from qconvert.steps.equalization import why_not_recovered
from qconvert.steps.judging import judge
from qconvert.steps.measured import FLOAT, Measured, measured
from qconvert.steps.overflow import make_overflow, planned
from qconvert.steps.recovery import corrects
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.steps.timings import Timings, costs_by, make_timings
from qconvert.steps.two_terms import int8_base
from qconvert.steps.voice import Silent

# Images that show what an operator's int8 costs; of models with kept code fewer, for all that
# their parts read is held.
_IMAGES, _IMAGES_OF_PARTS = 8, 4
# Longest measuring time of the first trial's latency.
_ANCHOR_SECONDS = 2.0


@dataclass(frozen=True)
class Start:
    """What the trials of a session start from: its own conversion. Trials differ from it in what
    is in float, and in nothing else."""

    session: Session
    record: Mapping[str, Any]
    seconds: float

    @cached_property
    def settings(self) -> Settings:
        """Those of the start with what `auto` came to, so that it is not asked again."""
        switches = self.session.config.recovery.switches
        found = {trial["method"]: trial["kept"] for trial in self.record["recovery"]}
        settled = {name: "on" if kept else "off" for name, kept in found.items()}
        if not found.get("two_terms"):
            settled["two_terms"] = "off"  # not tried, where little would come of it
        elif switches["two_terms"] == "auto":
            settled["two_terms"] = "auto"  # `on` may choose more tensors
        return Settings(recovery=switches | settled)

    @cached_property
    def base(self) -> FusedModel:
        """The float model that int8 is made of."""
        return int8_base(self.session)

    @cached_property
    def calibration(self) -> Calibration:
        """Its distributions."""
        return read_calibration(self.session)

    @cached_property
    def timings(self) -> Timings | None:
        """What was timed here, if that is asked for."""
        return make_timings(self.session)

    @cached_property
    def fewer_bits(self) -> Mapping[str, FewerBits]:
        """What its layers give up for CPUs without VNNI."""
        return make_overflow(self.session, self.timings)

    @cached_property
    def plan(self) -> Plan:
        """Before anything is recovered."""
        return planned(self.session, self.timings, self.fewer_bits)

    @cached_property
    def candidates(self) -> dict[str, Precision]:
        """The operators that could be in float, and which int8 they are in."""
        return candidates(self.base, self.session.config.quantization, self.plan)

    @cached_property
    def predictor(self) -> Predictor:
        """What a plan would cost."""
        session = self.session
        costs = costs_by(session, self.timings)
        return Predictor(session.fused, session.config.quantization, costs, session.example)

    @cached_property
    def measured(self) -> Measured:
        """The output that is measured."""
        return measured(self.session.workspace.read(FUSE_RECORD) or {})

    @cached_property
    def noise(self) -> Noise:
        """Of simulations, on calibration images: where there are some that recovery did not see, on
        these."""
        session = self.session
        images: Sequence[Inputs] = session.proofs[:_IMAGES]
        if not session.fused.assembly.whole:
            images = images[:_IMAGES_OF_PARTS]
        elif why_not_recovered(session) is None:
            images = session.recovery_inputs[1][:_IMAGES]
        return Noise(session.fused, images, self.measured.name)

    def planned(self, names: frozenset[str]) -> Plan:
        """The plan with these operators in float, before anything is recovered."""
        section = in_float(self.session.config.quantization, names)
        base, costs = self.base_with(names), self.predictor.costs
        return make_plan(base, self.calibration, section, costs, self.fewer_bits)

    def base_with(self, names: frozenset[str]) -> FusedModel:
        """The float model that int8 is made of where these operators are in float, which read
        nothing in two terms."""
        return int8_base(self.session, in_float(self.session.config.quantization, names))

    def noise_of(self, name: str) -> float:
        """The noise at the measured output, as a share of the signal, where one of the candidates
        alone is in int8, with nothing recovered.

        Not what goes when it alone is in float: that is a difference of two sums of all noise,
        whose parts meet by chance, and which recovery has made to fit each other."""
        section = alone_in_int8(self.session.config.quantization, name, self.candidates)
        base = int8_base(self.session, section)
        plan = make_plan(base, self.calibration, section, self.predictor.costs, {})
        return self.noise.share(base, plan)

    def measure(self) -> Anchor:
        """The latency of its file, at the first batch size and thread count."""
        session, section = self.session, self.session.config.benchmark
        (row,) = measure(
            session.workspace.path(FLOAT),
            {"int8": session.workspace.path(INT8)},
            session.timed,
            batch_sizes=section.batch_sizes[:1],
            threads=thread_counts(section.threads[:1]),
            seconds=min(_ANCHOR_SECONDS, section.seconds),
        )
        return Anchor(float_s=row.baseline.median_s.value, int8_s=row.models["int8"].median_s.value)

    def expected(self, names: frozenset[str], anchor: Anchor) -> float:
        """The latency, in seconds, with these operators in float."""
        predicted, start = (self.predictor(n).latency_s for n in (names, frozenset[str]()))
        return anchor.int8_s * predicted / start if start else anchor.int8_s


def convert_start(session: Session) -> Start:
    """Converts as the session's qconfig says, unless that is done."""
    begin = time.perf_counter()
    record = make_int8(session)
    seconds = time.perf_counter() - begin
    return Start(replace(session, force=False) if session.force else session, record, seconds)


def judging_session(session: Session) -> Session:
    """The session whose evaluation images judge trials, on this rank alone; it says nothing: there
    is a line for each trial."""
    images = session.config.tune.images
    config = session.config
    if images is not None:
        data = config.data.model_copy(update={"evaluation": images})
        config = config.model_copy(update={"data": data})
    return replace(session, config=config, voice=Silent(), others=None)


def try_start(start: Start, judging: Session, settings: Settings, number: int,
              anchor: Anchor) -> Tried:  # fmt: skip
    """The trial that the start is, by its record."""
    begin = time.perf_counter()
    record = start.record
    accuracy = Comparison.model_validate(record["accuracy"])
    if judging.config.evaluation != start.session.config.evaluation:
        file = torchscript.load(start.session.workspace.path(INT8))
        accuracy = judge(judging, file, "judging the first trial", None)
    found = {
        "max_size_ratio": size_of(dict(record)).ratio,
        "min_int8_macs": coverage_of(dict(record)).int8_macs_share,
    }
    seconds = start.seconds + time.perf_counter() - begin
    return _tried(number, settings, record["plan"], accuracy, found, anchor, anchor.int8_s, seconds)


def try_in_float(start: Start, judging: Session, settings: Settings, number: int,
                 anchor: Anchor) -> Tried:  # fmt: skip
    """A trial with more operators in float than the start. Its accuracy is that of the int8 model
    on the judging images; the model is not saved."""
    begin = time.perf_counter()
    session, names = start.session, frozenset(settings.in_float)
    model, plan = _recovered(start, names, settings)
    script = torchscript.freeze(session.fused.assembly.script(lower(model, plan, Int8(plan))))
    accuracy = judge(judging, script, "judging", None)
    float_bytes = session.workspace.path(FLOAT).stat().st_size
    found = {
        "max_size_ratio": len(torchscript.to_bytes(script)) / float_bytes,
        "min_int8_macs": plan.int8_macs,
    }
    latency_s = start.expected(names, anchor)
    seconds = time.perf_counter() - begin
    return _tried(number, settings, plan.digest(), accuracy, found, anchor, latency_s, seconds)


def _recovered(start: Start, names: frozenset[str], settings: Settings) -> tuple[FusedModel, Plan]:
    """As `convert` does it, with operators of these names in float."""
    session = start.session
    section = session.config.recovery.model_copy(update=dict(settings.recovery))
    base, plan = start.base_with(names), start.planned(names)
    if not corrects(session, section, plan):
        return base, plan
    found, _ = recover(
        session.fused, base, plan, *session.recovery_inputs, section, Silent().progress
    )
    return with_corrections(base, plan, found)


def _tried(
    number: int,
    settings: Settings,
    plan: str,
    accuracy: Comparison,
    found: Mapping[str, float],
    anchor: Anchor,
    latency_s: float,
    seconds: float,
) -> Tried:
    return Tried(
        number=number,
        settings=settings,
        plan=plan,
        images=accuracy.images,
        found={
            **accuracy_found(accuracy),
            "min_speedup": anchor.float_s / latency_s,
            **found,
        },
        agreement=accuracy.agreement,
        sqnr_db=accuracy.sqnr_db,
        latency_s=latency_s,
        seconds=seconds,
    )


def tuned_config(config: QConfig, settings: Settings) -> QConfig:
    """The qconfig with a trial's settings."""
    return config.model_copy(
        update={
            "quantization": in_float(config.quantization, frozenset(settings.in_float)),
            "recovery": config.recovery.model_copy(update=dict(settings.recovery)),
        }
    )
