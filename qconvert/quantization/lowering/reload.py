"""Run as a script, in a process of its own: what a user's process does with a file, and no more.

    python reload.py MODEL INPUTS OUTPUTS [PACKAGE ...]

Imports the packages that the file needs, loads a TorchScript file with plain `torch.jit.load`, runs
it on each tuple of INPUTS (a list saved by torch.save) and writes the list of results to OUTPUTS,
or in the place of a result what the model raised, as text. Imports nothing of qconvert, sets
nothing.
"""

import importlib
import sys
from typing import Any

import torch


def plain(value: Any) -> Any:
    """Named tuples as tuples, which torch.load reads without running code."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(plain(item) for item in value)
    return value


def attempt(model: Any, inputs: tuple[torch.Tensor, ...]) -> Any:
    """The result, or the last line of what was raised."""
    try:
        return plain(model(*inputs))
    except (RuntimeError, torch.jit.Error) as error:
        return str(error).strip().splitlines()[-1]


def main() -> None:
    """Loads, runs, saves."""
    model_path, inputs_path, outputs_path, *packages = sys.argv[1:]
    for package in packages:
        importlib.import_module(package)
    model = torch.jit.load(model_path)
    inputs = torch.load(inputs_path, weights_only=True)
    with torch.inference_mode():
        torch.save([attempt(model, x) for x in inputs], outputs_path)


if __name__ == "__main__":
    main()
