"""What files for any CPU cost beside files for CPUs with VNNI, on each class of CPUs.

    python benchmarks/portable.py docs/portable.md

Each ready qconfig is converted for `vnni` and for `portable`, and judged on its evaluation images
by `qconvert benchmark --isa`, in processes that are limited to each class. Needs a CPU with VNNI.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from generated import replace

from qconvert import __version__
from qconvert.measurement.environment import here

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/portable"
_MODELS = ("fashion", "textline", "mobilenet_v2")
_CLASSES = ("vnni", "avx512", "avx2")


def main() -> None:
    """Measures and writes the table."""
    rows = [row(name) for name in _MODELS]
    machine = here()
    lines = [
        "| | made for | on VNNI | on AVX-512 | on AVX2 | gave up bits |",
        "| --- | --- | --- | --- | --- | --- |",
        *(line for lines in rows for line in lines),
        "",
        f"Measured on {time.strftime('%Y-%m-%d')} by `make bench-portable`: qconvert "
        f"{__version__}, torch {torch.__version__}, {machine.cpu}. In brackets: 95 % "
        "intervals over images.",
    ]
    replace(Path(sys.argv[1]), "portable", ["", *lines, ""])


def row(name: str) -> list[str]:
    """A line for each contract of one model."""
    found = []
    for isa in ("vnni", "portable"):
        report = benchmark(name, isa)
        by = {shown["isa"]: shown["accuracy"]["sqnr_db"] for shown in report["classes"]}
        cells = [_decibels(by[shown]) for shown in _CLASSES]
        given = report["fewer_bits"]
        what = f"{len(given)} layers" if given else "none"
        found.append(f"| {name} | `{isa}` | {' | '.join(cells)} | {what} |")
    return found


def benchmark(name: str, isa: str) -> dict[str, Any]:
    """The report of one model under one contract."""
    output = BUILD / f"{name}-{isa}"
    settings = [f"quantization.isa={isa}", f"output={output}", "benchmark.seconds=0.5"]
    command = [sys.executable, "-m", "qconvert", "benchmark", f"configs/{name}.yaml"]
    command += ["--isa", ",".join(_CLASSES), "--quiet"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name}, {isa}: exit code {done.returncode}")
    report: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return report


def _decibels(interval: dict[str, float]) -> str:
    return f"{interval['value']:.1f} ({interval['low']:.1f} to {interval['high']:.1f})"


if __name__ == "__main__":
    main()
