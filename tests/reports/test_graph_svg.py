"""The picture of a graph: well-formed, a box for each row, nothing over anything else."""

from __future__ import annotations

from itertools import combinations, pairwise
from xml.etree import ElementTree as ET

import pytest

from qconvert.reports.graph_lanes import lanes
from qconvert.reports.graph_svg import BOUNDARY, COLOURS, Edge, Paint, Picture, Row, to_svg

SVG = "{http://www.w3.org/2000/svg}"


def row(name: str, paint: Paint = "int8", kernel: str = "conv2d") -> Row:
    return Row((name, "conv2d bn relu", "1x8x4x4", "1.0 M", kernel), paint, f"why {name}")


def drawn(*rows: Row, edges: tuple[Edge, ...] = ()) -> ET.Element:
    return ET.fromstring(to_svg(Picture("a <model>", ("facts & figures",), rows, edges)))


def boxes(svg: ET.Element) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of each row's box."""
    found = []
    for group in svg.findall(f"{SVG}g[@id='rows']/{SVG}g"):
        box = group.find(f"{SVG}rect")
        assert box is not None
        x, y, width, height = (float(box.get(k, "")) for k in ("x", "y", "width", "height"))
        found.append((x, y, x + width, y + height))
    return found


def test_each_row_has_a_box_in_its_colour_with_a_tooltip() -> None:
    paints: tuple[Paint, ...] = ("end", "int8", "dynamic", "float", "other")
    svg = drawn(*(row(f"layer.{paint}", paint) for paint in paints))
    groups = svg.findall(f"{SVG}g[@id='rows']/{SVG}g")
    fills = [group.find(f"{SVG}circle").get("fill") for group in groups]  # type: ignore[union-attr]
    assert fills == [COLOURS[paint][0] for paint in paints]
    assert len(set(fills)) == len(paints)
    assert [group.findtext(f"{SVG}title") for group in groups] == [
        f"why layer.{paint}" for paint in paints
    ]


def test_rows_lie_below_each_other_within_the_picture() -> None:
    svg = drawn(*(row(f"row{i}") for i in range(70)))
    assert all(above[3] < below[1] for above, below in pairwise(boxes(svg)))
    assert boxes(svg)[-1][3] < float(svg.get("height", ""))
    assert max(box[2] for box in boxes(svg)) <= float(svg.get("width", ""))


def test_edges_stay_left_of_the_boxes_however_many_there_are() -> None:
    rows = 30
    every = tuple(Edge(i, j, "int8") for i, j in combinations(range(rows), 2))
    svg = drawn(*(row(f"row{i}") for i in range(rows)), edges=every)
    left = min(box[0] for box in boxes(svg))
    for path in svg.findall(f"{SVG}g[@id='across']/{SVG}path"):
        numbers = path.get("d", "").replace("M", " ").replace("Q", " ").replace("H", " ").split()
        assert all(float(x) < left for x in numbers[:1])
    assert left < 30 * 20


def test_text_that_is_too_long_is_cut_and_stays_in_its_box() -> None:
    svg = drawn(row("features." * 30 + "conv1", kernel="k" * 200))
    texts = [t.text or "" for t in svg.findall(f"{SVG}g[@id='rows']/{SVG}g/{SVG}text")]
    assert texts[0].endswith("conv1")
    assert "…" in texts[0]
    assert all(len(text) <= 60 for text in texts)


def test_boundaries_are_marked_on_their_edges_and_counted_once_for_a_value() -> None:
    edges = (
        Edge(0, 1, "float", "quantize"),
        Edge(0, 2, "float", "quantize"),
        Edge(1, 2, "int8"),
        Edge(2, 3, "int8", "dequantize"),
    )
    svg = drawn(row("x", "end"), row("a"), row("b"), row("c", "float"), edges=edges)
    marks = svg.findall(f"{SVG}g[@id='boundaries']/{SVG}polygon")
    assert [mark.get("fill") for mark in marks] == [BOUNDARY] * 3
    assert {mark.findtext(f"{SVG}title") for mark in marks} == {
        "quantize: x to a", "quantize: x to b", "dequantize: b to c",
    }  # fmt: skip
    legend = [text.text for text in svg.findall(f"{SVG}g[@id='legend']/{SVG}text")]
    assert "boundaries between float and int8: 2" in legend
    assert "int8, fixed ranges: 2" in legend


def test_nothing_of_others_is_in_the_picture_and_it_is_the_same_each_time() -> None:
    picture = Picture("m", (), (row("a <b> & c"), row("d")), (Edge(0, 1, "int8"),))
    text = to_svg(picture)
    assert text == to_svg(picture)
    assert all(word not in text for word in ("<script", "<image", "@import", "href"))
    assert "#FFFFFF" in text  # a background of its own


@pytest.mark.parametrize("rows", [4, 25])
def test_lanes_are_used_again_and_never_by_two_at_once(rows: int) -> None:
    dense = lanes(combinations(range(rows), 2))
    for one, other in combinations(dense, 2):
        apart = one.targets[-1] <= other.source or other.targets[-1] <= one.source
        assert one.lane != other.lane or apart
    chain = lanes((i, i + 2) for i in range(0, rows, 2))
    assert {way.lane for way in chain} == {1}
