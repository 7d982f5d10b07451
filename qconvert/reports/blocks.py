"""What a page is made of and what it consists of, free of any HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qconvert.images.thumbnail import Thumbnail
from qconvert.quantization.audit.record import Audit
from qconvert.quantization.plan import Plan
from qconvert.reports.analysis import Analysis
from qconvert.reports.record import Report
from qconvert.reports.tables import Table


@dataclass(frozen=True)
class Material:
    """What a page is made of: the report, the plan, and what there is of other commands: the audit
    with its rows, the analysis. `pictures` are small ones of the evaluation images that are shown,
    by name, or the reason why there is none; `calibration_pictures` those of calibration images.
    """

    report: Report
    plan: Plan
    pictures: Mapping[str, Thumbnail | str] = field(default_factory=dict)
    audit: Audit | None = None
    calibration_pictures: Mapping[str, Thumbnail | str] = field(default_factory=dict)
    analysis: Analysis | None = None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    words: str


@dataclass(frozen=True)
class Drawing:
    """A plot as a file, what it shows in words, and the table of its figures, if it has one."""

    svg: bytes
    words: str
    table: Table | None = None


@dataclass(frozen=True)
class Said:
    """One model's answer to an image."""

    model: str
    answer: str
    confidence: float | None
    right: bool | None


@dataclass(frozen=True)
class Card:
    """An image, its picture or why there is none, its label, what each model said, remarks."""

    image: str
    picture: Thumbnail | str
    label: str | None = None
    said: tuple[Said, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """Cards, and what is not among them."""

    cards: tuple[Card, ...]
    note: str = ""

    @property
    def wide(self) -> bool:
        """Whether most pictures are, as lines of text are."""
        found = [c.picture for c in self.cards if isinstance(c.picture, Thumbnail)]
        return 2 * sum(p.width > 2.5 * p.height for p in found) > len(found)


@dataclass(frozen=True)
class Folded:
    """Text that is shown when it is asked for."""

    title: str
    text: str


Block = Text | Table | Drawing | Gallery | Folded


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]
