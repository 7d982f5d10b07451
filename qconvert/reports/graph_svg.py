"""Draws a graph of operators as SVG: a row for each, its edges in lanes on the left.

Knows rows and edges only. Plain SVG without scripts, fonts or files of others, on a background of
its own; the colours are those of Okabe and Ito, which colour-blind people tell apart, and each row
says in words what its colour means.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree as ET

from qconvert.reports.graph_lanes import Lane, lanes, next_rows, width

Paint = Literal["int8", "dynamic", "float", "other", "end"]
# The strong colour of a row's mark and edges, and the light one behind its text.
COLOURS: dict[Paint, tuple[str, str]] = {
    "int8": ("#0072B2", "#E3F0F8"),
    "dynamic": ("#009E73", "#E0F4ED"),
    "float": ("#E69F00", "#FDF3DC"),
    "other": ("#CC79A7", "#F9EBF3"),
    "end": ("#666666", "#F0F0F0"),
}
BOUNDARY = "#D55E00"
_WORDS: dict[Paint, str] = {
    "int8": "int8, fixed ranges",
    "dynamic": "int8, dynamic ranges",
    "float": "float",
    "other": "kept as written, control flow",
    "end": "input or output",
}
_FONT = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
# Sizes in pixels: of a row and its box, between lanes, of a letter of the font at its size.
_ROW, _BOX, _LANE, _SIZE = 26, 20, 11, 11
# A letter, and one of a name, which is bold: some fonts make it wider.
_LETTER, _BOLD = 7.0, 7.4
_MARGIN, _GAP = 16, 8
# From a row's middle to the line that leads into it or out of it, and the radius of its bends.
_BUS, _BEND = 10, 4
# The most letters of a column; longer text is cut, the tooltip has it whole.
_MOST = (44, 34, 22, 20, 52)


@dataclass(frozen=True)
class Row:
    """One operator. `columns` are its name, what it computes, the shape of its result, its work and
    its kernel; `tooltip` is shown where the pointer rests."""

    columns: tuple[str, str, str, str, str]
    paint: Paint
    tooltip: str


@dataclass(frozen=True)
class Edge:
    """A value from the row that makes it to one that reads it, below. `boundary` names what it is
    brought into another form by."""

    source: int
    target: int
    paint: Paint
    boundary: str | None = None


@dataclass(frozen=True)
class Picture:
    """What is drawn. `facts` are lines below the title, `boundaries` their number where that is not
    the number of rows with such edges."""

    title: str
    facts: tuple[str, ...]
    rows: tuple[Row, ...]
    edges: tuple[Edge, ...] = field(default=())
    boundaries: int | None = None


def to_svg(picture: Picture) -> str:
    """The picture as the text of an SVG file."""
    return _Drawing(picture).text()


class _Drawing:
    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._edges = {(e.source, e.target): e for e in picture.edges}
        self._ways = lanes(self._edges)
        self._spine = _MARGIN + _LANE * width(self._ways) + _LANE
        self._left = self._spine + 12
        longest = (max((len(row.columns[i]) for row in picture.rows), default=0) for i in range(5))
        self._columns = [min(n, most) for n, most in zip(longest, _MOST, strict=True)]
        letters = [_BOLD] + [_LETTER] * 4
        self._wide = [
            n * letter + 2 * _GAP if n else 0
            for n, letter in zip(self._columns, letters, strict=True)
        ]
        legend = self._legend()
        self._top = 70 + 16 * len(picture.facts)
        facts = (len(text) * _LETTER for text in picture.facts)
        self._box_width = 5 + sum(self._wide)
        head = max(sum(wide for _, wide in legend), *facts, len(picture.title) * 10.5)
        self._width = _MARGIN + max(self._left + self._box_width, _MARGIN + head)
        self._height = self._top + _ROW * len(picture.rows) + _MARGIN

    def text(self) -> str:
        size = {"width": _n(self._width), "height": _n(self._height)}
        svg = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                **size,
                "viewBox": f"0 0 {size['width']} {size['height']}",
                "font-family": _FONT,
                "font-size": str(_SIZE),
                "role": "img",
            },
        )
        ET.SubElement(svg, "title").text = self._picture.title
        ET.SubElement(svg, "rect", {**size, "fill": "#FFFFFF"})
        self._head(svg)
        # In this order, for what comes later lies above.
        groups = {
            name: ET.SubElement(svg, "g", {"id": name, "fill": "none"})
            for name in ("down", "rims", "across", "rows", "boundaries")
        }
        for source, target in next_rows(self._edges):
            self._straight(groups, self._edges[source, target])
        for way in self._ways:
            self._way(groups, way)
        for i, row in enumerate(self._picture.rows):
            self._row(groups["rows"], i, row)
        ET.indent(svg)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(svg, "unicode") + "\n"

    # The head.

    def _legend(self) -> list[tuple[tuple[str, str], float]]:
        """Colour and words of each entry, and how wide it is."""
        rows = Counter(row.paint for row in self._picture.rows)
        crossed = {(e.source, e.boundary) for e in self._picture.edges if e.boundary}
        entries = [(COLOURS[p][0], f"{_WORDS[p]}: {rows[p]}") for p in COLOURS if rows[p]]
        number = self._picture.boundaries
        number = len(crossed) if number is None else number
        if number:
            entries.append((BOUNDARY, f"boundaries between float and int8: {number}"))
        return [(entry, len(entry[1]) * _LETTER + 36) for entry in entries]

    def _head(self, svg: ET.Element) -> None:
        title = {"x": str(_MARGIN), "y": "28", "font-size": "17", "font-weight": "bold"}
        ET.SubElement(svg, "text", {**title, "fill": "#111111"}).text = self._picture.title
        for i, fact in enumerate(self._picture.facts):
            place = {"x": str(_MARGIN), "y": str(46 + 16 * i), "fill": "#444444"}
            ET.SubElement(svg, "text", place).text = fact
        legend = ET.SubElement(svg, "g", {"id": "legend"})
        x, y = float(_MARGIN), self._top - 18.0
        for (colour, words), wide in self._legend():
            if colour == BOUNDARY:
                _diamond(legend, x + 6, y - 4, words)
            else:
                box = {"x": _n(x), "y": _n(y - 10), "width": "12", "height": "12", "rx": "2"}
                ET.SubElement(legend, "rect", {**box, "fill": colour})
            ET.SubElement(
                legend, "text", {"x": _n(x + 18), "y": _n(y), "fill": "#111111"}
            ).text = words
            x += wide

    # Rows.

    def _middle(self, row: int) -> float:
        return self._top + _ROW * row + _ROW / 2

    def _row(self, parent: ET.Element, number: int, row: Row) -> None:
        strong, light = COLOURS[row.paint]
        y = self._middle(number)
        group = ET.SubElement(parent, "g", {"class": row.paint})
        ET.SubElement(group, "title").text = row.tooltip
        dot = {"cx": _n(self._spine), "cy": _n(y), "r": "4.5", "stroke": "#FFFFFF"}
        ET.SubElement(group, "circle", {**dot, "fill": strong})
        box = {"x": _n(self._left), "y": _n(y - _BOX / 2), "height": str(_BOX)}
        size = {"width": _n(self._box_width), "rx": "3", "stroke": strong, "stroke-width": "0.8"}
        ET.SubElement(group, "rect", {**box, **size, "fill": light})
        ET.SubElement(group, "rect", {**box, "width": "5", "fill": strong})
        x = float(self._left + 5 + _GAP)
        for i, text in enumerate(row.columns):
            place = {"x": _n(x), "y": _n(y + 4), "fill": "#111111" if i == 0 else "#333333"}
            if i == 0:
                place["font-weight"] = "bold"
            if text:
                shown = _cut(text, self._columns[i], keep_end=i == 0)
                ET.SubElement(group, "text", place).text = shown
            x += self._wide[i]

    # Edges.

    def _straight(self, groups: dict[str, ET.Element], edge: Edge) -> None:
        y1, y2 = self._middle(edge.source), self._middle(edge.target)
        _line(groups["down"], f"M{_n(self._spine)} {_n(y1)}V{_n(y2)}", edge.paint)
        if edge.boundary:
            _diamond(groups["boundaries"], self._spine, (y1 + y2) / 2, self._told(edge))

    def _way(self, groups: dict[str, ET.Element], way: Lane) -> None:
        """Out of the row into its lane, down, and into each reader: readers of several lanes are
        reached by one line, which a lane that is read there bends into and others pass below."""
        x, x0, r = self._spine - _LANE * way.lane, self._spine, _BEND
        y = self._middle(way.source) + _BUS
        paint = self._edges[way.source, way.targets[0]].paint
        last = self._middle(way.targets[-1]) - _BUS - r
        out = f"M{_n(x0)} {_n(y - _BUS)}Q{_n(x0)} {_n(y)} {_n(x0 - r)} {_n(y)}H{_n(x + r)}"
        _line(groups["across"], f"{out}Q{_n(x)} {_n(y)} {_n(x)} {_n(y + r)}", paint)
        _line(groups["down"], f"M{_n(x)} {_n(y + r)}V{_n(last)}", paint)
        _rim(groups["rims"], x + r, x0 - r, y)
        for target in way.targets:
            edge, end = self._edges[way.source, target], self._middle(target)
            y = end - _BUS
            into = f"M{_n(x)} {_n(y - r)}Q{_n(x)} {_n(y)} {_n(x + r)} {_n(y)}H{_n(x0 - r)}"
            _line(groups["across"], f"{into}Q{_n(x0)} {_n(y)} {_n(x0)} {_n(end)}", edge.paint)
            _rim(groups["rims"], x + r, x0 - r, y)
            if edge.boundary:
                _diamond(groups["boundaries"], x, y - r - 2, self._told(edge))

    def _told(self, edge: Edge) -> str:
        names = (self._picture.rows[i].columns[0] for i in (edge.source, edge.target))
        return f"{edge.boundary}: " + " to ".join(names)


def _line(parent: ET.Element, way: str, paint: Paint) -> None:
    ET.SubElement(parent, "path", {"d": way, "stroke": COLOURS[paint][0], "stroke-width": "1.8"})


def _rim(parent: ET.Element, x1: float, x2: float, y: float) -> None:
    """White around a line, so that those that it crosses do not seem to join it."""
    way = f"M{_n(x1)} {_n(y)}H{_n(x2)}"
    ET.SubElement(parent, "path", {"d": way, "stroke": "#FFFFFF", "stroke-width": "4.6"})


def _diamond(parent: ET.Element, x: float, y: float, tooltip: str) -> None:
    corners = ((x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y))
    points = " ".join(f"{_n(a)},{_n(b)}" for a, b in corners)
    shape = {"points": points, "fill": BOUNDARY, "stroke": "#FFFFFF", "stroke-width": "1"}
    ET.SubElement(ET.SubElement(parent, "polygon", shape), "title").text = tooltip


def _cut(text: str, most: int, keep_end: bool) -> str:
    """The end of a name tells more than its begin; of other text the begin does."""
    if len(text) <= most:
        return text
    head = most // 3 if keep_end else most - 1
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
