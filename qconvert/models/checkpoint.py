"""Finds the weights in a checkpoint and loads them into a model."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.errors import (
    FACTS_SHOWN,
    CheckpointFileError,
    CheckpointKeysError,
)
from qconvert.models.checkpoint_file import read

# Where training scripts put the weights, in the order in which they are preferred.
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "net", "ema")
# What wrappers put before every key: DataParallel, Lightning and others.
PREFIXES = ("module.", "model.")
# What torch.compile puts before the keys of the model or the part that it has compiled.
COMPILED = "_orig_mod."
# Batch norms count batches since PyTorch 0.4.1; older checkpoints do not, and eval needs no count.
_COUNTER = "num_batches_tracked"
# Left in state_dicts by weight averaging (torch.optim.swa_utils) and by thop; no weights.
_NO_WEIGHTS = ("n_averaged", "total_ops", "total_params", _COUNTER)
# So far down a state_dict is looked for, to name it.
_DEEPEST = 3


def load_checkpoint(module: nn.Module, path: Path, key: str | None) -> tuple[str, ...]:
    """Loads weights strictly: every tensor of the model, and no other. Returns what was decided on
    the way, a sentence each: the part of the file, prefixes, what was ignored, raised dtypes.

    Raises CheckpointFileError or UnsafeCheckpointError when the file cannot be read, and
    CheckpointKeysError that lists all missing, unexpected and wrongly shaped keys.
    """
    model = module.state_dict()
    notes: list[str] = []
    found = _state_dict(read(path), key, path, notes)
    state = _named_as(model, found, notes)
    facts = _differences(model, state)
    if facts:
        raise CheckpointKeysError(facts, where=str(path))
    other = {v.dtype for v in state.values() if v.is_floating_point()} - {torch.float32}
    if other:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other))
        verb = "rounded" if torch.float64 in other else "raised"
        notes.append(f"{names} weights are {verb} to float32")
    if nan := [k for k, v in state.items() if _not_finite(v)]:
        notes.append(f"there is NaN or infinity in {_some(nan)}")
    ordered = OrderedDict(state)
    # The versions of the modules' formats, by which torchvision tells old checkpoints.
    ordered._metadata = getattr(  # type: ignore[attr-defined]
        found, "_metadata", getattr(model, "_metadata", {})
    )
    # In float32 first: a model built in half precision would keep the checkpoint's loss.
    module.float()
    try:
        # Only counters may be missing, those of batch norms (see `_differences`).
        module.load_state_dict(ordered, strict=False)
    except (RuntimeError, ValueError) as error:
        raise CheckpointKeysError(f"the model refuses it: {error}", where=str(path)) from error
    return tuple(notes)


def _state_dict(
    content: Any, key: str | None, path: Path, notes: list[str]
) -> Mapping[str, Tensor]:
    """The mapping of names to tensors: at `key`, or the whole, or under a usual name."""
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no keys"
                raise CheckpointFileError(
                    f"has no {key!r}; it has {keys[:200]}",
                    where=str(path),
                    fix="correct `model.checkpoint_key`",
                )
            content = content[part]
        if tensors := _tensors(content):
            return tensors
        raise CheckpointFileError(
            f"{key!r} holds no state_dict (a mapping of names to tensors)",
            where=str(path),
            fix="correct `model.checkpoint_key`",
        )
    nested = content if isinstance(content, Mapping) else {}
    parts = [name for name in NESTED_UNDER if _tensors(nested.get(name))]
    if parts:
        others = [str(name) for name in nested if name != parts[0]]
        also = f", not {' or '.join(map(repr, parts[1:]))}" if parts[1:] else ""
        ignored = f"; ignored: {', '.join(others)[:200]}" if others else ""
        notes.append(f"the weights are those in {parts[0]!r}{also} (model.checkpoint_key){ignored}")
        return _tensors(nested[parts[0]])
    if tensors := _tensors(content):
        others = [str(name) for name in nested if name not in tensors]
        if others:
            notes.append(f"ignored, for they are no tensors: {', '.join(others)[:200]}")
        return tensors
    keys = f"; it has the keys {', '.join(map(str, nested))[:200]}" if nested else ""
    raise CheckpointFileError(
        f"holds no state_dict (a mapping of names to tensors){keys}",
        where=str(path),
        fix=_name_the_part(nested) if nested else None,
    )


def _name_the_part(content: Mapping[Any, Any]) -> str:
    """The fix for weights under an unusual name; with that name, if there is one below."""
    found: list[str] = []

    def look(part: Any, keys: tuple[str, ...]) -> None:
        if keys and _tensors(part):
            found.append(".".join(keys))
        elif isinstance(part, Mapping) and len(keys) < _DEEPEST:
            for key, item in part.items():
                look(item, (*keys, str(key)))

    look(content, ())
    named = f", as {' or '.join(map(repr, found[:3]))}" if found else ""
    return f"name the part that holds it with `model.checkpoint_key`{named}"


def _tensors(content: Any) -> Mapping[str, Tensor]:
    """The tensors of a mapping by name; empty when it is no state_dict."""
    if not isinstance(content, Mapping):
        return {}
    found = OrderedDict(
        (k, v) for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)
    )
    # Beside the tensors of a state_dict there may be extra state, but not mostly so.
    if not found or 2 * len(found) < len(content):
        return {}
    if hasattr(content, "_metadata"):
        found._metadata = content._metadata  # type: ignore[attr-defined]
    return found


def _named_as(
    model: Mapping[str, Tensor], state: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """The weights under the model's own names: without the prefixes of wrappers, if with them gone
    more names are the model's; and without what is no weight."""
    if any(COMPILED in name for name in state) and not any(COMPILED in name for name in model):
        notes.append(f"{COMPILED!r} is dropped from its names")
        state = {name.replace(COMPILED, ""): value for name, value in state.items()}

    def named_without(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}

    prefix = max(_prefixes(state), key=lambda p: (len(named_without(p).keys() & model), -len(p)))
    named = named_without(prefix)
    if prefix:
        notes.append(f"the prefix {prefix!r} of its names is dropped")
        outside = [name for name in state if not name.startswith(prefix)]
        if outside:
            notes.append(f"ignored, for they are outside {prefix!r}: {_some(outside)}")
    extra = [n for n in named if n not in model and n.rpartition(".")[2] in _NO_WEIGHTS]
    if any(not name.endswith(_COUNTER) for name in extra):
        notes.append(f"ignored, for they are no weights: {_some(extra)}")
    return {name: value for name, value in named.items() if name not in extra}


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Every chain of known prefixes that some names begin with."""
    found = [""]
    for before in found:
        found += [
            before + p for p in PREFIXES if any(name.startswith(before + p) for name in state)
        ]
    return found


def _not_finite(value: Tensor) -> bool:
    # As float32: torch looks for no NaN in 8 bits.
    return value.is_floating_point() and not bool(value.float().isfinite().all())


def _kind(value: Tensor) -> str:
    """`float` for what can be copied into a weight without loss, or else what it is."""
    if value.is_meta or value.is_nested or value.layout is not torch.strided or value.is_quantized:
        return "a tensor without plain values"
    if value.is_complex():
        return "complex"
    return "float" if value.is_floating_point() else "integer"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _differences(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    facts: list[str] = []
    unexpected = sorted(set(state) - set(model))
    missing = [k for k in sorted(set(model) - set(state)) if not k.endswith(_COUNTER)]
    for key in missing:
        facts.append(f"{key} is missing{_nearest(key, unexpected, facts)}")
    for key in unexpected:
        facts.append(f"{key} is not in the model{_nearest(key, missing, facts)}")
    for key in sorted(set(model) & set(state)):
        if (kind := _kind(state[key])) != "float" and model[key].is_floating_point():
            facts.append(f"{key} is {kind}, in the model it is float")
        elif state[key].shape != model[key].shape:
            shapes = list(state[key].shape), list(model[key].shape)
            facts.append(f"{key} has shape {shapes[0]}, the model has {shapes[1]}")
    return facts


def _nearest(key: str, names: list[str], facts: list[str]) -> str:
    """A hint; not for facts that nobody is shown, since the search is slow."""
    if len(facts) >= FACTS_SHOWN:
        return ""
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.7)
    return f" (nearest: {nearest[0]})" if nearest else ""
