"""report.html: one page with everything in it, that needs no network and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qconvert.reports.blocks import Drawing, Folded, Gallery, Material, Text
from qconvert.reports.inline_svg import inline_svg
from qconvert.reports.page import facts, sections
from qconvert.reports.plots import COLOURS
from qconvert.reports.tables import Table

_TEMPLATE, _STYLE, _SCRIPT = "report.html.jinja", "report.css", "report.js"
# Shorter tables need no sorting, and those without a name above their rows have no rows alike.
_SORTED_FROM = 6
_SHAPES: dict[str, type] = {
    "text": Text,
    "table": Table,
    "drawing": Drawing,
    "gallery": Gallery,
    "folded": Folded,
}
# What a name could hide in a page: control characters, and marks that turn text round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def to_html(material: Material) -> str:
    """The whole report as a page. All text is escaped; should any of it ever not be, the page's
    policy lets no script run but its own, and nothing be fetched."""
    style, script = (_source(name) for name in (_STYLE, _SCRIPT))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return _environment().get_template(_TEMPLATE).render(
        report=material.report,
        facts=facts(material.report),
        sections=sections(material),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )  # fmt: skip


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("qconvert.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    for name, shape in _SHAPES.items():
        made.tests[name] = lambda block, shape=shape: isinstance(block, shape)
    made.filters["svg"] = _drawn
    made.globals["sorted_from"] = _SORTED_FROM
    return made


def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _seen(value: Any) -> Any:
    """Text with what cannot be seen written out."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _drawn(drawing: Drawing, anchor: str) -> Markup:
    colours = {colour: f"var(--{use})" for colour, use in COLOURS.items()}
    return inline_svg(drawing.svg, drawing.words, f"{anchor}-", colours)
