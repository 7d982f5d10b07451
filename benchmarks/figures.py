"""Measures every figure of the README and writes them between its markers.

    make figures            (about 3 minutes; close other programs first)

Each row names the command that gives it, so that it can be repeated alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated import replace

from qconvert.qconfig import BudgetSection, QConfig
from qconvert.qconfig_file import load

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Row:
    """One figure as text."""

    figure: str
    wanted: str
    found: str
    command: str


def run(*command: str) -> str:
    """stdout of a command run in the project's folder."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}")
    return done.stdout


def benchmark(path: str, *options: str) -> dict[str, Any]:
    """The report of `qconvert benchmark`."""
    command = (str(BIN / "qconvert"), "benchmark", path, "--json", "--quiet", *options)
    return json.loads(run(*command))["report"]


def interval(value: dict[str, float], form: str = "{:.4f}") -> str:
    """A figure with its 95 % interval."""
    low, high = form.format(value["low"]), form.format(value["high"])
    return f"{form.format(value['value'])} ({low} to {high})"


def fashion_rows() -> list[Row]:
    """The embedded sample against the budgets of its qconfig."""
    path = "configs/fashion.yaml"
    budgets = load(ROOT / path).budgets
    report = benchmark(path, "--force")
    command = f"`qconvert benchmark {path}`"
    accuracy = report["accuracy"]
    name = "Fashion sample, 2,000 images: "
    return [
        *metric_rows(name, accuracy["metrics"][0], "top-1", command),
        loss_row(name, accuracy, budgets, command),
        Row(
            name + "agreement",
            f"≥ {budgets.min_agreement}",
            interval(accuracy["agreement"]),
            command,
        ),
        Row(name + "SQNR", "", interval(accuracy["sqnr_db"], "{:.1f}") + " dB", command),
        *common_rows("Fashion sample: ", report, budgets, command),
    ]


def textline_rows() -> list[Row]:
    """The sample that reads lines of text against the budgets of its qconfig."""
    path = "configs/textline.yaml"
    budgets = load(ROOT / path).budgets
    report = benchmark(path, "--force")
    command = f"`qconvert benchmark {path}`"
    accuracy = report["accuracy"]
    match, errors = accuracy["metrics"]
    confidence = accuracy["confidence"]
    required = f"automation rate at {confidence['required_accuracy']:.0%}"
    name = "Text line sample, 500 lines: "
    return [
        *metric_rows(name, match, "exact match", command),
        loss_row(name, accuracy, budgets, command),
        *metric_rows(name, errors, "character error rate", command),
        *(
            Row(f"{name}{model} {required}", "", interval(confidence[key]["rate"]), command)
            for model, key in (("float", "reference"), ("int8", "measured"))
        ),
        Row(
            name + "automation lost",
            f"≤ {budgets.max_automation_drop}",
            interval(confidence["drop"]),
            command,
        ),
        Row(
            name + "accuracy of the accepted with float's threshold",
            "",
            f"{confidence['carried']['accuracy']:.4f}",
            command,
        ),
        Row(name + "SQNR", "", interval(accuracy["sqnr_db"], "{:.1f}") + " dB", command),
        *common_rows("Text line sample: ", report, budgets, command),
    ]


def metric_rows(name: str, metric: dict[str, Any], called: str, command: str) -> list[Row]:
    """A metric of float and of int8."""
    models = (("float", "reference"), ("int8", "measured"))
    return [
        Row(f"{name}{model} {called}", "", interval(metric[key]), command) for model, key in models
    ]


def loss_row(name: str, accuracy: dict[str, Any], budgets: BudgetSection, command: str) -> Row:
    """By how much int8 is worse in the first metric."""
    drop = accuracy["metrics"][0]["drop"]["value"]
    return Row(name + "loss", f"≤ {budgets.max_accuracy_drop}", f"{drop:.4f}", command)


def mobilenet_rows() -> list[Row]:
    """The official MobileNetV2 weights on photographs that did not calibrate."""
    path = "configs/mobilenet_v2.yaml"
    budgets = load(ROOT / path).budgets
    report = benchmark(path, "--force")
    accuracy = report["accuracy"]
    command = "`make demo-imagenet`"
    name = "MobileNetV2, 50 crops of 10 photographs: "
    return [
        Row(name + "SQNR", "≥ 10 dB", interval(accuracy["sqnr_db"], "{:.1f}") + " dB", command),
        Row(name + "agreement", "", interval(accuracy["agreement"]), command),
        *metric_rows(name, accuracy["metrics"][0], "top-1", command),
        *common_rows("MobileNetV2: ", report, budgets, command),
    ]


def common_rows(
    name: str, report: dict[str, Any], budgets: BudgetSection, command: str
) -> list[Row]:
    """Coverage, size and speed."""
    coverage, size = report["coverage"], report["size"]
    at_most = "" if budgets.max_size_ratio is None else f"≤ {budgets.max_size_ratio}"
    rows = [
        Row(
            name + "multiply-accumulates in int8",
            f"≥ {budgets.min_int8_macs}",
            f"{coverage['int8_macs_share']:.4f}",
            command,
        ),
        Row(
            name + "file, int8 over float",
            at_most,
            f"{size['ratio']:.3f} ({size['int8_bytes'] / 1e6:.2f} MB)",
            command,
        ),
    ]
    for i, row in enumerate(report["latency"]):
        float_ms, int8_ms = (
            t["median_s"]["value"] * 1e3 for t in (row["baseline"], row["models"]["int8"])
        )
        threads = f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")
        speedup = interval(row["speedups"]["int8"], "{:.2f}")
        rows.append(
            Row(
                f"{name}times faster than the fastest float form, {threads}",
                f"≥ {budgets.min_speedup}" if i == 0 else "",
                f"{speedup}; {float_ms:.2f} to {int8_ms:.2f} ms ({row['baseline']['form']})",
                command,
            )
        )
    return rows


def t10k_rows() -> list[Row]:
    """Float top-1 on all 10,000 test images, where Debian's dataset is installed."""
    script = "sample_models/fashion/train.py"
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        return []
    found = run(sys.executable, script, "--evaluate").split()[-1]
    name = "Fashion sample, float top-1 on all 10,000 test images"
    return [Row(name, "≥ 0.925", found, f"`python {script} --evaluate`")]


def help_row() -> Row:
    """How long `--help` takes."""
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        run(str(BIN / "qconvert"), "--help")
        seconds.append(time.perf_counter() - start)
    low, high = min(seconds), max(seconds)
    found = f"{statistics.median(seconds):.2f} s ({low:.2f} to {high:.2f})"
    return Row("`qconvert --help`, without torch", "≤ 0.6 s", found, "`qconvert --help`")


def second_run_row() -> Row:
    """What a second benchmark writes."""
    config: QConfig = load(ROOT / "configs/fashion.yaml")

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in config.output.iterdir()}

    before = times()
    benchmark("configs/fashion.yaml", "--set", "benchmark.seconds=0.5")
    after = times()
    written = sorted(name for name in after if before.get(name) != after[name])
    return Row(
        "Files that a second `benchmark` writes",
        "the report",
        ", ".join(f"`{name}`" for name in written),
        "`qconvert benchmark configs/fashion.yaml`, twice",
    )


def main() -> None:
    """Measures, then rewrites the part of the file between the markers."""
    target = Path(sys.argv[1])
    rows = [
        *fashion_rows(),
        second_run_row(),
        *t10k_rows(),
        *textline_rows(),
        *mobilenet_rows(),
        help_row(),
    ]
    machine = json.loads((ROOT / "build/fashion/report.json").read_text())["environment"]
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d')} by `make figures`: {machine['cpu']}, "
        f"{machine['cores']} cores, {'' if machine['vnni'] else 'no '}VNNI; "
        f"torch {machine['torch']}, Python {machine['python']}. In brackets: 95 % intervals.",
        "",
        "| figure | wanted | found | command |",
        "| --- | --- | --- | --- |",
        *(f"| {row.figure} | {row.wanted} | {row.found} | {row.command} |" for row in rows),
    ]
    replace(target, "figures", lines)


if __name__ == "__main__":
    main()
