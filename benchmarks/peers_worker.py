"""One runtime with one model, in a process of its own, which the driver lets run turn by turn.

    peers_worker.py RUNTIME FILE EXAMPLES.npz BATCH THREADS

RUNTIME is `torch`, `torch-float` (the fastest of its forms), `onnxruntime` or `openvino`. Reads
commands from stdin: a number of seconds to run for, answered by the seconds of each call as JSON;
or a file, into which the outputs for each example are written. Imports nothing of the project,
since the peers' environment does not have it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Sequence[Any]]
_WARM_UP_CALLS = 5
_FEWEST_CALLS = 3
# About so long each float form is looked at, to find the fastest.
_LOOK_S = 0.5


def torch_file(path: str, threads: int) -> tuple[Callable[[Any], Any], Run]:
    """A TorchScript file as it is."""
    import torch

    torch.set_num_threads(threads)
    return _of_torch(torch.jit.load(path))


def _of_torch(model: Any) -> tuple[Callable[[Any], Any], Run]:
    import torch

    def prepared(x: np.ndarray) -> Any:
        return torch.from_numpy(x)

    def run(x: Any) -> Sequence[Any]:
        with torch.inference_mode():
            return (model(x),)

    return prepared, run


def torch_float(path: str, threads: int) -> tuple[Callable[[Any], Any], Run]:
    """The fastest float form that PyTorch has for the model, found by the first example."""
    import torch

    torch.set_num_threads(threads)

    def last(model: Any) -> Any:
        return lambda x: model(x.contiguous(memory_format=torch.channels_last))

    forms: list[tuple[float, Any]] = []
    x = torch.from_numpy(_batched(_examples(sys.argv[3])[0], int(sys.argv[4])))
    for prepare in (lambda m: m, torch.jit.freeze, torch.jit.optimize_for_inference):
        for layout in (lambda m: m, last):
            model = torch.jit.load(path)
            if layout is last:
                model = model.to(memory_format=torch.channels_last)
            form = layout(prepare(model.eval()))
            try:
                with torch.inference_mode():
                    for _ in range(3):
                        form(x)
                    seconds: list[float] = []
                    while len(seconds) < 3 or (len(seconds) < 7 and sum(seconds) < _LOOK_S):
                        start = time.perf_counter()
                        form(x)
                        seconds.append(time.perf_counter() - start)
            except RuntimeError:  # a `view` of channels-last memory, say
                continue
            forms.append((sorted(seconds)[len(seconds) // 2], form))
    return _of_torch(min(forms, key=lambda found: found[0])[1])


def onnxruntime_file(path: str, threads: int) -> tuple[Callable[[Any], Any], Run]:
    """An ONNX file under ONNX Runtime, all graph optimizations on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name("batch", int(sys.argv[4]))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return (lambda x: x), (lambda x: session.run(None, {name: x}))


def openvino_file(path: str, threads: int) -> tuple[Callable[[Any], Any], Run]:
    """An OpenVINO model, compiled for the shape of the first example."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
    }  # fmt: skip
    requests: dict[tuple[int, ...], Any] = {}

    def run(x: np.ndarray) -> Sequence[Any]:
        if x.shape not in requests:
            model = core.read_model(path)
            model.reshape(list(x.shape))
            requests[x.shape] = core.compile_model(model, "CPU", settings).create_infer_request()
        found = requests[x.shape].infer([x], share_inputs=True, share_outputs=True)
        return [found[0]]

    return (lambda x: x), run


RUNTIMES = {
    "torch": torch_file,
    "torch-float": torch_float,
    "onnxruntime": onnxruntime_file,
    "openvino": openvino_file,
}


def _examples(path: str) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def _batched(x: np.ndarray, batch: int) -> np.ndarray:
    return np.ascontiguousarray(np.repeat(x, batch, axis=0))


def main() -> None:
    """Loads, says `ready`, obeys."""
    runtime, path, inputs, batch, threads = sys.argv[1:]
    # Results go to the driver; what libraries print must not be among them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    examples = _examples(inputs)
    prepare, run = RUNTIMES[runtime](path, int(threads))
    x = prepare(_batched(examples[0], int(batch)))
    for _ in range(_WARM_UP_CALLS):
        run(x)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command.endswith(".npz"):
            found = [np.array(run(prepare(example))[0], dtype=np.float32) for example in examples]
            np.savez(Path(command), *found)
            print("written", file=answers, flush=True)
            continue
        run(x)  # fills the caches, which another runtime had
        calls: list[float] = []
        end = time.perf_counter() + float(command)
        while len(calls) < _FEWEST_CALLS or time.perf_counter() < end:
            start = time.perf_counter()
            run(x)
            calls.append(time.perf_counter() - start)
        print(json.dumps(calls), file=answers, flush=True)


if __name__ == "__main__":
    main()
