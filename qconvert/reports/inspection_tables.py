"""What `inspect` found, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qconvert.quantization.advice import Block
from qconvert.quantization.forecast import Forecast, KeptCode, Operator
from qconvert.quantization.lowering.file_graph import Form
from qconvert.quantization.lowering.file_inspection import FileInspection
from qconvert.reports.tables import Table, megabytes

PRECISIONS = {"int8": "int8, fixed ranges", "dynamic": "int8, dynamic ranges", "float32": "float"}
FORMS: Mapping[Form, str] = {
    "int8": "int8, fixed ranges",
    "dynamic": "int8, dynamic ranges",
    "float32": "float",
    "boundary": "boundary",
    "other": "other",
}
# The topic of code that is kept (`quantization.topics`).
KEPT = "kept as written"
# The work of what only other images reach.
NOT_FOR_THE_EXAMPLE = "not for the example"
_BRIEF = {"batch_norm": "bn"}
# Names in a list of paths that is read by people; the JSON has all.
_SHOWN = 3


def forecast_tables(forecast: Forecast, blocks: Sequence[Block]) -> list[Table]:
    """Operators, summary and blocks that resist."""
    tables = [operators_table(forecast), summary_table(forecast)]
    return [*tables, blocks_table(blocks)] if blocks else tables


def operators_table(forecast: Forecast) -> Table:
    """A line for each operator."""
    named = {o.name.partition(":")[0] for o in forecast.operators if o.kept}
    rows = [
        (kept.path or "the model", "code", "", code_share(forecast, kept), "as written", "")
        for kept in forecast.kept_code
        if kept.path not in named
    ]
    rows += [
        (
            o.name,
            kinds_text(o),
            shape_text(o.shape[1:]),
            work_share(forecast, o),
            _computed(o),
            _at(o),
        )
        for o in forecast.operators
    ]
    columns = ("operator", "kind", "result", "work", "computed by", "boundary")
    note = (
        "work: share of the model's multiply-accumulates; boundary: between float and int8, before "
        "the operator or after it; kernels: quantized:: is the classic family, onednn:: the direct"
    )
    return Table("What will become of each operator", columns, tuple(rows), note, words=True)


def work_share(forecast: Forecast, o: Operator) -> str:
    """The share of the model's work, of code that is kept that of its own."""
    if not o.calls:
        return NOT_FOR_THE_EXAMPLE
    if o.kept:
        return share_text(forecast, own_work(forecast, o))
    return share_text(forecast, o.macs) if forecast.counted else "not counted"


def code_share(forecast: Forecast, code: KeptCode) -> str:
    """The share of the model's work that is in code that is kept."""
    return share_text(forecast, code.macs) if code.calls else NOT_FOR_THE_EXAMPLE


def own_work(forecast: Forecast, o: Operator) -> int:
    """Multiply-accumulates of an operator; of code that is kept, of its own."""
    path = o.name.partition(":")[0]
    kept = sum(kept.macs for kept in forecast.kept_code if kept.path == path)
    return kept if o.kept else o.macs


def share_text(forecast: Forecast, macs: int) -> str:
    """Empty for no work at all."""
    return f"{macs / forecast.macs():.1%}" if macs else ""


def _computed(o: Operator) -> str:
    if o.kept:
        return "as written"
    if o.precision == "float32":
        return f"float: {o.reason}"
    return o.kernel or f"int8 {o.lowering}"


def _at(o: Operator) -> str:
    return " ".join(word for word, found in (("before", o.before), ("after", o.after)) if found)


def summary_table(forecast: Forecast) -> Table:
    """Operators, work and estimated time by precision."""
    time = forecast.microseconds or 1
    rows = []
    for precision, words in PRECISIONS.items():
        chosen = [o for o in forecast.operators if o.precision == precision]
        spent = sum(o.microseconds for o in chosen)
        share = forecast.share(precision)
        work = f"{forecast.macs(precision) / 1e6:,.1f} M"
        rows.append((words, str(len(chosen)), work, f"{share:.1%}", f"{spent / time:.0%}"))
    crossing = sum(o.boundary_microseconds for o in forecast.operators)
    rows.append(("boundaries", str(forecast.boundaries), "", "", f"{crossing / time:.0%}"))
    columns = ("", "number", "multiply-accumulates", "share", "estimated time")
    note = f"estimated: {time / 1e3:.2f} ms for one image at one thread, by the table of costs"
    return Table("Summary", columns, tuple(rows), note)


def blocks_table(blocks: Sequence[Block]) -> Table:
    """What resists, what it costs, and what would help: blocks with one advice in one row."""
    topics: dict[tuple[str, str], list[Block]] = {}
    for block in blocks:
        topics.setdefault((block.topic, block.advice), []).append(block)
    rows = tuple(
        (
            "; ".join(_block_name(b) for b in found),
            _why(found),
            _spent(found),
            found[0].advice,
        )
        for found in topics.values()
    )
    columns = ("block", "why it resists", "work / time", "what would help")
    note = (
        "work: share of multiply-accumulates, of code that is kept that of its own; time: share of "
        "the estimate, boundaries included, which knows nothing of code that is kept"
    )
    return Table("Blocks that resist int8", columns, rows, note, words=True)


def _spent(blocks: Sequence[Block]) -> str:
    work = f"{sum(b.macs_share for b in blocks):.1%}"
    if blocks[0].topic == KEPT:
        return f"{work} / not estimated"
    return f"{work} / {sum(b.time_share for b in blocks):.1%}"


def _block_name(b: Block) -> str:
    kind = f" ({b.block})" if b.block else ""
    return f"{b.pattern}{kind}" + (f" x {len(b.paths)}" if len(b.paths) > 1 else "")


def _why(blocks: Sequence[Block]) -> str:
    kinds = list(dict.fromkeys(kind for b in blocks for kind in b.operators))
    reasons = list(dict.fromkeys(reason for b in blocks for reason in b.reasons))
    more = f"; and {len(reasons) - 2} more" if len(reasons) > 3 else ""
    shown = "; ".join(reasons[: 2 if more else 3])
    what = f": {some(kinds)}." if kinds and blocks[0].topic != KEPT else ":"
    return f"{blocks[0].topic}{what} {shown}{more}"


def file_tables(found: FileInspection, manifest: Mapping[str, Any] | None) -> list[Table]:
    """Operators, weights, needs and manifest."""
    rows = tuple(
        (FORMS[form], kind, str(number))
        for form in FORMS
        for kind, number in found.operators.get(form, {}).items()
    )
    tables = [Table("Operators in the file", ("computes in", "operator", "number"), rows)]
    total = sum(found.weights.values()) or 1
    weights = tuple((k, megabytes(n), f"{n / total:.1%}") for k, n in found.weights.items())
    note = f"the file: {megabytes(found.size_bytes)}"
    tables.append(Table("Weights and other tensors", ("dtype", "size", "share"), weights, note))
    if found.needs:
        needed = tuple(
            (n.what, str(n.operators), "yes" if n.here else "NO", n.remark) for n in found.needs
        )
        columns = ("needs", "operators", "here", "")
        tables.append(Table("What the file needs", columns, needed, words=True))
    if manifest is not None:
        tables.append(Table("Manifest", ("", ""), _manifest_rows(manifest), words=True))
    return tables


def file_lines(found: FileInspection) -> list[str]:
    """Coverage in words, and warnings."""
    lines = []
    coverage = found.coverage
    if coverage is not None:
        text = f"{coverage.int8_macs_share:.2%} of multiply-accumulates in int8"
        if coverage.dynamic_macs_share:
            text += f", {coverage.dynamic_macs_share:.2%} of them with dynamic ranges"
        if coverage.source == "counted":
            shapes = " and ".join(shape_text(shape) for shape in coverage.shapes)
            text += f"; {(coverage.macs or 0) / 1e6:,.1f} M for one image, counted at {shapes}"
            text += f"; {coverage.boundaries} boundaries"
        else:
            text += ", as its manifest tells"
        lines.append(f"coverage: {text}")
    if found.why_uncounted is not None:
        lines.append(f"coverage was not counted: {found.why_uncounted}")
    return [*lines, *(f"warning: {text}" for text in found.warnings)]


def _manifest_rows(manifest: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The short form: long lists are counted."""
    rows = []
    for key, value in manifest.items():
        if key in ("operators", "qconfig", "version"):
            continue
        if key == "accuracy" and isinstance(value, dict):
            value = {k: _figure(v) for k, v in value.items() if v is not None}
        rows.append((key.replace("_", " "), _short(value)))
    return tuple(rows)


def _figure(value: Any) -> Any:
    """An interval by its middle."""
    return value.get("value", value) if isinstance(value, dict) else value


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, list):
        if len(value) > 12:
            return f"{len(value)}: {', '.join(map(_short, value[:4]))}, …"
        return ", ".join(map(_short, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    # A digest is known by its begin.
    return f"{text[:12]}…" if len(text) == 64 and text.isalnum() else text


def computed_by(o: Operator) -> str:
    """Precision, family and kernel of an operator.

    >>> from qconvert.quantization.forecast import Operator
    >>> empty = dict.fromkeys(Operator.model_fields)
    >>> o = Operator.model_construct(
    ...     **{**empty, "precision": "int8", "lowering": "classic", "kernel": "quantized::add"})
    >>> computed_by(o)
    'int8 classic add'
    """
    if o.kept:
        return "kept as written"
    if o.precision == "float32":
        return "float32"
    kernel = (o.kernel or "").partition("::")[2]
    family = "dynamic" if o.precision == "dynamic" else (o.lowering or "")
    return " ".join(word for word in ("int8", family, kernel) if word)


def boundary_text(o: Operator) -> str:
    """The boundaries around an operator."""
    parts = [f"{kind} before" for kind in o.before] + [f"{kind} after" for kind in o.after]
    return ", ".join(parts)


def kinds_text(o: Operator) -> str:
    """What its kernel computes."""
    return " ".join(_BRIEF.get(kind, kind) for kind in (o.kind, *o.included_kinds))


def work_text(macs: int) -> str:
    """Multiply-accumulates.

    >>> work_text(118013952), work_text(2560)
    ('118.0 M', '2.6 K')
    """
    return f"{macs / 1e6:,.1f} M" if macs >= 100_000 else f"{macs / 1e3:.1f} K"


def shape_text(shape: Sequence[int]) -> str:
    """
    >>> shape_text((1, 3, 224, 224))
    '1x3x224x224'
    """
    return "x".join(map(str, shape))


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    if len(names) <= _SHOWN + 1:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
