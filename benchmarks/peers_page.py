"""The part of docs/performance.md that `make bench-peers` writes, and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from generated import replace
from peers_models import NAMES

from qconvert.measurement.statistics import Interval, bootstrap, median

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "qconvert"  # the same picture is the same file

FLOAT, OWN = "torch-float", "torch"
PEERS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
Rounds = dict[str, np.ndarray]


def write_page(page: Path, folder: Path) -> None:
    """Writes all results that are there, and the plot beside the page."""
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in (folder / f"{name}.json" for name in NAMES)
        if path.exists()
    ]
    replace(page, "peers", lines(results))
    plot([(r["name"], rounds_of(r["settings"][0])) for r in results], page.with_suffix(".svg"))


def rounds_of(setting: Mapping[str, Any]) -> Rounds:
    """Seconds of a call in each round, by runtime."""
    return {name: np.array(seconds) for name, seconds in setting["rounds_s"].items()}


def lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The tables of all settings."""
    first = results[0]
    machine, dates = (
        first["environment"],
        sorted({s["date"] for r in results for s in r["settings"]}),
    )
    loads = [r["environment"]["load"] for r in results]
    found = [
        f"Measured on {' and '.join(dates)} by `make bench-peers`: {machine['cpu']}, "
        f"{machine['cores']} cores, {'' if machine['vnni'] else 'no '}VNNI; torch "
        f"{machine['torch']}, {', '.join(first['peers'])}; load of the machine at the end of a "
        f"model's run {min(loads):.1f} to {max(loads):.1f}. Times are medians of rounds; in "
        "brackets: 95 % intervals.",
    ]
    for i, setting in enumerate(first["settings"]):
        rows = [r for r in results if len(r["settings"]) > i]
        found += ["", f"### {_setting(setting)}", "", *_table(rows, i)]
    found += ["", "### The conversion, in seconds", "", *_conversions(results)]
    found += ["", "### SQNR of the logits against float, in dB", "", *_sqnr(results)]
    return found


def _setting(setting: Mapping[str, Any]) -> str:
    threads = "1 thread" if setting["threads"] == 1 else f"{setting['threads']} threads"
    return f"{threads}, batch {setting['batch']}, {len(setting['rounds_s'][OWN])} rounds"


def _table(results: Sequence[Mapping[str, Any]], index: int) -> list[str]:
    found = [
        "| model | fastest float, ms | int8, ms | OpenVINO, ms | ONNX Runtime, ms "
        "| int8 / OpenVINO | int8 / ONNX Runtime | float / int8 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    all_rounds = []
    for result in results:
        rounds = rounds_of(result["settings"][index])
        all_rounds.append(rounds)
        ms = {name: f"{1e3 * float(np.median(s)):.2f}" for name, s in rounds.items()}
        ratios = [_interval(median(_ratio(rounds, *pair))) for pair in _PAIRS]
        cells = [ms[FLOAT], ms[OWN], *(ms[peer] for peer in PEERS), *ratios]
        found.append(f"| {result['name']} | {' | '.join(cells)} |")
    means = [_interval(geometric_mean([_ratio(r, *pair) for r in all_rounds])) for pair in _PAIRS]
    found.append(f"| **geometric mean** | | | | | {' | '.join(means)} |")
    return found


# What is divided by what.
_PAIRS = ((OWN, "openvino"), (OWN, "onnxruntime"), (FLOAT, OWN))


def _ratio(rounds: Rounds, over: str, under: str) -> np.ndarray:
    """Within each round."""
    return rounds[over] / rounds[under]


def geometric_mean(ratios: Sequence[np.ndarray]) -> Interval:
    """Of the models' median ratios; the interval is over rounds."""
    table = np.stack([r[: min(map(len, ratios))] for r in ratios], axis=1)
    return bootstrap(lambda rows: float(np.exp(np.log(np.median(rows, axis=0)).mean())), table)


def _interval(value: Interval) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def _conversions(results: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [
        "100 images (the samples: 100 of their own), all cores, each tool in a process of its own, "
        "without imports and verification. ONNX Runtime: export, pre-processing and "
        "`quantize_static`; NNCF: `convert_model` of the exported model and `quantize`.",
        "",
        "| model | qconvert | NNCF | ONNX Runtime |",
        "| --- | --- | --- | --- |",
    ]
    for result in results:
        s = result["seconds"]
        cells = (s["own"], s["nncf"], s["export"] + s["onnxruntime"])
        found.append(f"| {result['name']} | {' | '.join(f'{c:.1f}' for c in cells)} |")
    return found


def _sqnr(results: Sequence[Mapping[str, Any]]) -> list[str]:
    found = ["| model | int8 | OpenVINO | ONNX Runtime |", "| --- | --- | --- | --- |"]
    for result in results:
        by = result["settings"][0]["sqnr_db"]
        cells = " | ".join(f"{by[name]:.1f}" for name in (OWN, *PEERS))
        found.append(f"| {result['name']} | {cells} |")
    return found


def plot(results: Sequence[tuple[str, Rounds]], target: Path) -> None:
    """Bars of the time of a call as a share of OpenVINO's, by model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.45 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(results))
    shown = {OWN: "qconvert", "onnxruntime": "ONNX Runtime"}
    for i, (runtime, label) in enumerate(shown.items()):
        found = [median(_ratio(rounds, runtime, "openvino")) for _, rounds in results]
        values = np.array([f.value for f in found])
        spread = np.array([[v - f.low, f.high - v] for v, f in zip(values, found, strict=True)])
        axes.barh(places + 0.36 * i, values, 0.34, xerr=spread.T.clip(min=0), label=label)
    axes.axvline(1.0, color="black", linewidth=1, label="OpenVINO")
    axes.set_yticks(places + 0.18, [name for name, _ in results])
    axes.invert_yaxis()
    axes.set_xlabel("time of a call over OpenVINO's, int8, 1 thread, batch 1 (less is better)")
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(target, metadata={"Date": None})
