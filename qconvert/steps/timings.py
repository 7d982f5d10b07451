"""With `decide: measure`: times this model's own operators here, once. A plan that is made from the
recorded times is the same on any machine."""

from __future__ import annotations

from typing import Any

from qconvert.measurement.environment import here
from qconvert.quantization import costs
from qconvert.quantization.costs import Costs
from qconvert.quantization.layer_rules import asked_for, split_pairs
from qconvert.quantization.timing import time_units
from qconvert.quantization.units import units_of
from qconvert.steps.fuse import RECORD as FUSE_RECORD
from qconvert.steps.fuse import fused_digest
from qconvert.steps.session import Session
from qconvert.workspace import digest

RECORD = "timings.json"


def costs_of(session: Session) -> Costs:
    """What plans are decided by: the shipped table, and where the qconfig says so, what was timed
    here. Times nothing that was timed before."""
    section = session.config.quantization
    table = costs.table(section.isa)
    if section.decide != "measure":
        return table
    return costs.with_measured(table, session.fused.graph, _timings(session)["nanoseconds"])


def _timings(session: Session) -> dict[str, Any]:
    key = _key(session)
    if (record := session.fresh("timings", RECORD, lambda _: key)) is not None:
        return record
    section = session.config.quantization
    asked = asked_for(session.fused, section)
    units = units_of(session.fused, section, asked, split_pairs(session.fused, asked))
    with session.voice.busy("timing the model's operators"):
        times = time_units(session.fused, units, section)
    content = {"cpu": here().cpu, "nanoseconds": times}
    return session.workspace.write_record(RECORD, key, (), content)


def timings_digest(session: Session) -> str | None:
    """What a plan depends on, besides the settings."""
    if session.config.quantization.decide != "measure":
        return None
    return digest(_timings(session)["nanoseconds"])


def _key(session: Session) -> str:
    fused = session.workspace.read(FUSE_RECORD) or {}
    settings = session.config.quantization.model_dump(mode="json", exclude={"activations"})
    return digest(
        {"versions": session.versions, "fused": fused_digest(fused), "quantization": settings}
    )
