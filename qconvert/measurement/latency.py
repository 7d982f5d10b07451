"""Latency of TorchScript files, side by side, each thread count in a process of its own.

The float model is measured in every form that PyTorch offers, and the fastest is what int8 is
compared with. The forms take turns, round by round, so that a slower spell of the machine hits
all of them, and ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qconvert.errors import TimingError
from qconvert.images.preprocess import Inputs
from qconvert.images.stream import cores
from qconvert.measurement.handover import write_tensors
from qconvert.measurement.statistics import Interval, median
from qconvert.records import Record

# Large activations make glibc give memory back and fault it in again at every call, which slows
# float more than int8: a speed-up measured without these flatters int8.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "4294967296", "MALLOC_MMAP_THRESHOLD_": "4294967296"}
_SETTINGS = ("OMP_", "MKL_", "KMP_", "ONEDNN_", "FBGEMM_", "ATEN_CPU", "OPENBLAS_")
# The middle half of the calls wider than this share of the median is not steady.
_STEADY = 0.25


class Timing(Record):
    """Calls of one model at one batch size and thread count, in seconds a call; where inputs differ
    in size, `calls` counts the rounds over all sizes, and the seconds are a round's mean.
    `percentiles_s` are the distribution: the fastest call, each hundredth of them, the slowest."""

    model: str
    form: str
    calls: int
    median_s: Interval
    p90_s: float
    p99_s: float
    middle_half_s: tuple[float, float]
    images_per_s: float
    percentiles_s: tuple[float, ...] = ()


class Latency(Record):
    """Float beside other models at one batch size and thread count.

    `shapes` are those of the first input in each call of a round. `float_forms_s` has the median
    seconds of every form that float was tried in, `failed_forms` why others do not run; `baseline`
    is the fastest, measured again beside the others. `speedups` are float over the model, by model.
    """

    batch_size: int
    threads: int
    shapes: tuple[tuple[int, ...], ...]
    baseline: Timing
    models: dict[str, Timing]
    speedups: dict[str, Interval]
    float_forms_s: dict[str, float]
    failed_forms: dict[str, str]
    unsteady: tuple[str, ...]


def measure(
    float_file: Path,
    files: Mapping[str, Path],
    examples: Sequence[Inputs],
    *,
    batch_sizes: Sequence[int],
    threads: Sequence[int],
    seconds: float,
    limits: Mapping[str, str] | None = None,
) -> list[Latency]:
    """Measures TorchScript files against `float_file`, `seconds` for each setting.

    `examples` are the inputs of one image each; where they differ in size, a round calls a model
    with each of them in turn, as lines of text or photographs come. A batch is of one size: it
    repeats the image. `limits` are variables of the environment that limit the instruction sets
    of all (see `cpu_classes`).

    Raises TimingError when a file does not run.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.pt")
        write_tensors(inputs, [tuple(example) for example in examples])
        for count in dict.fromkeys(threads):
            job = {
                "float": str(float_file),
                "files": {name: str(path) for name, path in files.items()},
                "inputs": str(inputs),
                "batch_sizes": list(batch_sizes),
                "threads": count,
                "seconds": seconds,
            }
            for row in _run(job, count, limits or {}):
                results.append(_latency(row, count))
    return results


def thread_counts(asked: Sequence[int | str]) -> list[int]:
    """Numbers of threads without repeats; `all` is every core that this process may use."""
    return list(dict.fromkeys(cores() if count == "all" else int(count) for count in asked))


def _run(job: dict[str, object], threads: int, limits: Mapping[str, str]) -> list[dict]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
    environment |= ALLOCATOR | {"OMP_NUM_THREADS": str(threads), **limits}
    result = subprocess.run(
        # -P: a file of the working folder must not stand in for a module.
        [sys.executable, "-P", "-m", "qconvert.measurement.latency_worker"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise TimingError(
            f"the models do not run side by side: {lines[-1] if lines else 'the process died'}",
            where="benchmark",
        )
    rows: list[dict] = json.loads(result.stdout.splitlines()[-1])
    return rows


def _latency(row: dict, threads: int) -> Latency:
    batch = row["batch_size"]
    float_s = np.array(row["calls_s"]["float"])
    timings = {
        name: _timing(name, row["forms"][name], np.array(calls), batch)
        for name, calls in row["calls_s"].items()
    }
    speedups = {
        name: median(float_s / np.array(calls))
        for name, calls in row["calls_s"].items()
        if name != "float"
    }
    unsteady = tuple(
        name
        for name, t in timings.items()
        if t.middle_half_s[1] - t.middle_half_s[0] > _STEADY * t.median_s.value
    )
    return Latency(
        batch_size=batch,
        threads=threads,
        shapes=row["shapes"],
        baseline=timings.pop("float"),
        models=timings,
        speedups=speedups,
        float_forms_s=row["float_forms_s"],
        failed_forms=row["failed_forms"],
        unsteady=unsteady,
    )


def _timing(name: str, form: str, calls_s: np.ndarray, batch: int) -> Timing:
    percentiles = np.percentile(calls_s, range(101))
    p25, p75, p90, p99 = percentiles[[25, 75, 90, 99]]
    middle = median(calls_s)
    return Timing(
        model=name,
        form=form,
        calls=len(calls_s),
        median_s=middle,
        p90_s=float(p90),
        p99_s=float(p99),
        middle_half_s=(float(p25), float(p75)),
        images_per_s=batch / middle.value,
        # Nanoseconds are what the clock tells.
        percentiles_s=tuple(percentiles.round(9).tolist()),
    )
