"""Run as a script, in a process of its own: what a user's process does with a file, and no more.

    python reload.py MODEL INPUTS OUTPUTS

Loads a TorchScript file with plain `torch.jit.load`, runs it on each tensor of INPUTS (a list
saved by torch.save) and writes the list of results to OUTPUTS. Imports nothing of qconvert, sets
nothing.
"""

import sys

import torch


def main() -> None:
    """Loads, runs, saves."""
    model_path, inputs_path, outputs_path = sys.argv[1:]
    model = torch.jit.load(model_path)
    inputs = torch.load(inputs_path, weights_only=True)
    with torch.inference_mode():
        torch.save([model(x) for x in inputs], outputs_path)


if __name__ == "__main__":
    main()
