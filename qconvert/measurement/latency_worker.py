"""The process that `latency.measure` starts: a job as JSON on stdin, timings as JSON on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert import torchscript

Model = Callable[..., Any]
Inputs = tuple[Tensor, ...]
_WARM_UP_CALLS = 3
_FEWEST_ROUNDS = 11
# A float form that is slower than the fastest by this factor after so many rounds is out.
_FEWEST_TO_DROP = 3
_FEWEST_TO_CHOOSE = 5
_SLOW = 1.3
# To fill its caches costs such a call nothing that could be seen.
_LONG_S = 0.05
# The share of the time that chooses the fastest float form.
_CHOOSING = 0.35


def main() -> None:
    """Reads the job, measures each batch size, prints the rows."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    examples: list[Inputs] = torch.load(job["inputs"], weights_only=True)
    float_forms, failed = _float_forms(Path(job["float"]), examples[0])
    others: dict[str, Model] = {
        name: torchscript.load(Path(path)) for name, path in job["files"].items()
    }
    with torch.inference_mode():
        rows = [
            _measure(float_forms, others, [_repeated(x, batch) for x in examples], job["seconds"])
            for batch in job["batch_sizes"]
        ]
    print(json.dumps([{**row, "failed_forms": failed} for row in rows]))


def _repeated(example: Inputs, count: int) -> Inputs:
    return tuple(x.repeat(count, *[1] * (x.dim() - 1)) for x in example)


def _float_forms(path: Path, example: Inputs) -> tuple[dict[str, Model], dict[str, str]]:
    """The float model as traced, frozen and optimized, in both memory layouts; and, by name, why
    a form does not run (a `view` of channels-last memory, say)."""
    forms: dict[str, Model] = {}
    failed: dict[str, str] = {}
    for name, prepare in (
        ("traced", lambda module: module),
        ("frozen", torchscript.freeze),
        ("optimize_for_inference", torchscript.optimize_for_inference),
    ):
        for layout in ("", ", channels last"):
            try:
                form = _form(path, prepare, bool(layout))
                with torch.inference_mode():
                    for _ in range(3):  # the second call is the first that is optimized
                        form(*example)
            except Exception as error:
                failed[name + layout] = str(error).strip().splitlines()[-1]
            else:
                forms[name + layout] = form
    if not forms:
        raise RuntimeError(f"float runs in no form: {failed}")
    return forms, failed


def _form(path: Path, prepare: Callable[[Any], Any], channels_last: bool) -> Model:
    module = torchscript.load(path)
    if not channels_last:
        return prepare(module)
    return _channels_last(prepare(module.to(memory_format=torch.channels_last)))


def _channels_last(model: Model) -> Model:
    def run(*inputs: Tensor) -> Any:
        last = torch.channels_last
        return model(*(x.contiguous(memory_format=last) if x.dim() == 4 else x for x in inputs))

    return run


def _measure(
    float_forms: dict[str, Model],
    others: dict[str, Model],
    inputs: Sequence[Inputs],
    seconds: float,
) -> dict:
    medians = _medians(float_forms, inputs, 0.0, _FEWEST_TO_DROP)
    hopeful = {n: f for n, f in float_forms.items() if medians[n] < _SLOW * min(medians.values())}
    medians |= _medians(hopeful, inputs, seconds * _CHOOSING, _FEWEST_TO_CHOOSE)
    fastest = min(medians, key=lambda name: medians[name])
    models = {"float": float_forms[fastest], **others}
    return {
        "batch_size": len(inputs[0][0]),
        "shapes": [list(x[0].shape) for x in inputs],
        "float_forms_s": medians,
        "forms": {"float": fastest, **dict.fromkeys(others, "as saved")},
        "calls_s": _rounds(models, inputs, seconds * (1 - _CHOOSING), _FEWEST_ROUNDS),
    }


def _round(model: Model, inputs: Sequence[Inputs]) -> float:
    """Seconds of a call, the mean over the inputs."""
    start = time.perf_counter()
    for given in inputs:
        model(*given)
    return (time.perf_counter() - start) / len(inputs)


def _medians(
    models: dict[str, Model], inputs: Sequence[Inputs], seconds: float, fewest: int
) -> dict[str, float]:
    tried = _rounds(models, inputs, seconds, fewest)
    return {name: sorted(calls)[len(calls) // 2] for name, calls in tried.items()}


def _rounds(
    models: dict[str, Model], inputs: Sequence[Inputs], seconds: float, fewest: int
) -> dict[str, list[float]]:
    """Seconds of each call; the models take turns, and the order turns round every time."""
    warm = {n: [_round(m, inputs) for _ in range(_WARM_UP_CALLS)] for n, m in models.items()}
    slow = {name: rounds[-1] > _LONG_S for name, rounds in warm.items()}
    calls: dict[str, list[float]] = {name: [] for name in models}
    order = list(models)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(calls[order[0]]) < fewest:
        order.reverse()
        for name in order:
            if not slow[name]:
                # The call before a timed one is the same model's: caches are its own.
                _round(models[name], inputs)
            calls[name].append(_round(models[name], inputs))
    return calls


if __name__ == "__main__":
    main()
