"""Runs one model of the zoo through the command line, in a process of its own, and records it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
import zoo_models as zoo
from zoo_images import write_pictures

from qconvert.measurement.environment import here

ROOT = Path(__file__).parent.parent
# Measuring time of a model; slow ones take longer, because every form has at least 11 rounds.
SECONDS = 2.0
# Conversion is as fast on one thread, and is not slowed when another program has the other core;
# latency is measured in a process that has settings of its own.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# A run that has not ended by then is a failure; it has some seconds to clean up.
LONGEST_S = 3600
LAST_WORDS_S = 20

# What a run writes when a step is done.
STEPS = {
    "fuse": "fused.json",
    "calibrate": "calibration.json",
    "convert": "convert.json",
    "measure": "report.json",
}


@dataclass(frozen=True)
class Run:
    """One model: its report, or the first line of what went wrong and where."""

    name: str
    section: str
    parameters: int
    convolution_share: float
    date: str
    environment: dict[str, Any]
    seconds: dict[str, float]
    total_s: float
    report: dict[str, Any] | None
    error: str | None

    @property
    def shown(self) -> str:
        """The name as its library has it."""
        return self.name.rpartition(":")[2]

    @property
    def convolutional(self) -> bool:
        """Whether it computes next to nothing but convolutions."""
        return self.convolution_share > 0.9

    @property
    def found(self) -> dict[str, Any]:
        """The report of a model that was converted."""
        assert self.report is not None, f"{self.name} was refused"
        return self.report

    @property
    def latency(self) -> dict[str, Any]:
        """At batch size 1 on one thread."""
        return self.found["latency"][0]

    @property
    def speedup(self) -> dict[str, float]:
        """The interval of float over int8."""
        return self.latency["speedups"]["int8"]

    @property
    def sqnr(self) -> float | None:
        """In dB, of the output; None where that is no tensor (boxes)."""
        found = (self.found.get("accuracy") or {}).get("sqnr_db")
        return None if found is None else found["value"]

    @property
    def parts_sqnr(self) -> float | None:
        """In dB, of what is handed to the parts that stay as written; None if there are none."""
        return self.found.get("parts_sqnr_db")

    @property
    def int8_share(self) -> float | None:
        """Of multiply-accumulates, with fixed and dynamic ranges."""
        return self.found["coverage"].get("int8_macs_share")

    @property
    def dynamic_share(self) -> float:
        """The part of `int8_share` whose ranges are found at each call; 0 if there is none."""
        coverage = self.found["coverage"]
        return coverage.get("dynamic_macs", 0) / max(coverage.get("macs", 0), 1)


def file_name(name: str) -> str:
    """A model's name as a name of files."""
    return name.replace(":", "-")


def save(run: Run, path: Path) -> None:
    """All of it or nothing, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".part")
    written.write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    written.replace(path)


def load(path: Path) -> Run:
    """What `save` wrote."""
    return Run(**json.loads(path.read_text(encoding="utf-8")))


def write_qconfig(name: str, build: Path) -> Path:
    """The qconfig of a model, and its pictures."""
    pixels, parts = zoo.picture_side(name), zoo.pictures(name)
    images = f"images/{pixels}x{len(parts[0])}"
    for part, indices in zip(("calibration", "evaluation"), parts, strict=True):
        write_pictures(build / images / part, pixels, indices)
    model: dict[str, Any] = {
        "source": "../../benchmarks/zoo_models.py:build",
        "kwargs": {"name": name},
    }
    if zoo.section(name) == "segmentation":
        model["output"] = "out"
    data: dict[str, Any] = {
        "calibration": f"{images}/calibration",
        "evaluation": f"{images}/evaluation",
        "labels": "none",
    }
    if zoo.section(name) == "video":
        data["transform"] = "../../benchmarks/zoo_images.py:clip"
    else:
        mean, std = zoo.normalization(name)
        data["preprocess"] = {"crop": pixels, "mean": list(mean), "std": list(std)}
    content = {
        "version": 1,
        "model": model,
        "data": data,
        "benchmark": {"batch_sizes": [1], "threads": [1], "seconds": SECONDS},
        "output": file_name(name),
    }
    path = build / f"{file_name(name)}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


class Runner:
    """Runs models in a folder, several at a time if wanted, until it is stopped."""

    def __init__(self, build: Path) -> None:
        self._build = build
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._counting = threading.Lock()  # torch counts in all threads at once

    def stop(self) -> None:
        """Ends what runs; nothing of it is recorded."""
        self._stopped = True
        for process in list(self._processes):
            process.terminate()

    def run(self, name: str) -> Run | None:
        """Converts and measures a model from nothing; None when it was stopped."""
        qconfig, output = write_qconfig(name, self._build), self._build / file_name(name)
        shutil.rmtree(output, ignore_errors=True)
        start = time.time()
        out, err, code = self._command(qconfig)
        total = time.time() - start
        seconds = step_seconds(output, start)
        shutil.rmtree(output, ignore_errors=True)  # gigabytes that nobody will read
        if self._stopped:
            return None
        report, error = judged(out, err, code)
        with self._counting:
            parameters, share = zoo.parameters(name), zoo.convolution_share(name)
        return Run(
            name=name,
            section=zoo.section(name),
            parameters=parameters,
            convolution_share=share,
            date=time.strftime("%Y-%m-%d"),
            environment=environment(),
            seconds=seconds,
            total_s=round(total, 1),
            report=report,
            error=error,
        )

    def _command(self, qconfig: Path) -> tuple[str, str, int]:
        """What the command line says on stdout and stderr, and its exit code."""
        command = (sys.executable, "-m", "qconvert", "benchmark", str(qconfig.relative_to(ROOT)))
        with subprocess.Popen(
            (*command, "--json", "--quiet"),
            cwd=ROOT,
            env=os.environ | ONE_THREAD,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for `stop`, which knows that it is no failure
        ) as process:
            self._processes.add(process)
            if self._stopped:  # between two models
                process.terminate()
            try:
                out, err = process.communicate(timeout=LONGEST_S)
            except subprocess.TimeoutExpired:
                out, err = _ended(process)
                out, err = "", f"{err}\nno result after {LONGEST_S} s"
            self._processes.discard(process)
            return out, err, process.returncode


def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Ends a process and those that it started."""
    process.terminate()
    try:
        return process.communicate(timeout=LAST_WORDS_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()


def environment() -> dict[str, Any]:
    """Versions and machine, as a record keeps them."""
    return here().model_dump() | {name: version(name) for name in ("torchvision", "timm")}


def step_seconds(output: Path, start: float) -> dict[str, float]:
    """Seconds of each step that was finished, from the times of its files."""
    seconds = {}
    for step, file in STEPS.items():
        if (output / file).exists():
            end = (output / file).stat().st_mtime
            seconds[step], start = round(end - start, 1), end
    return seconds


def judged(out: str, err: str, code: int) -> tuple[dict[str, Any] | None, str | None]:
    """The report of a run, or the first line of its error and where it is."""
    try:
        result = json.loads(out)
    except json.JSONDecodeError:  # a bug ends with a traceback, and its last line says what it is
        said = (err.strip().splitlines() or ["no result"])[-1]
        places = re.findall(r'^  File "(.+)", line (\d+), in', err, re.MULTILINE)
        where = f"{':'.join(places[-1])}, " if places else ""
        return None, _without_folders(f"{said} ({where}exit {code})")
    if "error" in result:
        error = result["error"]
        said = error["facts"][0].splitlines()[0]
        where = f"{error['where']}: " if error.get("where") else ""
        return None, _without_folders(f"{where}{said} ({error['kind']}, exit {code})")
    return result["report"], None


def _without_folders(text: str) -> str:
    """A message that is the same on every machine."""
    for folder in (sysconfig.get_path("purelib"), ROOT):
        text = text.replace(f"{folder}/", "")
    return text
