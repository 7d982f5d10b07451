"""What `inspect` found, as rows and edges to be drawn."""

from __future__ import annotations

from collections.abc import Mapping

from qconvert.quantization.forecast import Forecast, Operator
from qconvert.quantization.lowering.file_graph import DEQUANTIZE, Form
from qconvert.quantization.lowering.file_inspection import DrawnOperator, FileInspection
from qconvert.reports.graph_svg import Edge, Paint, Picture, Row
from qconvert.reports.inspection_tables import (
    boundary_text,
    computed_by,
    kinds_text,
    shape_text,
    work_text,
)

_PAINTS: Mapping[Form, Paint] = {
    "int8": "int8",
    "dynamic": "dynamic",
    "float32": "float",
    "boundary": "other",
    "other": "other",
}


def forecast_picture(forecast: Forecast, title: str) -> Picture:
    """A row for each operator with what its kernel computes beside it."""
    names = [*forecast.inputs, *(o.name for o in forecast.operators)]
    rows = [_end(name, forecast.inputs[name]) for name in forecast.inputs]
    rows += [_row(o, forecast.macs()) for o in forecast.operators]
    places = {name: i for i, name in enumerate(names)}
    makers = {o.name: o for o in forecast.operators}
    edges = {}
    for o in forecast.operators:
        for name in o.reads:
            maker = makers.get(name)
            edges[name, o.name] = Edge(
                places[name], places[o.name], _value_paint(maker), _crossing(maker, o.reads_float)
            )
    if forecast.returned:
        rows.append(_end("output", ()))
    for name in forecast.returned:
        maker = makers[name]
        edge = Edge(places[name], len(rows) - 1, _value_paint(maker), _crossing(maker, True))
        edges[name, ""] = edge
    work = f"{forecast.macs() / 1e6:,.0f} M multiply-accumulates"
    shares = ", ".join(
        f"{forecast.share(precision):.1%} {words}"
        for precision, words in (
            ("int8", "in int8 with fixed ranges"),
            ("dynamic", "in int8 with dynamic ranges"),
            ("float32", "in float"),
        )
    )
    return Picture(title, (f"{work}: {shares}",), tuple(rows), tuple(edges.values()))


def file_picture(found: FileInspection, title: str) -> Picture:
    """A row for each operator of a file; boundaries between two of them are marks on the edge, and
    what only changes the form of an int8 tensor or its layout is left out."""
    drawn = [i for i, o in enumerate(found.graph) if not _passes(o)]
    first = len(found.inputs)
    places = {old: first + new for new, old in enumerate(drawn)}
    places |= {-1 - i: i for i in range(first)}
    rows = [_end(name.partition(".")[0], ()) for name in found.inputs]
    rows += [_file_row(found.graph[i]) for i in drawn]
    edges = {}
    for i in drawn:
        for source, crossing in _sources(found, found.graph[i].reads):
            edges[places[source], places[i]] = _file_edge(found, places, source, i, crossing)
    if found.returned:
        rows.append(_end("output", ()))
        places[len(found.graph)] = len(rows) - 1
    for source, crossing in _sources(found, found.returned):
        edge = _file_edge(found, places, source, len(found.graph), crossing)
        edges[edge.source, edge.target] = edge
    facts = [f"{len(found.graph)} operators"]
    if found.coverage is not None:
        share = found.coverage.int8_macs_share
        facts.append(f"{share:.1%} of multiply-accumulates in int8")
    return Picture(title, ("; ".join(facts),), tuple(rows), tuple(edges.values()))


def _end(name: str, shape: tuple[int, ...]) -> Row:
    return Row((name, "", shape_text(shape), "", ""), "end", f"the model's {name}")


def _row(o: Operator, total: int) -> Row:
    work = f"{work_text(o.macs)} {o.macs / total:.1%}" if o.macs and total else ""
    paint: Paint = "float" if o.precision == "float32" else o.precision
    told = [f"{o.name}: {computed_by(o)}", *(f"with {name}" for name in o.includes)]
    told += [text for text in (o.reason, boundary_text(o)) if text]
    how = computed_by(o) if o.kept or o.precision != "float32" else f"float: {o.reason}"
    columns = (o.name, kinds_text(o), shape_text(o.shape), work, how)
    return Row(columns, "other" if o.kept else paint, "\n".join(told))


def _value_paint(maker: Operator | None) -> Paint:
    if maker is None:
        return "end"
    if maker.precision == "dynamic":
        return "dynamic"
    return "float" if maker.makes_float else "int8"


def _crossing(maker: Operator | None, read_float: bool) -> str | None:
    made_float = maker is None or maker.makes_float
    if made_float == read_float:
        return None
    return "quantize" if made_float else "dequantize"


def _file_row(o: DrawnOperator) -> Row:
    space, _, kind = o.kind.partition("::")
    shape = "" if o.shape is None else shape_text(o.shape)
    work = work_text(o.macs) if o.macs else ""
    name = o.name or kind
    return Row((name, kind, shape, work, space), _PAINTS[o.form], f"{name}: {o.kind}")


def _passes(o: DrawnOperator) -> bool:
    return o.form == "boundary" or (o.form == "other" and not o.kind.startswith("prim::"))


def _sources(found: FileInspection, reads: tuple[int, ...]) -> list[tuple[int, str | None]]:
    """What is read, past the boundaries on the way, and the name of the last of them."""
    told: list[tuple[int, str | None]] = []
    for number in reads:
        crossing = None
        while number >= 0 and _passes(found.graph[number]):
            passed = found.graph[number]
            if passed.form == "boundary":
                crossing = crossing or ("dequantize" if passed.kind == DEQUANTIZE else "quantize")
            before = found.graph[number].reads
            if not before:
                break
            number = before[0]
        told.append((number, crossing))
    return told


def _file_edge(
    found: FileInspection, places: Mapping[int, int], source: int, target: int, crossing: str | None
) -> Edge:
    paint: Paint = "end"
    if source >= 0:
        maker = found.graph[source]
        paint = "int8" if maker.returns_int8 else "float"
        paint = "dynamic" if maker.form == "dynamic" else paint
    return Edge(places[source], places[target], paint, crossing)
