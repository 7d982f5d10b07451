"""What int8 costs the two samples, on more images than are committed: into docs/accuracy.md.

    python benchmarks/samples.py docs/accuracy.md

Fashion on all 10,000 test images (Debian's `dataset-fashion-mnist`), the text lines on their 500.
Both are converted as their qconfigs say, and judged as `qconvert benchmark` does.
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

from qconvert.measurement.environment import here

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build/samples"


def main() -> None:
    """Converts, judges and writes the table."""
    rows = [
        ("fashion, 10,000 images", judged("fashion", all_of_fashion())),
        ("textline, 500 lines", judged("textline", None)),
    ]
    machine = here()
    vnni = "with VNNI" if machine.vnni else "without VNNI"
    lines = [
        "",
        "| | float | int8 | loss, points | McNemar's p | agreement | SQNR, dB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(line(name, found) for name, found in rows),
        "",
        f"Measured on {time.strftime('%Y-%m-%d')} by `make bench-samples`: {machine.cpu} ({vnni}), "
        f"torch {torch.__version__}. In brackets: 95 % intervals.",
        "",
    ]
    replace(Path(sys.argv[1]), "samples", lines)


def all_of_fashion() -> Path:
    """The folder of all test images, by class."""
    BUILD.mkdir(parents=True, exist_ok=True)
    return fashion_images(BUILD, "t10k", "t10k", 10_000)


def fashion_images(out: Path, name: str, split: str, number: int) -> Path:
    """So many images of a split, drawn, as a folder of classes."""
    script = ROOT / "sample_models/fashion/export_images.py"
    words = ["--set", name, split, str(number), "--out", out]
    subprocess.run([sys.executable, script, *words], check=True)
    return out / name


def judged(name: str, evaluation: Path | None) -> dict[str, Any]:
    """What the report says of accuracy."""
    out = BUILD / name
    settings = [f"output={out}", *([] if evaluation is None else [f"data.evaluation={evaluation}"])]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "qconvert", "benchmark", ROOT / f"configs/{name}.yaml"]
    # 1: a budget is missed, which the table shows.
    subprocess.run([*command, *options, "--quiet"], check=False, cwd=ROOT)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = report["accuracy"]
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """A row of the table."""
    metric, agreement = found["metrics"][0], found["agreement"]
    drop, chance = metric["drop"], metric["by_chance"]
    return (
        f"| {name} | {metric['reference']['value']:.2%} | {metric['measured']['value']:.2%} | "
        f"{100 * drop['value']:.2f} ({100 * drop['low']:.2f} to {100 * drop['high']:.2f}) | "
        f"{'' if chance is None else f'{chance:.2f}'} | {agreement['value']:.2%} "
        f"({100 * agreement['low']:.2f} to {100 * agreement['high']:.2f}) | "
        f"{found['sqnr_db']['value']:.1f} |"
    )


if __name__ == "__main__":
    main()
