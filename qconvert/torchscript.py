"""The only importer of torch.jit: traces, freezes, saves and loads.

Saved files name no path of the machine that made them, and those of frozen modules are
reproducible: the same module gives the same bytes in any process.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qconvert.errors import UnsupportedError

# What torch says of its own future; a user cannot act on it (see docs/architecture.md).
_UPSTREAM_NEWS = (
    r".*torch\.jit\..* is (deprecated|not supported)",
    r".*quantized tensor creation functions.*deprecated",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides torch's announcements about TorchScript and the quantized dtypes, nothing else."""
    with warnings.catch_warnings():
        for message in _UPSTREAM_NEWS:
            warnings.filterwarnings("ignore", message)
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        yield


def _say_it_once() -> None:
    # The C++ side says this once a process, wherever it is first met; let it be here, unheard.
    with quiet():
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


_say_it_once()


def trace(module: nn.Module, example: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """Traces an eval-mode module with example inputs; parameters need no gradient after.

    Raises UnsupportedError when TorchScript cannot return what the module does.
    """
    with quiet(), torch.no_grad():
        try:
            # Not strict: a model may return a dict or a list.
            return torch.jit.trace(module.eval(), tuple(example), check_trace=False, strict=False)
        except RuntimeError as error:
            # Without the values of all tensors, which torch prints.
            reason = re.sub(r" \(.*\) (?=of traced region)", " ", str(error), flags=re.DOTALL)
            reason = re.sub(r"^(\D*? type of) (\w*).*\n:", r"\1 \2: ", reason, flags=re.DOTALL)
            raise UnsupportedError(
                f"TorchScript cannot hold the model: {reason.strip().splitlines()[0]}",
                where="model.source",
                fix="name a callable that wraps the model and returns a tensor, a tuple of tensors "
                "or a dict of tensors by name",
            ) from error


def script(module: nn.Module) -> torch.jit.ScriptModule:
    """Compiles an eval-mode module whose code a trace cannot hold."""
    with quiet():
        return torch.jit.script(module.eval())


def freeze(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Inlines submodules and parameters; folds batch norms of a float module.

    Modules that make their state when they are loaded keep it, as torch cannot save it otherwise.
    """
    kept = [
        name
        for name, part in module.named_modules()
        if name and part._c._has_method("__setstate__")
    ]
    with quiet(), torch.no_grad():
        return torch.jit.freeze(module.eval(), preserved_attrs=kept)


def optimize_for_inference(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The float form that PyTorch recommends: frozen, with oneDNN's operators."""
    with quiet(), torch.no_grad():
        return torch.jit.optimize_for_inference(module.eval())


def to_bytes(module: torch.jit.ScriptModule, extra: Mapping[str, str] | None = None) -> bytes:
    """Serializes a module with extra text files; reproducibly, if it is frozen."""
    with quiet():
        buffer = io.BytesIO()
        torch.jit.save(module, buffer, _extra_files=dict(extra or {}))
    return _canonical(buffer.getvalue())


def load(source: Path | bytes, extra: dict[str, str] | None = None) -> torch.jit.ScriptModule:
    """Loads a file on the CPU; `extra` is filled with the text files that it names."""
    with quiet():
        stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        module = torch.jit.load(stream, map_location="cpu", _extra_files=extra)
    for name, content in (extra or {}).items():
        if extra is not None and isinstance(content, bytes):
            extra[name] = content.decode()
    return module


def _canonical(archive: bytes) -> bytes:
    """Rewrites a TorchScript archive without what depends on the process that made it.

    Left out: the debug records, which hold the paths and line numbers of this machine. Renamed:
    the `___torch_mangle_N` modules, whose N counts the classes that the process has compiled
    before. The writer is torch's own, which keeps the alignment of tensors.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    records = reader.get_all_records()
    code = "\n".join(
        reader.get_record(name).decode(errors="replace")
        for name in records
        if name.endswith((".py", "data.pkl"))
    )
    names: dict[str, str] = {}
    for mangled in re.findall(r"___torch_mangle_\d+", "\n".join(records) + code):
        names.setdefault(mangled, f"___torch_mangle_{len(names)}")

    def renamed(text: bytes) -> bytes:
        return re.sub(rb"___torch_mangle_\d+", lambda m: names[m[0].decode()].encode(), text)

    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name in records:
        if name.endswith(".debug_pkl") or name in _WRITERS_OWN:
            continue
        content = reader.get_record(name)
        if name.startswith("code/") or name == "data.pkl":
            # In a pickle these names end at a line break: their length may change.
            content = renamed(content)
        writer.write_record(renamed(name.encode()).decode(), content, len(content))
    writer.write_end_of_file()
    return buffer.getvalue()


# Written by the writer itself at the end of the file.
_WRITERS_OWN = frozenset({"version", "byteorder", ".data/serialization_id"})


@dataclass(frozen=True)
class Executed:
    """A node of a graph with the tensors that it read, by position, and its (first) result."""

    node: torch._C.Node
    inputs: dict[int, Tensor]
    output: Tensor


def graph_values(module: torch.jit.ScriptModule, example: Sequence[Tensor]) -> list[Executed]:
    """Runs a frozen module and returns its nodes that compute tensors, in the order of the graph.

    The nodes are those of the saved graph; the values are read by running a copy of the graph that
    returns them, so all are in memory together.
    """
    graph = module.graph.copy()
    nodes = [
        node
        for node in graph.nodes()
        if not node.kind().startswith("prim::") and _is_tensor(node.outputsAt(0))
    ]
    positions = [[i for i, v in enumerate(node.inputs()) if _is_tensor(v)] for node in nodes]
    wanted = []
    for node, read in zip(nodes, positions, strict=True):
        wanted += [node.outputsAt(0), *(node.inputsAt(i) for i in read)]
    collect = graph.create("prim::ListConstruct", wanted, 1)
    collect.output().setType(torch._C.ListType.ofTensors())
    graph.appendNode(collect)
    graph.eraseOutput(0)
    graph.registerOutput(collect.output())
    function = torch._C._create_function_from_graph("values", graph)
    with torch.inference_mode():
        values = iter(function(module._c, *example))
    return [
        Executed(node, output=next(values), inputs={i: next(values) for i in read})
        for node, read in zip(nodes, positions, strict=True)
    ]


def _is_tensor(value: torch._C.Value) -> bool:
    return value.type().kind() == "TensorType"
