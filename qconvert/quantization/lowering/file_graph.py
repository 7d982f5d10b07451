"""Reads the operators of anybody's TorchScript graph, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

# What an operator of a file computes in; `boundary` is from float to int8 or back, `other` are the
# ways between two int8 forms or layouts, and control flow.
Form = Literal["int8", "dynamic", "float32", "boundary", "other"]
QUANTIZE = (
    "aten::quantize_per_tensor",
    "aten::quantize_per_channel",
    "aten::quantize_per_tensor_dynamic",
)
DEQUANTIZE = "aten::dequantize"
# From one int8 form to the other, or to another layout of it.
_CONVERSIONS = ("aten::int_repr", "aten::_make_per_tensor_quantized_tensor")
# They change how a tensor lies in memory, and compute nothing.
_LAYOUT = ("aten::contiguous",)
# Kernels of other makers than torch.ops.quantized whose inputs are int8.
_DIRECT = "onednn::q"
# The scalar types, as an operator's argument, in which oneDNN's kernels return float.
_FLOAT_TYPES = (5, 6, 7, 15)
# Nodes without a value of their own that hold blocks or calls.
_FLOW = ("prim::If", "prim::Loop", "prim::fork", "prim::CallMethod", "prim::CallFunction")


@dataclass(frozen=True)
class FileOperator:
    """An operator on tensors that depend on the file's inputs.

    `name` is the path of the module whose weight it reads, empty where the file does not tell.
    `reads` are the numbers of the operators that it reads, those of inputs are below zero. `depth`
    counts the blocks of control flow around it.
    """

    kind: str
    form: Form
    name: str
    reads: tuple[int, ...]
    depth: int
    returns_int8: bool


@dataclass
class _Known:
    """Of a value in the graph: the operators it comes from, whether it is int8, the path of the
    parameter that it is."""

    makers: set[int] = field(default_factory=set)
    int8: bool = False
    path: str = ""


@dataclass(frozen=True)
class FileGraph:
    """The operators in the order of the graph, those in blocks after the one that holds them;
    `inputs` are the names of the tensors that it reads, `returned` the operators that it ends
    with."""

    operators: tuple[FileOperator, ...]
    inputs: tuple[str, ...]
    returned: tuple[int, ...]

    def kinds(self) -> dict[Form, dict[str, int]]:
        """How many operators of each kind there are in each form, the most frequent first."""
        found: dict[Form, Counter[str]] = {}
        for operator in self.operators:
            if operator.kind not in _FLOW or operator.kind.startswith("prim::Call"):
                found.setdefault(operator.form, Counter())[operator.kind] += 1
        return {form: dict(kinds.most_common()) for form, kinds in found.items()}

    def named(self, names: Iterable[tuple[str, str]]) -> FileGraph:
        """With names for those that have none, from pairs of kind and name in the order of the
        graph; only where there are as many of a kind."""
        given: dict[str, list[str]] = {}
        for kind, name in names:
            given.setdefault(kind, []).append(name)
        counts = Counter(operator.kind for operator in self.operators)
        queues = {k: iter(v) for k, v in given.items() if len(v) == counts[k]}
        told = []
        for operator in self.operators:
            name = next(queues[operator.kind]) if operator.kind in queues else ""
            told.append(replace(operator, name=operator.name or name))
        return replace(self, operators=tuple(told))


def read_graph(graph: torch._C.Graph) -> FileGraph:
    """The operators of a graph whose methods are inlined."""
    return _Reading().read(graph)


class _Reading:
    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._found: list[FileOperator] = []

    def read(self, graph: Any) -> FileGraph:
        inputs = [v for v in graph.inputs() if _holds_tensors(v)]
        for i, value in enumerate(inputs):
            self._known[value.debugName()] = _Known({-1 - i})
        self._block(graph, 0)
        ends = [self._of(v) for v in graph.outputs()]
        returned = sorted({maker for known in ends for maker in known.makers if maker >= 0})
        names = tuple(value.debugName() for value in inputs)
        return FileGraph(tuple(self._found), names, tuple(returned))

    def _of(self, value: Any) -> _Known:
        return self._known.setdefault(value.debugName(), _Known())

    def _block(self, block: Any, depth: int) -> None:
        for node in block.nodes():
            if node.kind() == "prim::GetAttr":
                owner = self._of(node.inputsAt(0)).path
                path = f"{owner}.{node.s('name')}" if owner else node.s("name")
                self._known[node.outputsAt(0).debugName()] = _Known(path=path)
            elif node.kind() == "aten::append":  # a list's later readers read it, too
                self._of(node.inputsAt(0)).makers |= self._of(node.inputsAt(1)).makers
            else:
                self._node(node, depth)

    def _node(self, node: Any, depth: int) -> None:
        kind, read = node.kind(), [self._of(v) for v in node.inputs()]
        makers = {maker for known in read for maker in known.makers}
        outputs = list(node.outputs())
        tensors = any(map(_holds_tensors, outputs))
        path = max(
            (k.path for k, v in zip(read, node.inputs(), strict=True) if _is_parameter(v)),
            key=len,
            default="",
        )
        int8 = any(known.int8 for known in read[:1]) or (
            kind.startswith("prim::") and any(known.int8 for known in read)
        )
        own = tensors and bool(makers) and (not kind.startswith("prim::") or kind in _FLOW)
        own = own and kind != "aten::__getitem__"
        if own:
            form, int8 = _form(node, int8)
            name = path.rpartition(".")[0] or path
            self._found.append(FileOperator(kind, form, name, tuple(sorted(makers)), depth, int8))
            makers, path = {len(self._found) - 1}, ""
        self._blocks(node, makers if own else set(), depth)
        for value in outputs:
            known = self._known.get(value.debugName())
            if known is None or not known.makers:
                self._known[value.debugName()] = _Known(
                    set(makers) if tensors else set(), int8, path
                )

    def _blocks(self, node: Any, around: set[int], depth: int) -> None:
        """The nodes of If and Loop; what they read from outside is known by then."""
        carried = list(node.inputs())[2:] if node.kind() == "prim::Loop" else []
        for block in node.blocks():
            for inner, outer in zip(list(block.inputs())[1:], carried, strict=False):
                self._known[inner.debugName()] = self._of(outer)
            self._block(block, depth + 1)
            ends = list(block.outputs())[1 if carried else 0 :]
            for outer, end in zip(node.outputs(), ends, strict=False):
                before = self._known.get(outer.debugName(), _Known())
                self._known[outer.debugName()] = _Known(
                    around or before.makers | self._of(end).makers,
                    before.int8 or self._of(end).int8,
                )


def _form(node: Any, reads_int8: bool) -> tuple[Form, bool]:
    """How a node computes, and whether its result is int8."""
    kind = node.kind()
    if kind in QUANTIZE or kind == DEQUANTIZE:
        return "boundary", kind != DEQUANTIZE
    if kind in _LAYOUT:
        return "other", reads_int8
    if kind in _CONVERSIONS or kind in _FLOW:
        return "other", kind in _CONVERSIONS
    if kind.startswith("aten::quantized_") or (
        kind.startswith("quantized::") and "_dynamic" in kind
    ):
        return "dynamic", False
    if kind.startswith("quantized::"):
        return "int8", not kind.endswith("_fp32")
    if kind.startswith(_DIRECT):
        return "int8", _argument(node, "output_dtype") not in _FLOAT_TYPES
    return ("int8", True) if reads_int8 else ("float32", False)


def _argument(node: Any, name: str) -> Any:
    """A constant argument of an operator, by its name in the operator's schema."""
    schema = torch._C.parse_schema(node.schema())
    names = [argument.name for argument in schema.arguments]
    return node.inputsAt(names.index(name)).toIValue() if name in names else None


def _holds_tensors(value: Any) -> bool:
    return "Tensor" in value.type().annotation_str


def _is_parameter(value: Any) -> bool:
    """Whether it can be a weight: a tensor, or an object that holds packed ones."""
    return value.type().kind() in ("TensorType", "ClassType")
