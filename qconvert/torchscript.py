"""The only importer of torch.jit: traces, freezes, saves and loads.

Saved files name no path of the machine that made them, and those of frozen modules are
reproducible: the same module gives the same bytes in any process.
"""

from __future__ import annotations

import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.errors import UnsupportedError

# What torch says of its own future; a user cannot act on it (see docs/architecture.md).
_UPSTREAM_NEWS = (
    r".*torch\.jit\..* is (deprecated|not supported)",
    r".*quantized tensor creation functions.*deprecated",
)


# What a module raises as it runs; kept code has torch's own class, which is no RuntimeError.
RUN_ERRORS: tuple[type[Exception], ...] = (RuntimeError, torch.jit.Error)


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
            if module.training:  # what was compiled for evaluation alone cannot be told again
                module.eval()
            return torch.jit.trace(module, tuple(example), check_trace=False, strict=False)
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


def script(module: nn.Module | Callable[..., Any]) -> Any:
    """Compiles an eval-mode module, or a function, whose code a trace cannot hold."""
    with quiet():
        # What was compiled for evaluation alone cannot be told again.
        if isinstance(module, nn.Module) and module.training:
            module.eval()
        return torch.jit.script(module)


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
        return torch.jit.freeze(module.eval() if module.training else module, preserved_attrs=kept)


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
    """Loads a file on the CPU; `extra` is filled with the text files that it names.

    Packages whose operators it calls (see `needs`) are imported."""

    def loaded() -> torch.jit.ScriptModule:
        stream = io.BytesIO(source) if isinstance(source, bytes) else str(source)
        return torch.jit.load(stream, map_location="cpu", _extra_files=extra)

    with quiet():
        try:
            module = loaded()
        except RuntimeError as error:
            unknown = re.search(r"Unknown builtin op: (\w+)::", str(error))
            if unknown is None or unknown[1] not in _EXTENSIONS:
                raise
            importlib.import_module(unknown[1])
            module = loaded()
    for name, content in (extra or {}).items():
        if extra is not None and isinstance(content, bytes):
            extra[name] = content.decode()
    return module


# Packages that bring operators of their own, which a file names by the package.
_EXTENSIONS = ("torchvision", "torchaudio")


@contextmanager
def unoptimized() -> Iterator[None]:
    """TorchScript runs what is written in a file, also what it would compute once for two."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(before)


def needs(module: torch.jit.ScriptModule) -> tuple[str, ...]:
    """The packages that must be imported before the module's file can be loaded."""
    names = {node.kind().partition("::")[0] for node in _nodes(module.inlined_graph)}
    return tuple(name for name in _EXTENSIONS if name in names)


def _nodes(block: Any) -> Iterator[torch._C.Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


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
