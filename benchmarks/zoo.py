"""Converts, reloads and measures torchvision's architectures, and writes a table of them.

    make zoo                                              (close other programs first)
    python benchmarks/zoo.py --only resnet18,densenet121  (a part: printed, not written)

Each model is one run of `qconvert benchmark` in a process of its own, one after another. The exit
code is 1 when a model could not be converted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
import zoo_models as zoo
from PIL import Image

from qconvert.measurement.environment import here

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build/zoo"
# Measuring time of a model; slow ones take longer, because every form has at least 11 rounds.
SECONDS = 6.0
# Conversion is as fast on one thread, and is not slowed when another program has the other core;
# latency is measured in a process that has settings of its own.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A run that has not ended by then is a failure.
LONGEST_S = 600

MIN_SQNR_DB = 8.0
MIN_INT8_SHARE = 0.85
MIN_SPEEDUP_LOW = 0.97
MIN_SPEEDUPS = {"shufflenet_v2_x1_0": 2.0, "lraspp_mobilenet_v3_large": 1.5}

# What a run writes when a step is done.
STEPS = {
    "fuse": "fused.json",
    "calibrate": "calibration.json",
    "convert": "convert.json",
    "measure": "report.json",
}


@dataclass(frozen=True)
class Run:
    """One model: its report, or the first line of what went wrong."""

    name: str
    parameters: int
    seconds: dict[str, float]
    total_s: float
    report: dict[str, Any] | None
    error: str | None

    @property
    def latency(self) -> dict[str, Any]:
        """At batch size 1 on one thread."""
        return self.report["latency"][0]

    @property
    def speedup(self) -> dict[str, float]:
        """The interval of float over int8."""
        return self.latency["speedups"]["int8"]

    @property
    def sqnr(self) -> float:
        """In dB."""
        return self.report["accuracy"]["sqnr_db"]["value"]

    @property
    def int8_share(self) -> float:
        """Of multiply-accumulates, with fixed and dynamic ranges."""
        return self.report["coverage"]["int8_macs_share"]

    @property
    def dynamic_share(self) -> float:
        """The part of `int8_share` whose ranges are found at each call; 0 if there is none."""
        coverage = self.report["coverage"]
        return coverage.get("dynamic_macs", 0) / max(coverage["macs"], 1)


def write_images() -> None:
    """The pictures at each size, those to calibrate with apart from those to judge by."""
    for pixels in sorted({zoo.side(name) for name in zoo.NAMES}):
        for part, indices in (("calibration", zoo.CALIBRATION), ("evaluation", zoo.EVALUATION)):
            folder = BUILD / "images" / str(pixels) / part
            folder.mkdir(parents=True, exist_ok=True)
            for index in indices:
                image = Image.fromarray(zoo.picture(index, pixels))
                image.save(folder / f"{index:02}.png")


def write_qconfig(name: str) -> Path:
    """The qconfig of a model."""
    images = f"images/{zoo.side(name)}"
    model: dict[str, Any] = {
        "source": "../../benchmarks/zoo_models.py:build",
        "kwargs": {"name": name},
    }
    if name in zoo.SEGMENTATION:
        model["output"] = "out"
    content = {
        "version": 1,
        "model": model,
        "data": {
            "calibration": f"{images}/calibration",
            "evaluation": f"{images}/evaluation",
            "labels": "none",
            "preprocess": {"mean": list(zoo.MEAN), "std": list(zoo.STD)},
        },
        "benchmark": {"batch_sizes": [1], "threads": [1], "seconds": SECONDS},
        "output": name,
    }
    path = BUILD / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def run(name: str) -> Run:
    """Runs the command line on a model, from nothing."""
    qconfig, output = write_qconfig(name), BUILD / name
    shutil.rmtree(output, ignore_errors=True)
    command = (sys.executable, "-m", "qconvert", "benchmark")
    options = (str(qconfig.relative_to(ROOT)), "--json", "--quiet")
    start = time.time()
    with subprocess.Popen(
        (*command, *options),
        cwd=ROOT,
        env=os.environ | ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, err = process.communicate()
            err += f"\nno result after {LONGEST_S} s"
    total = time.time() - start
    seconds = step_seconds(output, start)
    report, error = judged(out, err, process.returncode)
    for file in output.glob("f*.pt"):  # the two float files: gigabytes that nobody will read
        file.unlink()
    parameters = sum(p.numel() for p in zoo.skeleton(name).parameters())
    return Run(name, parameters, seconds, total, report, error)


def step_seconds(output: Path, start: float) -> dict[str, float]:
    """Seconds of each step that was finished, from the times of its files."""
    seconds = {}
    for step, file in STEPS.items():
        if (output / file).exists():
            end = (output / file).stat().st_mtime
            seconds[step], start = round(end - start, 1), end
    return seconds


def judged(out: str, err: str, code: int) -> tuple[dict[str, Any] | None, str | None]:
    """The report of a run, or the first line of its error."""
    try:
        result = json.loads(out)
    except json.JSONDecodeError:  # a bug ends with a traceback, and its last line says what it is
        said = (err.strip().splitlines() or ["no result"])[-1]
        return None, f"{said} (exit {code})"
    if "error" in result:
        said = result["error"]["facts"][0].splitlines()[0]
        return None, f"{said} ({result['error']['kind']}, exit {code})"
    return result["report"], None


def interval(value: dict[str, float]) -> str:
    """A speed-up with its 95 % interval."""
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def result_row(r: Run) -> str:
    """A line of the table of results."""
    first = f"| {r.name} | {r.parameters / 1e6:.1f} |"
    if r.report is None:
        return f"{first} failed: {r.error.replace('|', '/')} | | | | | | |"
    float_ms, int8_ms = (
        t["median_s"]["value"] * 1e3 for t in (r.latency["baseline"], r.latency["models"]["int8"])
    )
    share = f"{r.int8_share:.1%}"
    if r.dynamic_share:
        share = f"{r.int8_share - r.dynamic_share:.1%} + {r.dynamic_share:.1%} dynamic"
    return (
        f"{first} {r.sqnr:.1f} | {share} | {r.report['coverage']['boundaries']} | {float_ms:.2f} | "
        f"{int8_ms:.2f} | {interval(r.speedup)} | {r.report['size']['ratio']:.3f} |"
    )


def seconds_row(r: Run) -> str:
    """A line of the table of seconds."""
    steps = " | ".join(f"{r.seconds[step]:.0f}" if step in r.seconds else "" for step in STEPS)
    return f"| {r.name} | {steps} | {r.total_s:.0f} |"


def verdicts(runs: Sequence[Run]) -> list[str]:
    """A line for each bar, with every model that misses it."""
    done = [r for r in runs if r.report is not None]
    failed = [r.name for r in runs if r.report is None]

    def line(
        bar: str, judged: Sequence[Run], found: Callable[[Run], float], least: float, form: str
    ) -> str:
        missed = [f"{r.name} ({form.format(found(r))})" for r in judged if found(r) < least]
        met = f"- {bar}: met by {len(judged) - len(missed)} of {len(judged)}"
        return met + ("." if not missed else f"; missed by {', '.join(missed)}.")

    convolutional = [r for r in done if r.name not in zoo.TRANSFORMERS]
    lines = [
        f"- Converted, reloaded and measured: {len(done)} of {len(runs)}"
        + (f"; failed: {', '.join(failed)}." if failed else "."),
        line(f"SQNR of at least {MIN_SQNR_DB:g} dB", done, lambda r: r.sqnr, MIN_SQNR_DB, "{:.1f}"),
        line(
            f"At least {MIN_INT8_SHARE:.0%} of multiply-accumulates in int8, all but "
            f"{' and '.join(zoo.TRANSFORMERS)}",
            convolutional,
            lambda r: r.int8_share,
            MIN_INT8_SHARE,
            "{:.1%}",
        ),
        line(
            f"Lower bound of the speed-up at least {MIN_SPEEDUP_LOW}",
            done,
            lambda r: r.speedup["low"],
            MIN_SPEEDUP_LOW,
            "{:.2f}",
        ),
    ]
    for name, least in MIN_SPEEDUPS.items():
        if judged := [r for r in done if r.name == name]:
            lines.append(
                line(
                    f"{name} at least {least} times as fast",
                    judged,
                    lambda r: r.speedup["value"],
                    least,
                    "{:.2f}",
                )
            )
    if done:
        mean = math.exp(sum(math.log(r.speedup["value"]) for r in done) / len(done))
        lines.append(f"- Geometric mean of {len(done)} speed-ups: {mean:.2f}.")
    unsteady = [r.name for r in done if r.latency["unsteady"]]
    if unsteady:
        lines.append(
            "- Measured while the machine was busy (calls scatter by more than a quarter): "
            f"{', '.join(unsteady)}."
        )
    return lines


def page(runs: Sequence[Run], command: str) -> str:
    """The whole page."""
    machine = here()
    minutes = sum(r.total_s for r in runs) / 60
    lines = [
        "# The zoo",
        "",
        f"Written by `{command}` on {time.strftime('%Y-%m-%d')}: qconvert {machine.qconvert}, "
        f"torch {machine.torch}, torchvision {version('torchvision')}, Python {machine.python}; "
        f"{machine.cpu}, {machine.cores} cores, {'' if machine.vnni else 'no '}VNNI; 1 thread, "
        "batch size 1.",
        "",
        "torchvision's architectures with random weights (batch norms with the statistics of the "
        "images), 224 x 224 pixels (inception_v3: 299 x 299), 8 drawn images to calibrate with and "
        "4 others to judge by. Speed, size and coverage are those of trained models; SQNR is not. "
        "Float is the fastest of its six forms ([how](figures.md)); in brackets: 95 % intervals.",
        "",
        "| model | parameters (M) | SQNR (dB) | multiply-accumulates in int8 | boundaries "
        "| float (ms) | int8 (ms) | speed-up | file, int8 over float |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *(result_row(r) for r in runs),
        "",
        *verdicts(runs),
        f"- {minutes:.1f} minutes in all.",
        "",
        "## Seconds",
        "",
        f"`measure` is accuracy and latency, {SECONDS:g} s or at least 11 rounds of each form; "
        "`fuse` builds the model first.",
        "",
        f"| model | {' | '.join(STEPS)} | total |",
        f"| --- |{' --- |' * (len(STEPS) + 1)}",
        *(seconds_row(r) for r in runs),
    ]
    return "\n".join(lines) + "\n"


def progress(r: Run, place: str) -> None:
    """One line on stderr."""
    found = r.error if r.report is None else f"{interval(r.speedup)} times, {r.sqnr:.1f} dB"
    print(f"{place} {r.name}: {found}; {r.total_s:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Runs the models; writes the page, or prints it for a part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="?", type=Path, help="the file to write")
    parser.add_argument("--only", metavar="NAME,NAME", help="a part of the models")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(zoo.NAMES)
    if unknown := [name for name in names if name not in zoo.NAMES]:
        parser.error(f"not in the zoo: {', '.join(unknown)}")
    write_images()
    runs: list[Run] = []
    for i, name in enumerate(names, 1):
        runs.append(run(name))
        progress(runs[-1], f"[{i:2}/{len(names)}]")
        if not options.only:
            results = json.dumps([asdict(r) for r in runs], indent=1)
            (BUILD / "results.json").write_text(results + "\n", encoding="utf-8")
    if options.only or options.page is None:
        print(page(runs, f"benchmarks/zoo.py {' '.join(sys.argv[1:])}".strip()))
    else:
        options.page.write_text(page(runs, "make zoo"), encoding="utf-8")
    return 1 if any(r.report is None for r in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
