"""What is in a TorchScript file: operators, weights, coverage, what it needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from qconvert import torchscript
from qconvert.models.execution import Executed, watch
from qconvert.models.model_file import ModelFile
from qconvert.quantization.kernels import DYNAMIC
from qconvert.quantization.lowering import coverage
from qconvert.quantization.lowering.engines import Need, needs
from qconvert.quantization.lowering.file_graph import Branch, FileGraph, Form, read_graph
from qconvert.records import Record

# By kind: the shape of each result, and its multiply-accumulates where they are counted.
_Ran = dict[str, list[tuple[tuple[int, ...], int | None]]]


class FileCoverage(Record):
    """Multiply-accumulates of one image. `counted` on the file's graph, or `told` by its manifest,
    which knows shares only."""

    source: Literal["counted", "told"]
    shapes: tuple[tuple[int, ...], ...]
    int8_macs_share: float
    dynamic_macs_share: float
    macs: int | None
    boundaries: int | None
    conversions: int | None


class DrawnOperator(Record):
    """A row of the file's graph. `reads` are numbers of rows, those of inputs below zero. `depth`
    counts the branches and loops around it, `branch` is the innermost."""

    name: str
    kind: str
    form: Form
    shape: tuple[int, ...] | None
    macs: int | None
    reads: tuple[int, ...]
    returns_int8: bool
    depth: int
    branch: Branch | None


class FileInspection(Record):
    """Everything that can be told of a file. `weights` are bytes by dtype, `why_uncounted` says why
    there is no coverage."""

    size_bytes: int
    weights: dict[str, int]
    operators: dict[Form, dict[str, int]]
    coverage: FileCoverage | None
    why_uncounted: str | None
    needs: tuple[Need, ...]
    warnings: tuple[str, ...]
    graph: tuple[DrawnOperator, ...]
    inputs: tuple[str, ...]
    returned: tuple[int, ...]


def inspect_file(file: ModelFile, shapes: Sequence[tuple[int, ...]] = ()) -> FileInspection:
    """Reads a file's graph; runs it once on noise where the shapes of its inputs are known, from
    `shapes` or its manifest."""
    pixels = _uint8_inputs(file.manifest)
    written = read_graph(file.module.inlined_graph, pixels)
    operators = written.kinds()
    frozen = _frozen(file.module)
    drawn = written
    if frozen is not None:
        bare = read_graph(frozen.graph, pixels)
        if _loops(bare) == _loops(written):  # freezing unrolls short ones
            drawn = _named(bare, written, file.manifest)
    known = tuple(shapes) or _shapes(file.manifest)
    found = _told(file.manifest)
    ran: _Ran = {}
    why_not: str | None = (
        "the height and width of its inputs are not told: give --shape 1,3,224,224"
    )
    if known:
        try:
            found, ran = _counted(frozen or file.module, known, file.manifest)
            why_not = None
        except Exception as error:  # whatever a stranger's model raises
            why_not = f"it does not run on noise of shape {_said(known)}: {_last_line(error)}"
    kinds = Counter({k: n for form in operators.values() for k, n in form.items()})
    needed = needs(kinds, file.manifest)
    return FileInspection(
        size_bytes=file.size_bytes,
        weights=file.weights,
        operators=operators,
        coverage=found,
        why_uncounted=why_not,
        needs=needed,
        warnings=tuple(_warning(need) for need in needed if not need.here),
        graph=_rows(drawn, ran),
        inputs=drawn.inputs,
        returned=drawn.returned,
    )


def _frozen(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule | None:
    """The module frozen, if it can be and is not."""
    if not hasattr(module, "training"):  # freezing has removed it
        return module
    try:
        return torchscript.freeze(module)
    except Exception:  # control flow over submodules, or methods that write attributes
        return None


def _loops(graph: FileGraph) -> int:
    return sum(operator.kind == "prim::Loop" for operator in graph.operators)


def _named(drawn: FileGraph, written: FileGraph, manifest: Mapping[str, Any] | None) -> FileGraph:
    """With the names that freezing has removed: from the graph as it is written, or the manifest.

    A layer that computes a sum stands later in a file than in its plan, but such layers are modules
    and have kept their names; the order of the others is the same.
    """
    lines = (manifest or {}).get("operators") or []
    try:
        planned = [(str(kernel), str(name)) for name, _, kernel in lines if kernel is not None]
    except (TypeError, ValueError):  # a manifest of another version
        planned = []
    direct = {o.kind for o in drawn.operators if o.name} | set(DYNAMIC.values())
    told = [(kind, name) for kind, name in planned if kind not in direct]
    return drawn.named(told or [(o.kind, o.name) for o in written.operators], bool(told))


def _uint8_inputs(manifest: Mapping[str, Any] | None) -> list[int]:
    entries = (manifest or {}).get("inputs") or ()
    return [i for i, entry in enumerate(entries) if entry.get("dtype") == "uint8"]


def _shapes(manifest: Mapping[str, Any] | None) -> tuple[tuple[int, ...], ...]:
    """Those of a manifest, for one image; empty where the images' size is not in it."""
    found = []
    for entry in (manifest or {}).get("inputs") or ():
        batch, *shape = entry["shape"]
        steps = (manifest or {}).get("preprocess") or {}
        size = steps.get("crop") or steps.get("resize")
        if None in shape and len(shape) == 3 and isinstance(size, (int, list)):
            sides = size if isinstance(size, list) else [size, size]
            shape[1:] = [side or other for side, other in zip(shape[1:], sides, strict=True)]
        if None in shape:
            return ()
        found.append((batch or 1, *shape))
    return tuple(found)


def _counted(
    module: torch.jit.ScriptModule,
    shapes: tuple[tuple[int, ...], ...],
    manifest: Mapping[str, Any] | None,
) -> tuple[FileCoverage, _Ran]:
    """Coverage, and shape and multiply-accumulates of every operator that ran, by its kind."""
    example = _noise(shapes, manifest)
    found = coverage.count(module, example)
    sizes: dict[str, list[tuple[int, ...]]] = {}

    def visit(executed: Executed) -> None:
        sizes.setdefault(executed.kind, []).append(tuple(executed.output.shape))

    watch(module, example, visit)
    work: dict[str, list[int]] = {}
    for counted in found.counted:
        work.setdefault(counted.kernel, []).append(counted.macs)
    ran: _Ran = {}
    for kind, made in sizes.items():
        macs = work.get(kind, ())
        known: Sequence[int | None] = macs if len(macs) == len(made) else [None] * len(made)
        ran[kind] = list(zip(made, known, strict=True))
    images = max(1, shapes[0][0])
    return FileCoverage(
        source="counted",
        shapes=shapes,
        int8_macs_share=found.int8_macs_share,
        dynamic_macs_share=found.dynamic_macs / found.macs if found.macs else 0.0,
        macs=found.macs // images,
        boundaries=found.boundaries,
        conversions=found.conversions,
    ), ran


def _noise(shapes: tuple[tuple[int, ...], ...], manifest: Mapping[str, Any] | None) -> list[Tensor]:
    """The same each time; an input that is no float is zero."""
    entries = (manifest or {}).get("inputs") or [{}] * len(shapes)
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, entry in zip(shapes, entries, strict=False):
        dtype = getattr(torch, entry.get("dtype", "float32"), torch.float32)
        noise = torch.rand(shape, generator=generator)
        found.append(
            noise.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        )
    return found


def _told(manifest: Mapping[str, Any] | None) -> FileCoverage | None:
    share = (manifest or {}).get("int8_macs")
    if not isinstance(share, (int, float)):
        return None
    return FileCoverage(
        source="told",
        shapes=(),
        int8_macs_share=share,
        dynamic_macs_share=(manifest or {}).get("dynamic_macs", 0.0),
        macs=None,
        boundaries=None,
        conversions=None,
    )


def _rows(drawn: FileGraph, ran: _Ran) -> tuple[DrawnOperator, ...]:
    """The operators, with shape and work where it is sure which run was theirs."""
    runs = _runs(drawn, ran)
    return tuple(
        DrawnOperator(
            name=operator.name,
            kind=operator.kind,
            form=operator.form,
            shape=runs[i][0] if i in runs else None,
            macs=runs[i][1] if i in runs else None,
            reads=operator.reads,
            returns_int8=operator.returns_int8,
            depth=operator.depth,
            branch=operator.branch,
        )
        for i, operator in enumerate(drawn.operators)
    )


def _runs(drawn: FileGraph, ran: _Ran) -> dict[int, tuple[tuple[int, ...], int | None]]:
    """The run of each operator.

    What ran is known by its kind and in its order. Without loops nothing runs twice, so where as
    many ran as are there, each did; else those before the first branch or loop and after the last
    have run once.
    """
    there: dict[str, list[int]] = {}
    for i, operator in enumerate(drawn.operators):
        there.setdefault(operator.kind, []).append(i)
    flow = [i for i, operator in enumerate(drawn.operators) if operator.depth or operator.is_flow]
    loops = any(operator.branch == "loop" for operator in drawn.operators)
    found: dict[int, tuple[tuple[int, ...], int | None]] = {}
    for kind, numbers in there.items():
        told = ran.get(kind, [])
        inside = [i for i in numbers if drawn.operators[i].depth]
        if len(told) == len(numbers) and not (loops and inside):
            found.update(zip(numbers, told, strict=True))
        elif flow:
            before = [i for i in numbers if i < flow[0]]
            after = [i for i in numbers if i > flow[-1]]
            if len(before) + len(after) <= len(told):
                found.update(zip(before, told, strict=False))
                found.update(zip(reversed(after), reversed(told), strict=False))
    return found


def _warning(need: Need) -> str:
    return f"not here: {need.what} ({need.operators} operators): {need.remark}"


def _said(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes)


def _last_line(error: Exception) -> str:
    """What TorchScript says below its traceback, whose last line may be a bare `RuntimeError:`."""
    lines = [re.sub(r"^[\w.]*(Error|Exception):", "", x).strip() for x in str(error).splitlines()]
    said = [line for line in lines if line and set(line) - set("~^. <-HERE")]
    return said[-1] if said else type(error).__name__
