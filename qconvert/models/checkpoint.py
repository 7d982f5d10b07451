"""Loads a state_dict into a model, never executing what a checkpoint holds."""

from __future__ import annotations

import difflib
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.errors import ModelError

NESTED_UNDER = ("state_dict",)
PREFIX = "module."
# What torch says when a pickle names a class or function beyond tensors.
_NEEDS_CODE = re.compile(r"Unsupported (global|class)|allowed global|Trying to", re.IGNORECASE)
# Batch norms count batches since PyTorch 0.4.1; older checkpoints do not, and eval needs no count.
_COUNTER = "num_batches_tracked"


def load_checkpoint(module: nn.Module, path: Path, key: str | None) -> None:
    """Loads weights strictly: every tensor of the model, and no other.

    Raises ModelError that lists all missing, unexpected and wrongly shaped keys.
    """
    model = module.state_dict()
    found = _state_dict(_read(path), key, path)
    state = _without_prefix(found, model)
    facts = _differences(model, state)
    if facts:
        raise ModelError(
            facts[:20] + ([f"and {len(facts) - 20} more"] if len(facts) > 20 else []),
            where=str(path),
            fix="give the checkpoint of this model (its `model.kwargs` too), "
            "or name the right part with `model.checkpoint_key`",
        )
    ordered = OrderedDict(state)
    # The versions of the modules' formats, by which torchvision tells old checkpoints.
    ordered._metadata = getattr(  # type: ignore[attr-defined]
        found, "_metadata", getattr(model, "_metadata", {})
    )
    try:
        # Only counters may be missing, those of batch norms (see `_differences`).
        module.load_state_dict(ordered, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the model refuses it: {error}", where=str(path)) from error


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"is not a safetensors file: {error}", where=str(path)) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        if isinstance(error, pickle.UnpicklingError) and _NEEDS_CODE.search(str(error)):
            fact = "holds more than weights: loading it could run code, which qconvert never does"
        else:
            fact = "is no checkpoint that torch.save wrote, or a damaged one"
        raise ModelError(
            fact,
            where=str(path),
            fix="save only the weights: torch.save(model.state_dict(), 'weights.pt')",
        ) from None


def _state_dict(content: Any, key: str | None, path: Path) -> Mapping[str, Tensor]:
    """The mapping of names to tensors: at `key`, or the whole, or under a usual name."""
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                keys = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no keys"
                raise ModelError(
                    f"has no {key!r}; it has {keys[:200]}",
                    where=str(path),
                    fix="correct `model.checkpoint_key`",
                )
            content = content[part]
        candidates = [content]
    else:
        nested = content if isinstance(content, Mapping) else {}
        candidates = [content, *(nested[name] for name in NESTED_UNDER if name in nested)]
    for candidate in candidates:
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items())
        ):
            return candidate
    raise ModelError(
        "holds no state_dict (a mapping of names to tensors)",
        where=str(path),
        fix="name the part that holds it with `model.checkpoint_key`",
    )


def _without_prefix(state: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drops the prefix that DataParallel gives every key, unless the model's own keys have it."""
    prefixed = all(key.startswith(PREFIX) for key in state) and not set(state) & set(model)
    if not prefixed:
        return dict(state)
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def _differences(model: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    facts = []
    unexpected = sorted(set(state) - set(model))
    for key in sorted(set(model) - set(state)):
        if key.endswith(_COUNTER):
            continue
        nearest = difflib.get_close_matches(key, unexpected, n=1, cutoff=0.7)
        facts.append(f"{key} is missing" + (f" (nearest: {nearest[0]})" if nearest else ""))
    facts.extend(f"{key} is not in the model" for key in unexpected)
    for key in sorted(set(model) & set(state)):
        have, want = tuple(state[key].shape), tuple(model[key].shape)
        if have != want:
            facts.append(f"{key} has shape {list(have)}, the model has {list(want)}")
    return facts
