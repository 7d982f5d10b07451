"""The process that `limited.LimitedProcess` starts: runs TorchScript modules as it is told.

Requests and answers are what torch.save writes, each after its length in 8 bytes. A request is
`{"file": bytes}`, which loads a module, or `{"number": ..., "inputs": tuple}`, which runs the
module that was loaded so many loads after the first. It is answered with `{"result": ...}`, or with
`{"error": text}` where the module raises.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import IO, Any

import torch

from qconvert.measurement.handover import read_message, write_message


def main() -> None:
    """Answers until stdin ends. The command line names packages to import first."""
    for package in sys.argv[1:]:
        importlib.import_module(package)
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _serve(sys.stdin.buffer, answers)


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    modules: list[Any] = []
    while (request := read_message(requests)) is not None:
        try:
            if "file" in request:
                file = io.BytesIO(request["file"])
                modules.append(torch.jit.load(file, map_location="cpu"))
                answer: dict[str, Any] = {"result": None}
            else:
                with torch.inference_mode():
                    answer = {"result": _plain(modules[request["number"]](*request["inputs"]))}
        except (RuntimeError, torch.jit.Error) as error:
            answer = {"error": str(error).strip().splitlines()[-1]}
        write_message(answers, answer)


def _plain(value: Any) -> Any:
    """Named tuples as tuples, which torch.load reads without running code."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    return value


if __name__ == "__main__":
    main()
