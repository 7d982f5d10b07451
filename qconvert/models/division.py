"""Divides a model into parts that torch.fx can trace and code that stays as it is written.

A part is the largest module whose code does not depend on what is in a tensor. Code that does (a
detection model's choice of boxes) is kept: it stays float, and TorchScript compiles it as it is
written. Below kept code there may be parts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qconvert.errors import QConfigError, UnsupportedError, UntraceableError, did_you_mean
from qconvert.images.preprocess import shapes_of
from qconvert.models.calls import Call, is_in, is_plain, not_tensors, same
from qconvert.models.normal_form import has_layers
from qconvert.models.operators import quantizable
from qconvert.models.pixels import known_path
from qconvert.models.tracing import Stop, Traced, traced

# After so many modules of one class that could not be traced, the others of it are not tried.
_TRIED = 3


@dataclass(frozen=True)
class Kept:
    """A module whose own code stays as it is written, and why, with the line; `path` is empty for
    the model itself."""

    path: str
    reason: str

    @property
    def name(self) -> str:
        """For people."""
        return known_path(self.path) or "the model"


# The inputs of more images, made when they are needed.
Others = Callable[[], Iterable[Sequence[Tensor]]]


@dataclass(frozen=True)
class Piece:
    """A part as it was traced: its place in the model, how it is called for the example and how
    often, its graph, and the paths of kept modules in it."""

    path: str
    call: Call
    calls: int
    graph: GraphModule
    kept: tuple[str, ...] = ()


@dataclass
class Divided:
    """What a model was divided into, in the order in which it was found."""

    pieces: list[Piece] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    sized: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Wishes:
    """What the user says of modules by path: `scripted` ones are kept (None: those that must be),
    `fixed` ones follow the path of the example through their code (None: all do)."""

    scripted: frozenset[str] | None = None
    fixed: frozenset[str] | None = frozenset()


def divide(
    model: nn.Module,
    example: Sequence[Tensor],
    wishes: Wishes,
    others: Others = tuple,
) -> Divided:
    """Finds the parts of a model for the inputs of one image; the graphs share its modules. With
    those of `others`, code that is kept may go where the example does not.

    Raises UntraceableError with the line of the user's code when nothing is left to convert, or
    when a module must be kept that `wishes.scripted` does not list.
    """
    _check_names(model, wishes)
    found = Divided()
    dividing = _Dividing(model, tuple(example), others, wishes, found)
    dividing.look_into("", Call.of(model, example, {}))
    if not found.pieces:
        stop = found.kept[0]
        raise UntraceableError(
            f"{stop.name}: {stop.reason}; and no module below it that can be traced has a "
            "convolution or a linear layer",
            where="model.source",
        )
    _check_wishes(found, wishes)
    dividing.note_what_is_left()
    return found


def _check_names(model: nn.Module, wishes: Wishes) -> None:
    names = [name for name, _ in model.named_modules()]  # the first, empty, is the model itself
    facts = [
        f"model.{key}: the model has no module {known_path(name)!r}"
        + did_you_mean(known_path(name), list(map(known_path, names)))
        for key, listed in (("scripted", wishes.scripted), ("fixed", wishes.fixed))
        for name in sorted(listed or ())
        if name not in names
    ]
    if facts:
        raise QConfigError(facts, where="qconfig")


def _check_wishes(found: Divided, wishes: Wishes) -> None:
    if wishes.scripted is None:
        return
    more = [kept for kept in found.kept if kept.path not in wishes.scripted]
    if more:
        raise UntraceableError(
            [f"{kept.name}: {kept.reason}" for kept in more],
            where="model.source",
            fix='add its name ("" for the model itself) to `model.scripted`, or write `scripted: '
            "auto`, to convert the rest of the model; or make this line independent of what is in "
            "the tensors",
        )


class _Dividing:
    def __init__(
        self,
        model: nn.Module,
        example: tuple[Tensor, ...],
        others: Others,
        wishes: Wishes,
        found: Divided,
    ) -> None:
        self._model = model
        self._example = example
        self._others = others
        self._wishes = wishes
        self._found = found

    def look_into(self, path: str, call: Call, calls: int = 1) -> None:
        """A module as one part, but for what must be kept in it; or if its own code must be, the
        parts below it."""
        module = self._model.get_submodule(path)
        whole = self._listed_below(path)
        stops: dict[str, Stop] = {}
        try:
            if path in (self._wishes.scripted or ()):
                raise _LISTED
            trace = self._traced(module, path, call, whole, stops)
        except Stop as stop:
            self._keep(path, stop)
            return
        self._found.sized |= dict.fromkeys(trace.sized)
        called = {str(n.target) for n in trace.graph.graph.nodes if n.op == "call_module"}
        kept = [inner for inner in sorted(whole) if inner in called]
        if kept and not has_layers(trace.graph, kept):
            self._keep(path, stops.get(kept[0], _LISTED))
            return
        below = tuple(_joined(path, inner) for inner in kept)
        self._found.pieces.append(Piece(path, call, calls, trace.graph, below))
        for inner in kept:
            self._keep(_joined(path, inner), stops.get(inner, _LISTED))

    def _traced(
        self, module: nn.Module, path: str, call: Call, whole: set[str], stops: dict[str, Stop]
    ) -> Traced:
        """Traces again and again, until all that stops the trace is in `whole`.

        Raises Stop when it is the module's own code."""
        while True:
            try:
                return traced(module, call, frozenset(whole), self._fixed_below(path))
            except Stop as stop:
                if stop.path in whole or not stop.path:
                    raise Stop("", stop.reason, stop.place) from stop
                stops[stop.path] = stop
                whole.add(stop.path)
                kind = type(module.get_submodule(stop.path))
                if sum(type(module.get_submodule(p)) is kind for p in stops) >= _TRIED:
                    alike = {n: stop for n, m in module.named_modules() if n and type(m) is kind}
                    stops.update({n: stop for n in alike if n not in stops})
                    whole |= set(alike)

    def _keep(self, path: str, stop: Stop) -> None:
        self._found.kept.append(Kept(path, f"torch.fx cannot trace its code: {stop}"))
        for inner, (call, calls, why_not) in self._calls_below(path).items():
            if not quantizable(self._model.get_submodule(inner)):
                continue
            if why_not is None:
                self.look_into(inner, call, calls)
            else:
                self._keep(inner, Stop("", why_not, ""))

    def note_what_is_left(self) -> None:
        """Layers in kept code that no image that was tried reaches: they are no part."""
        parts = {piece.path for piece in self._found.pieces}
        known = {kept.path for kept in self._found.kept}
        for path in sorted(known):
            for name, layer in self._model.get_submodule(path).named_modules():
                inner = _joined(path, name)
                if inner in known or not quantizable(layer) or next(layer.children(), None):
                    continue
                owners = [o for o in parts | known if inner == o or is_in(inner, o)]
                if max(owners, key=len) not in parts:
                    known.add(inner)
                    reason = "the kept code calls it for none of the images that were tried"
                    self._found.kept.append(Kept(inner, reason))

    def _calls_below(self, path: str) -> dict[str, tuple[Call, int, str | None]]:
        """The first call that the code at `path` makes of each module, how often it calls it for
        the example; and why the module cannot be called from TorchScript in one way, for any number
        of images (None: it can)."""
        try:
            once = _recorded(self._model, path, self._example)
        except Exception as error:
            raise UnsupportedError(
                f"the model fails on inputs of shape {shapes_of(self._example)}: {error}",
                where="model.source",
                fix="let `data.preprocess` make images as the model wants them",
            ) from error
        runs = [once]
        for other in self._others() if self._uncalled(path, runs) else ():
            if not self._uncalled(path, runs):
                break
            runs.append(_recorded(self._model, path, other))
        with suppress(Exception):  # a model may read one image only
            runs.append(_recorded(self._model, path, [torch.cat([x, x]) for x in self._example]))
        found: dict[str, list[_Recorded]] = {}
        for run in runs:
            for inner, calls in run.items():
                found.setdefault(inner, []).extend(calls)
        return {
            inner: (calls[0][0], len(once.get(inner, ())), _why_not(calls))
            for inner, calls in found.items()
        }

    def _uncalled(self, path: str, runs: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a layer below `path` is in no module that was called."""
        called = {inner for run in runs for inner in run}
        return any(
            not next(layer.children(), None)
            and quantizable(layer)
            and not any(_joined(path, name) == c or is_in(_joined(path, name), c) for c in called)
            for name, layer in self._model.get_submodule(path).named_modules()
        )

    def _listed_below(self, path: str) -> set[str]:
        return set(_below(path, self._wishes.scripted or ()))

    def _fixed_below(self, path: str) -> frozenset[str] | None:
        """Of the modules whose code follows the example, those in this one; the empty path if this
        is in one of them."""
        fixed = self._wishes.fixed
        if fixed is None:
            return None
        if any(path == f or is_in(path, f) for f in fixed):
            return None
        return frozenset(_below(path, fixed))


# A call, its result, and whether it changed what it was given.
_Recorded = tuple[Call, Any, bool]
_LISTED = Stop("", "listed in model.scripted", "")


def _why_not(calls: Sequence[_Recorded]) -> str | None:
    """Why a module that is called so, for one image and for two, cannot be called as a part."""
    for call, result, changed in calls:
        if changed:
            return "it changes what it is given in place"
        if strange := [type(v).__name__ for v in call.named.values() if not is_plain(v)]:
            return f"it is given {strange[0]}, which is not made of tensors"
        if strange := not_tensors(result):  # a trace holds nothing else
            return f"it returns {strange[0]}, which is not made of tensors"
    if len({call.form for call, *_ in calls}) > 1:
        return "it is called with other arguments for other images, or for two than for one"
    return None


def _recorded(model: nn.Module, path: str, example: Sequence[Tensor]) -> dict[str, list[_Recorded]]:
    """The calls that the code at `path` makes, by the path of what it calls, with their results."""
    found: dict[str, list[_Recorded]] = {}
    running: list[tuple[Call, Call] | None] = []

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        calls = None
        if not running:
            # Copied: what runs later may change them in place.
            call = Call.of(module, args, kwargs)
            calls = call, call.with_tensors([x.clone() for x in call.tensors])
        running.append(calls)

    def after(name: str, module: nn.Module, args: Any, result: Any) -> None:
        calls = running.pop()
        if calls is not None:
            given, copy = calls
            changed = not all(map(same, given.tensors, copy.tensors))
            found.setdefault(name, []).append((copy, result, changed))

    owner = model.get_submodule(path)
    hooks = []
    for name, module in owner.named_modules():
        if name:
            joined = _joined(path, name)
            pre, post = partial(before, joined), partial(after, joined)
            hooks.append(module.register_forward_pre_hook(pre, with_kwargs=True))
            hooks.append(module.register_forward_hook(post))
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _below(path: str, names: Sequence[str] | frozenset[str]) -> list[str]:
    """Those of the names that are below a path, from there."""
    if not path:
        return [name for name in names if name]
    return [name.removeprefix(f"{path}.") for name in names if name.startswith(f"{path}.")]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
