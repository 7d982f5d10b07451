"""With `decide: measure`: times this model's own operators here, once. A plan that is made from the
recorded times is the same on any machine."""

from __future__ import annotations

from qconvert.measurement.environment import here
from qconvert.quantization import costs
from qconvert.quantization.costs import Costs
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.quantization.timing import time_units
from qconvert.quantization.units import units_of
from qconvert.steps.fuse import fused_digest
from qconvert.steps.session import FUSE_RECORD, Session
from qconvert.workspace import digest

RECORD = "timings.json"
Timings = dict[str, dict[str, float]]


def make_timings(session: Session) -> Timings | None:
    """Nanoseconds by node and way to compute it: what was timed before, if that is fresh. None
    where the qconfig does not ask for them."""
    section = session.config.quantization
    if section.decide != "measure":
        return None
    key = _key(session)
    if (record := session.fresh("timings", RECORD, lambda _: key)) is not None:
        recorded: Timings = record["nanoseconds"]
        return recorded
    asked = asked_for(session.fused, section)
    units = units_of(session.fused, section, asked, split_pairs(session.fused, asked))
    with session.voice.busy("timing the model's operators"):
        times = time_units(session.fused, units, section)
    session.workspace.write_record(RECORD, key, (), {"cpu": here().cpu, "nanoseconds": times})
    return times


def recorded_timings(session: Session) -> Timings | None:
    """What was timed before, if that is fresh; nothing is timed."""
    if session.config.quantization.decide != "measure":
        return None
    key = _key(session)
    if session.workspace.why_stale(RECORD, lambda _: key) is not None:
        return None
    recorded: Timings = (session.workspace.read(RECORD) or {})["nanoseconds"]
    return recorded


def costs_by(session: Session, timings: Timings | None) -> Costs:
    """What plans are decided by: the shipped table, corrected by what was timed here."""
    table = costs.table(session.config.quantization.isa)
    return table if timings is None else costs.with_measured(table, session.fused.graph, timings)


def _key(session: Session) -> str:
    fused = session.workspace.read(FUSE_RECORD) or {}
    section = session.config.quantization
    settings = section.model_dump(mode="json", exclude={"activations"})
    # Every operator is timed in every way, whatever is asked to stay in float.
    settings["layers"] = [
        rule.model_dump(mode="json")
        for rule in section.layers
        if rule.precision != "float32" or rule.activations or rule.weights
    ]
    return digest(
        {"versions": session.versions, "fused": fused_digest(fused), "quantization": settings}
    )
