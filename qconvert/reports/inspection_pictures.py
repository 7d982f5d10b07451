"""What `inspect` found, as rows and edges to be drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from qconvert.quantization.forecast import CodePart, Forecast, KeptCode, Operator
from qconvert.quantization.lowering.file_graph import DEQUANTIZE, Branch, Form
from qconvert.quantization.lowering.file_inspection import DrawnOperator, FileInspection
from qconvert.reports.graph_svg import Edge, Paint, Picture, Row
from qconvert.reports.inspection_tables import (
    FORMS,
    boundary_text,
    code_share,
    computed_by,
    kinds_text,
    own_work,
    shape_text,
    work_share,
    work_text,
)

_PAINTS: Mapping[Form, Paint] = {
    "int8": "int8",
    "dynamic": "dynamic",
    "float32": "float",
    "boundary": "other",
    "other": "other",
}
# Control flow of a file, and what is in it.
_FLOW: Mapping[str, tuple[str, str]] = {
    "prim::If": ("if", "a branch"),
    "prim::Loop": ("loop", "a loop"),
}
_BRANCHES: Mapping[Branch, str] = {"then": "(if)", "else": "(else)", "loop": "(in the loop)"}


def forecast_picture(forecast: Forecast, title: str) -> Picture:
    """A row for each operator with what its kernel computes beside it. Below code that is kept
    stand the modules that it calls, which read what it gives them, and its end, which reads what
    they return."""
    drawn = _Drawn(forecast)
    work = f"{forecast.macs() / 1e6:,.0f} M multiply-accumulates"
    shares = ", ".join(
        f"{forecast.share(precision):.1%} {words}"
        for precision, words in (
            ("int8", "in int8 with fixed ranges"),
            ("dynamic", "in int8 with dynamic ranges"),
            ("float32", "in float"),
        )
    )
    return Picture(
        title,
        (f"{work}: {shares}",),
        tuple(drawn.rows),
        tuple(drawn.edges.values()),
        forecast.boundaries,
    )


class _Drawn:
    """The rows of a forecast and their edges."""

    def __init__(self, forecast: Forecast) -> None:
        self.rows: list[Row] = []
        self.edges: dict[tuple[int, int], Edge] = {}
        self._forecast = forecast
        self._operators = {o.name: o for o in forecast.operators}
        self._kept = {code.path: code for code in forecast.kept_code}
        self._parts = {part.path: part for part in forecast.parts}
        # The row that a value is read from, by its name.
        self._places: dict[str, int] = {}
        self._model()

    def _model(self) -> None:
        inputs = self._forecast.inputs
        for name, shape in inputs.items():
            self._places[name] = self._add(_end(name, shape))
        if "" in self._parts:
            self._operators_of(self._parts[""], 0)
            last = self._add(_end("output", ())) if self._forecast.returned else 0
            for name in self._forecast.returned:
                self._edge(name, last, reads_float=True)
            return
        begin, end = self._code("", None, 0)
        for name in inputs:
            self._edge(name, begin, reads_float=True)
        self._edge(end, self._add(_end("output", ())), reads_float=True)

    def _operators_of(self, part: CodePart, depth: int) -> None:
        for name in part.operators:
            o = self._operators[name]
            path = name.partition(":")[0]
            if o.kept and path in self._kept:
                place, end = self._code(path, o, depth)
                self._places[name] = end
            else:
                place = self._places[name] = self._add(_row(self._forecast, o, depth))
            for read in o.reads:
                self._edge(read, place, o.reads_float)

    def _code(self, path: str, o: Operator | None, depth: int) -> tuple[int, int]:
        """Code that is kept, and what it calls: the rows of its begin and its end."""
        code = self._kept.pop(path)  # a second call has no rows but its own
        inside = [p for p in self._below(path) if p in self._parts or p in self._kept]
        begin = end = self._add(_code_row(self._forecast, code, o, depth))
        results: list[str | int] = []
        for inner in inside:
            if inner in self._parts:
                part = self._parts[inner]
                self._places |= dict.fromkeys(part.inputs, begin)
                self._operators_of(part, depth + 1)
                results += part.returned
            else:
                first, last = self._code(inner, None, depth + 1)
                self._edge(begin, first, reads_float=True)
                results.append(last)
        if inside:
            name = code.path or "the model"
            columns = (f"{_indent(depth)}{name}", "end of the code", "", "", "as written")
            told = f"the end of the code of {name}, which has what the modules that it calls return"
            end = self._add(Row(columns, "other", told))
            for result in (begin, *results):
                self._edge(result, end, reads_float=True)
        return begin, end

    def _below(self, path: str) -> list[str]:
        """The parts and the kept code that the code at a path calls by itself."""
        known = [*(p for p in self._parts if p), *(code.path for code in self._forecast.kept_code)]
        inner = [p for p in known if p != path and _is_below(p, path)]
        return [p for p in inner if not any(q != p and _is_below(p, q) for q in inner)]

    def _add(self, row: Row) -> int:
        self.rows.append(row)
        return len(self.rows) - 1

    def _edge(self, source: str | int, target: int, reads_float: bool) -> None:
        """From a value, by its name, or from a row of code that is kept."""
        if isinstance(source, int):
            self.edges[source, target] = Edge(source, target, "float")
            return
        place = self._places[source]
        maker = self._operators.get(source)
        kept = maker is None and self.rows[place].paint == "other"
        paint: Paint = "float" if kept else _value_paint(maker)
        self.edges[place, target] = Edge(place, target, paint, _crossing(maker, reads_float))


def _is_below(path: str, owner: str) -> bool:
    return not owner or path.startswith(f"{owner}.")


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
    facts = [
        f"{sum(found.operators[f].values())} x {FORMS[f]}" for f in FORMS if f in found.operators
    ]
    facts += _flow_facts(found)
    if found.coverage is not None:
        share = found.coverage.int8_macs_share
        facts.append(f"{share:.1%} of multiply-accumulates in int8")
    boundaries = sum(found.operators.get("boundary", {}).values())
    return Picture(title, ("; ".join(facts),), tuple(rows), tuple(edges.values()), boundaries)


def _flow_facts(found: FileInspection) -> list[str]:
    numbers = Counter(o.kind for o in found.graph if o.kind in _FLOW)
    return [f"{numbers[kind]} x {word}" for kind, (word, _) in _FLOW.items() if numbers[kind]]


def _end(name: str, shape: tuple[int, ...]) -> Row:
    return Row((name, "", shape_text(shape), "", ""), "end", f"the model's {name}")


def _row(forecast: Forecast, o: Operator, depth: int) -> Row:
    paint: Paint = "float" if o.precision == "float32" else o.precision
    told = [f"{o.name}: {computed_by(o)}", *(f"with {name}" for name in o.includes)]
    told += [text for text in (o.reason, boundary_text(o)) if text]
    how = computed_by(o) if o.kept or o.precision != "float32" else f"float: {o.reason}"
    work = _work(forecast, own_work(forecast, o), work_share(forecast, o))
    columns = (f"{_indent(depth)}{o.name}", kinds_text(o), shape_text(o.shape), work, how)
    return Row(columns, "other" if o.kept else paint, "\n".join(told))


def _code_row(forecast: Forecast, code: KeptCode, o: Operator | None, depth: int) -> Row:
    name = code.path or "the model"
    if o is not None:
        row = _row(forecast, o, depth)
        return replace(row, tooltip=f"{name}: kept as written\n{code.reason}")
    work = _work(forecast, code.macs, code_share(forecast, code))
    columns = (f"{_indent(depth)}{name}", "code", "", work, "as written")
    return Row(columns, "other", f"{name}: kept as written\n{code.reason}")


def _work(forecast: Forecast, macs: int, share: str) -> str:
    return f"{work_text(macs)} {share}" if macs and forecast.macs() else share


def _indent(depth: int) -> str:
    return "· " * depth


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
    where = _BRANCHES[o.branch] if o.branch else ""
    indent = _indent(o.depth)
    if o.kind in _FLOW:
        word, told = _FLOW[o.kind]
        tooltip = f"{o.kind}: {told}, which is kept; what is in it stands below, with a dot"
        return Row((f"{indent}{word}", f"kept code: {told}", "", "", where), "other", tooltip)
    space, _, kind = o.kind.partition("::")
    shape = "" if o.shape is None else shape_text(o.shape)
    work = work_text(o.macs) if o.macs else ""
    name = o.name or kind
    columns = (f"{indent}{name}", kind, shape, work, f"{space} {where}".rstrip())
    return Row(columns, _PAINTS[o.form], " ".join(filter(None, (f"{name}: {o.kind}", where))))


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
