"""Puts a divided model together again: its parts as one graph to be worked on, and what was made of
them back into the model, in Python or in TorchScript."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from qconvert import torchscript
from qconvert.errors import UnsupportedError
from qconvert.models.adapter import adapter
from qconvert.models.calls import Call, is_in, sharing
from qconvert.models.division import Kept
from qconvert.models.execution import float_macs_in
from qconvert.models.parts import part_of
from qconvert.models.pixels import known_path
from qconvert.models.tracing import DIFFERS

# Where a captured graph holds its assembly, and a node how often its part is called for one image.
ASSEMBLY, CALLS = "assembly", "calls"
# Where a node holds why it stays as it is written.
AS_WRITTEN = "as written"

Run = Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """A part of the merged graph: its place in the model, how it is called for the example and how
    often, its placeholders in the graph, and the paths of the kept modules that it calls, by their
    targets in the graph."""

    path: str
    call: Call
    calls: int
    placeholders: tuple[str, ...]
    kept: Mapping[str, str]


@dataclass(frozen=True)
class Assembly:
    """What a merged graph is a part of. `model` is the user's model, copied; `sized` are places of
    its code whose answers about sizes are those of the example."""

    model: nn.Module
    parts: tuple[Part, ...]
    example: tuple[Tensor, ...] = ()
    kept: tuple[Kept, ...] = ()
    sized: tuple[str, ...] = ()

    @cached_property
    def kept_macs(self) -> int:
        """Multiply-accumulates of one image in the code that is kept, without those of parts."""
        if self.whole:
            return 0
        counted = {self.model.get_submodule(kept.path): True for kept in self.kept}
        counted |= {self.model.get_submodule(part.path): False for part in self.parts}
        return float_macs_in(self.model, self.example, counted)

    def original_bodies(self) -> list[nn.Module]:
        """The parts as the user wrote them, which take the tensors of their calls."""
        modules = [sharing(self.model.get_submodule(part.path)) for part in self.parts]
        return [
            _Flat(module, part.call).eval()
            for module, part in zip(modules, self.parts, strict=True)
        ]

    def __deepcopy__(self, memo: Any) -> Assembly:
        return self  # nothing in it changes

    @property
    def whole(self) -> bool:
        """Whether the merged graph is the whole model."""
        return not self.kept

    def part_calls(self, inputs: Sequence[Tensor]) -> list[tuple[int, tuple[Tensor, ...], Any]]:
        """What each part reads and returns while the user's model runs: the part's number, the
        tensors of the call, and the result."""
        found: list[tuple[int, tuple[Tensor, ...], Any]] = []
        running: list[tuple[Tensor, ...]] = []

        # Copied: code that runs later may change them in place.
        def before(i: int, module: nn.Module, args: Any, kwargs: Any) -> None:
            call = Call.of(module, args, kwargs).in_order_of(self.parts[i].call)
            running.append(tuple(x.clone() for x in call.tensors))

        def after(i: int, module: nn.Module, args: Any, result: Any) -> None:
            found.append((i, running.pop(), pytree.tree_map_only(Tensor, torch.clone, result)))

        hooks = []
        for i, part in enumerate(self.parts):
            module = self.model.get_submodule(part.path)
            pre, post = partial(before, i), partial(after, i)
            hooks.append(module.register_forward_pre_hook(pre, with_kwargs=True))
            hooks.append(module.register_forward_hook(post))
        try:
            with torch.no_grad():
                self.model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def split(self, graph: GraphModule) -> list[GraphModule]:
        """The parts of the merged graph, or of what was made of it, which share its modules. They
        take the tensors of the part's call, and return what the part does."""
        output = next(n for n in graph.graph.nodes if n.op == "output")
        results = output.args[0] if len(self.parts) > 1 else (output.args[0],)
        return [
            part_of(graph, part.placeholders, result)
            for part, result in zip(self.parts, results, strict=True)
        ]

    def eager(self, graph: GraphModule, run: Callable[[GraphModule], Run] | None = None) -> Run:
        """The model with the parts of a graph, in Python. `run` makes of a part what is called in
        its place."""
        if self.whole:
            return run(graph) if run else graph
        bodies = self.split(graph)

        def called(part: Part, body: GraphModule) -> nn.Module:
            return _Called(
                self.model.get_submodule(part.path), part.call, run(body) if run else body
            )

        put = _Putting(self, bodies, called, lambda shell, path: shell)
        top = put.model()
        return run(top) if run and isinstance(top, GraphModule) else top

    def script(self, graph: GraphModule) -> torch.jit.ScriptModule:
        """The model with the parts of a graph, in TorchScript.

        Raises UnsupportedError with the line of the user's code that TorchScript cannot compile.
        """
        return self._scripted(self.split(graph))

    def original(self) -> torch.jit.ScriptModule:
        """The user's model in TorchScript.

        Raises UnsupportedError as `script` does.
        """
        return self._scripted(self.original_bodies())

    def _scripted(self, bodies: Sequence[nn.Module]) -> torch.jit.ScriptModule:
        def called(part: Part, body: nn.Module) -> nn.Module:
            return adapter(part.call, torchscript.trace(body, part.call.tensors))

        top = _Putting(self, bodies, called, self._compiled).model()
        if self.parts[0].path == "":
            return torchscript.trace(top, self.parts[0].call.tensors)
        return top

    def _compiled(self, shell: nn.Module, path: str) -> torch.jit.ScriptModule:
        kept = next(kept for kept in self.kept if kept.path == path)
        for module in shell.modules():
            # So that TorchScript leaves out what is for training, which may call what parts lack.
            module.__constants__ = [*getattr(module, "__constants__", ()), "training"]  # type: ignore[assignment]
        try:
            return torchscript.script(shell)
        except Exception as error:
            raise UnsupportedError(
                f"{kept.name}: {kept.reason}; and TorchScript cannot compile it: {_reason(error)}",
                where="model.source",
                fix=_fix(kept),
            ) from error


class _Putting:
    """Puts bodies into the places of the parts, from the innermost outwards."""

    def __init__(
        self,
        assembly: Assembly,
        bodies: Sequence[nn.Module],
        called: Callable[[Part, Any], nn.Module],
        finish: Callable[[nn.Module, str], nn.Module],
    ) -> None:
        self._assembly = assembly
        self._bodies = {part.path: body for part, body in zip(assembly.parts, bodies, strict=True)}
        self._parts = {part.path: part for part in assembly.parts}
        self._called = called
        self._finish = finish

    def model(self) -> Any:
        """Of the root: its part, or its code."""
        return self._body(self._parts[""]) if "" in self._parts else self._shell("")

    def _body(self, part: Part) -> nn.Module:
        body = self._bodies[part.path]
        for target, path in part.kept.items():
            shell = self._shell(path)
            if isinstance(body, _Flat):
                target = f"module.{path.removeprefix(part.path).lstrip('.')}"
            body.set_submodule(target, shell)
        return body

    def _shell(self, path: str) -> nn.Module:
        shell = sharing(self._assembly.model.get_submodule(path))
        below = [p for p in self._parts if p != path and is_in(p, path)]
        for inner in below:
            if not any(other != inner and is_in(inner, other) for other in below):
                part = self._parts[inner]
                place = inner.removeprefix(path).lstrip(".")
                shell.set_submodule(place, self._called(part, self._body(part)))
        return self._finish(shell, path)


class _Called(nn.Module):
    """Stands in for a part: is called as its module was, and runs on the call's tensors."""

    def __init__(self, module: nn.Module, call: Call, run: Run) -> None:
        super().__init__()
        self._like = [module]  # in a list: it is no part of this one
        self._call = call
        self.run = run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module."""
        call = Call.of(self._like[0], args, kwargs).in_order_of(self._call)
        if call.form != self._call.form:
            raise RuntimeError(
                f"a part is called with {call.form}, it was made for {self._call.form}"
            )
        return self.run(*call.tensors)


class _Flat(nn.Module):
    """A module that takes the tensors of its call."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        super().__init__()
        self.module = module
        self._call = call

    def forward(self, *tensors: Tensor) -> Any:
        """What the module returns."""
        args, kwargs = self._call.with_tensors(tensors).split()
        return self.module(*args, **kwargs)


def assembly_of(graph: GraphModule) -> Assembly:
    """That of a captured graph; a graph that nobody divided is the whole of itself."""
    found: Assembly | None = graph.meta.get(ASSEMBLY)
    if found is not None:
        return found
    names = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    return Assembly(graph, (Part("", Call(dict.fromkeys(names), len(names)), 1, tuple(names), {}),))


def _fix(kept: Kept) -> str:
    write = "write its code in the part of Python that TorchScript knows"
    if DIFFERS not in kept.reason:
        return write
    path = known_path(kept.path)
    listed = f"[{path}]" if path else "all"
    return (
        f"if its code goes the same way for all images, write `model.fixed: {listed}`; else {write}"
    )


def _reason(error: Exception) -> str:
    """What TorchScript's compiler says, and the line that it says it of."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    place = re.search(r'File "([^"]+)", line (\d+)', str(error))
    first = lines[0].rstrip(":") if lines else type(error).__name__
    return f"{first} ({place[1]}:{place[2]})" if place else first
