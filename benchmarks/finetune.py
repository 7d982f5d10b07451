"""Fine-tuning: MobileNetV2 on the photo set; a network that int8 harms, with labels and without.

    PYTHONPATH=. python benchmarks/finetune.py docs/accuracy.md [--only NAME,NAME]

MobileNetV2: the images, the float model and the intervals of benchmarks/accuracy.py; at most 15
minutes of training without labels, with crops of the photographs that calibrate and of 25 others
(photos.py). Everything is judged as CPUs with VNNI compute it, by the plan's simulation, so that
any CPU will do. UnevenNet is trained by sample_models/uneven/train.py first, and fine-tuned with
4,096 images of the same training set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from accuracy import _FETCHED_BY, judged, outputs_of, run_file, write_qconfig
from generated import replace
from peers import ROOT
from photos import fetch_photos, fetch_training_photos, photograph_of
from samples import fashion_images

from qconvert import torchscript
from qconvert.console import Console
from qconvert.measurement.environment import here
from qconvert.qconfig_file import load
from qconvert.steps.convert import simulate
from qconvert.steps.course import Form
from qconvert.steps.finetune import finetuned, make_finetuned
from qconvert.steps.judging import judge
from qconvert.steps.measured import FLOAT
from qconvert.steps.overflow import make_overflow, planned
from qconvert.steps.recovery import recovered
from qconvert.steps.session import Session

BUILD = ROOT / "build/finetune"
MINUTES = 15
# Of UnevenNet: channels grow by factors, for which the usual rate has too few steps.
UNEVEN = ("finetune.channel_learning_rate=0.01", "finetune.batch_size=16", "finetune.epochs=20")
UNEVEN_IMAGES = 4096


def main() -> None:
    """Measures, and writes the part of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SUBJECTS))
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found = {"date": time.strftime("%Y-%m-%d"), "environment": here().model_dump()}
        found |= SUBJECTS[name]()
        (BUILD / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    results = {
        name: json.loads((BUILD / f"{name}.json").read_text(encoding="utf-8"))
        for name in SUBJECTS
        if (BUILD / f"{name}.json").exists()
    }
    replace(options.page, "finetune", ["", *lines(results), ""])


def mobilenet_v2() -> dict[str, Any]:
    """Rows before and after, with intervals by bootstrap over photographs."""
    photos = ROOT / "build/accuracy/photos"
    fetch_photos(photos)
    training = fetch_training_photos(photos)
    subprocess.run([sys.executable, "-m", *_FETCHED_BY["mobilenet_v2"]], check=True, cwd=ROOT)
    qconfig = write_qconfig("mobilenet_v2", photos)
    settings = (f"finetune.minutes={MINUTES}", f"finetune.images={training}")
    session = _session(qconfig, BUILD / "mobilenet_v2", settings)
    record, before, after = _trained(session)
    files = session.evaluation_images.files
    images = [session.read(path)[0].numpy() for path in files]
    groups = [photograph_of(path) for path in files]
    reference = run_file(session.workspace.path(FLOAT), images)
    rows = {}
    for name, form in (("before", before), ("after", after)):
        intervals = judged(reference, outputs_of(simulate(*form), images), groups)
        rows[name] = [interval.model_dump() for interval in intervals]
    return {"rows": rows, "training": record["training"], "images": len(files)}


def uneven() -> dict[str, Any]:
    """Top-1 of float, and of int8 before and after, by teacher."""
    weights, sample = BUILD / "uneven.pt", ROOT / "sample_models/fashion"
    if not weights.exists():
        command = [sys.executable, "-m", "sample_models.uneven.train", weights]
        subprocess.run(command, check=True, cwd=ROOT)
    training = fashion_images(BUILD, "training", "train", UNEVEN_IMAGES)
    qconfig = BUILD / "uneven.yaml"
    content = {
        "version": 1,
        "model": {
            "source": f"{ROOT}/sample_models/uneven/network.py:uneven_net",
            "checkpoint": str(weights),
        },
        "data": {
            "calibration": str(sample / "calibration"),
            "evaluation": str(sample / "test"),
            "classes": str(sample / "classes.txt"),
            "preprocess": {"channels": 1, "mean": [0.2860], "std": [0.3530]},
        },
        "quantization": {"decide": "int8"},
        "finetune": {"images": str(training)},
        "output": str(BUILD / "uneven"),
    }
    qconfig.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    rows = {}
    for teacher in ("float", "labels", "both"):
        settings = (*UNEVEN, f"finetune.teacher={teacher}")
        session = _session(qconfig, BUILD / f"uneven_{teacher}", settings)
        record, *forms = _trained(session)
        before, after = (
            next(m for m in judge(session, simulate(*form), "", None).metrics if m.name == "top1")
            for form in forms
        )
        rows[teacher] = {
            "float": after.reference.model_dump(),
            "before": before.measured.model_dump(),
            "after": after.measured.model_dump(),
            "seconds": record["training"]["seconds"],
        }
    return {"rows": rows, "images": len(session.evaluation_images.files)}


def _session(qconfig: Path, out: Path, settings: Sequence[str]) -> Session:
    """As of `qconvert finetune`, for CPUs with VNNI; says what it does."""
    chosen = [f"output={out}", "quantization.isa=vnni", *settings]
    return Session(load(qconfig, chosen), qconfig, Console(quiet=False))


def _trained(session: Session) -> tuple[dict[str, Any], Form, Form]:
    """The record of the training; model and plan before and after it."""
    record = make_finetuned(session)
    model, plan, _ = recovered(session, planned(session, None, make_overflow(session, None)))
    after = finetuned(session, model, plan)
    return record, Form(model, plan), Form(after.model, after.plan)


def lines(results: dict[str, dict[str, Any]]) -> list[str]:
    """The tables."""
    machine = next(iter(results.values()))["environment"]
    found = [
        f"Measured by `make bench-finetune`: {machine['cpu']}, {machine['cores']} cores, torch "
        f"{machine['torch']}."
    ]
    if "mobilenet_v2" in results:
        result = results["mobilenet_v2"]
        training = result["training"]
        found += [
            "",
            f"### mobilenet_v2, without labels ({result['date']})",
            "",
            f"{training['images']} crops of 41 photographs, {training['epochs']} epochs in "
            f"{training['seconds'] / 60:.1f} minutes; judged on {result['images']} crops of other "
            "photographs. In brackets: 95 % intervals by bootstrap over photographs.",
            "",
            "| | agreement with float | SQNR, dB |",
            "| --- | --- | --- |",
        ]
        for name, (agreement, sqnr) in result["rows"].items():
            found.append(f"| {name} | {_share(agreement)} | {_decibels(sqnr)} |")
    if "uneven" in results:
        result = results["uneven"]
        found += [
            "",
            f"### UnevenNet, channels that differ in size by far ({result['date']})",
            "",
            f"Top-1 on {result['images']:,} images, with 95 % intervals.",
            "",
            "| teacher | float | int8 before | int8 after | seconds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, row in result["rows"].items():
            cells = (_share(row[key]) for key in ("float", "before", "after"))
            found.append(f"| {name} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return found


def _share(value: dict[str, float]) -> str:
    return f"{value['value']:.1%} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def _decibels(value: dict[str, float]) -> str:
    return f"{value['value']:.1f} ({value['low']:.1f} to {value['high']:.1f})"


SUBJECTS = {"mobilenet_v2": mobilenet_v2, "uneven": uneven}

if __name__ == "__main__":
    with torchscript.quiet():
        main()
