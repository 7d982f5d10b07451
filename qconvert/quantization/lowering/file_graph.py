"""Reads the operators of anybody's TorchScript graph, without running it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
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
# They change how a tensor lies in memory, or show its memory as another tensor; they compute
# nothing.
_OVER_MEMORY = "aten::set_"
_LAYOUT = ("aten::contiguous", "aten::as_strided", _OVER_MEMORY)
# Kernels of other makers than torch.ops.quantized whose inputs are int8.
_DIRECT = "onednn::q"
# The scalar types, as an operator's argument, in which oneDNN's kernels return float.
_FLOAT_TYPES = (5, 6, 7, 15)
# Control flow, which holds blocks, and nodes without a value of their own that call something.
_BLOCKS = ("prim::If", "prim::Loop")
_CALLS = ("prim::fork", "prim::CallMethod", "prim::CallFunction")
_FLOW = (*_BLOCKS, *_CALLS)
# They put values into a list, dict or object, whose later readers read them, too.
_FILLING = ("aten::append", "aten::extend", "aten::insert", "aten::_set_item", "prim::SetAttr")
# They hand over what is in a list, and compute nothing.
_HANDING = ("aten::__getitem__", "aten::list", "aten::pop", "aten::values")
# Numbers that they tell of a tensor are not computed from what is in it.
_SIZES = (
    "aten::size", "aten::dim", "aten::len", "aten::numel", "aten::stride", "aten::__is__",
    "aten::is_floating_point", "aten::__isnot__", "prim::dtype", "prim::device", "prim::layout",
    "prim::is_quantized", "prim::is_nested", "prim::requires_grad", "prim::shape",
)  # fmt: skip
# Of the blocks of an If and of a Loop.
Branch = Literal["then", "else", "loop"]


@dataclass(frozen=True)
class FileOperator:
    """An operator on tensors that depend on the file's inputs.

    `name` is the path of the module whose weight it reads, empty where the file does not tell.
    `reads` are the numbers of the operators that it reads, those of inputs are below zero. `depth`
    counts the blocks of control flow around it, `branch` is the innermost of them.

    Branches and loops are operators themselves, before those in them: they read what they ask, and
    what goes through them; who reads their result reads them and what is computed in them.
    """

    kind: str
    form: Form
    name: str
    reads: tuple[int, ...]
    depth: int
    returns_int8: bool
    branch: Branch | None = None

    @property
    def is_flow(self) -> bool:
        """Whether it is a branch or a loop."""
        return self.kind in _BLOCKS


@dataclass
class _Known:
    """Of a value in the graph: the operators it comes from, those whose sizes it is computed from,
    whether it is int8, the path of the parameter that it is."""

    makers: set[int] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
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
            if operator.kind not in (*_BLOCKS, "prim::fork"):
                found.setdefault(operator.form, Counter())[operator.kind] += 1
        return {form: dict(kinds.most_common()) for form, kinds in found.items()}

    def named(self, names: Iterable[tuple[str, str]], planned: bool = False) -> FileGraph:
        """With names for those that have none, from pairs of kind and name in the order of the
        graph; only where there are as many of a kind.

        In the order of a plan, what is in branches or after them may stand elsewhere. It has a name
        where it is the last one left of its kind.
        """
        given: dict[str, list[str]] = {}
        for kind, name in names:
            given.setdefault(kind, []).append(name)
        counts = Counter(operator.kind for operator in self.operators)
        left = {k: v for k, v in given.items() if len(v) == counts[k]}
        straight, told = True, []
        for operator in self.operators:
            straight = straight and not (planned and operator.is_flow)
            queue = left.get(operator.kind, [])
            name = queue.pop(0) if queue and (straight or len(queue) == 1) else ""
            told.append(replace(operator, name=operator.name or name))
        return replace(self, operators=tuple(told))


def read_graph(graph: torch._C.Graph, uint8_inputs: Collection[int] = ()) -> FileGraph:
    """The operators of a graph whose methods are inlined; `uint8_inputs` are the places of inputs
    that are int8 already."""
    return _Reading().read(graph, uint8_inputs)


class _Reading:
    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._found: list[FileOperator] = []

    def read(self, graph: Any, uint8_inputs: Collection[int]) -> FileGraph:
        inputs = [v for v in graph.inputs() if _holds_tensors(v)]
        for i, value in enumerate(inputs):
            self._known[value.debugName()] = _Known({-1 - i}, int8=i in uint8_inputs)
        self._block(graph, 0, None)
        ends = [self._of(v) for v in graph.outputs()]
        returned = sorted({maker for known in ends for maker in known.makers if maker >= 0})
        names = tuple(value.debugName() for value in inputs)
        return FileGraph(tuple(self._found), names, tuple(returned))

    def _of(self, value: Any) -> _Known:
        return self._known.setdefault(value.debugName(), _Known())

    def _block(self, block: Any, depth: int, branch: Branch | None) -> None:
        for node in block.nodes():
            if node.kind() == "prim::GetAttr":
                owner = self._of(node.inputsAt(0)).path
                path = f"{owner}.{node.s('name')}" if owner else node.s("name")
                held = self._of(node.inputsAt(0))  # an object of the code's own, or a module
                self._known[node.outputsAt(0).debugName()] = _Known(
                    set(held.makers), set(held.sizes), path=path
                )
            elif node.kind() in _BLOCKS:
                self._flow(node, depth, branch)
            else:
                self._node(node, depth, branch)

    def _node(self, node: Any, depth: int, branch: Branch | None) -> None:
        kind, read = node.kind(), [self._of(v) for v in node.inputs()]
        makers = {maker for known in read for maker in known.makers}
        sizes = {maker for known in read for maker in known.sizes}
        if kind in _FILLING:
            read[0].makers |= makers
        outputs = list(node.outputs())
        tensors = any(map(_holds_tensors, outputs))
        path = max(
            (k.path for k, v in zip(read, node.inputs(), strict=True) if _is_parameter(v)),
            key=len,
            default="",
        )
        first = read[1:2] if kind == _OVER_MEMORY else read[:1]
        int8 = any(known.int8 for known in first) or (
            kind.startswith("prim::") and any(known.int8 for known in read)
        )
        own = tensors and bool(makers) and (not kind.startswith("prim::") or kind in _FLOW)
        own = own and kind not in _FILLING and kind not in _HANDING
        if own:
            form, int8 = _form(node, int8)
            name = path.rpartition(".")[0] or path
            self._found.append(
                FileOperator(kind, form, name, tuple(sorted(makers)), depth, int8, branch)
            )
            makers, sizes, path = {len(self._found) - 1}, set(), ""
        elif kind in _SIZES:
            makers, sizes = set(), makers | sizes
        for value in outputs:
            self._known[value.debugName()] = _Known(set(makers), set(sizes), int8, path)

    def _flow(self, node: Any, depth: int, branch: Branch | None) -> None:
        """A branch or a loop and what is in it; nothing, if that computes and chooses nothing (a
        check that raises)."""
        loop, number = node.kind() == "prim::Loop", len(self._found)
        self._found.append(FileOperator(node.kind(), "other", "", (), depth, False, branch))
        inputs = [self._of(value) for value in node.inputs()]
        asked, carried = (inputs[:2], inputs[2:]) if loop else (inputs, [])
        results = [_Known(set(k.makers), set(k.sizes), k.int8, k.path) for k in carried]
        results = results or [_Known() for _ in node.outputs()]
        for i, block in enumerate(node.blocks()):
            for inner, outer in zip(list(block.inputs())[1:], carried, strict=False):
                self._known[inner.debugName()] = outer
            self._block(block, depth + 1, "loop" if loop else ("then", "else")[i])
            ends = [self._of(value) for value in block.outputs()]
            asked += ends[:1] if loop else []
            for result, end in zip(results, ends[1:] if loop else ends, strict=True):
                result.makers |= end.makers
                result.sizes |= end.sizes
                result.int8 = result.int8 or end.int8
        reads = {maker for known in asked for maker in known.makers | known.sizes}
        tensors = [_holds_tensors(value) for value in node.outputs()]
        empty = len(self._found) == number + 1 and not any(tensors)
        if empty:
            del self._found[number]
        else:
            reads |= {maker for result in results for maker in result.makers}
            int8 = any(result.int8 for result in results)
            outside = tuple(sorted(maker for maker in reads if maker < number))
            row = replace(self._found[number], reads=outside, returns_int8=int8)
            self._found[number] = row
        for value, result in zip(node.outputs(), results, strict=True):
            if empty:
                result.makers |= {m for known in asked for m in known.makers}
            else:
                result.makers = {number, *(m for m in result.makers if m > number)}
            self._known[value.debugName()] = result


def _form(node: Any, reads_int8: bool) -> tuple[Form, bool]:
    """How a node computes, and whether its result is int8."""
    kind = node.kind()
    if kind in QUANTIZE or kind == DEQUANTIZE:
        return "boundary", kind != DEQUANTIZE
    if kind == "aten::to" and reads_int8 and _argument(node, "dtype") in _FLOAT_TYPES:
        return "boundary", False
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
