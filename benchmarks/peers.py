"""Measures this tool's int8 files beside those of ONNX Runtime and OpenVINO's NNCF.

    python benchmarks/peers.py docs/performance.md [--only NAME,NAME] [--again] [--settings 8x1,8x2]

Makes the peers' environment in build/peers (versions in peers_requirements.txt), converts each
model with each tool from the same float model and images, and lets the results run turn by turn,
each in a process of its own. What was converted is kept; `--again` converts anew. Results are kept
by model in build/peers/results, and the page has all of them; with `--settings`, those of the other
settings stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from peers_models import NAMES, ROOT, Subject, subject
from peers_page import FLOAT, OWN, write_page

from qconvert.console import Console
from qconvert.measurement.environment import here
from qconvert.measurement.latency import ALLOCATOR
from qconvert.measurement.statistics import decibels
from qconvert.qconfig_file import load
from qconvert.steps.session import Session

BUILD = ROOT / "build/peers"
HERE = Path(__file__).parent
REQUIREMENTS = HERE / "peers_requirements.txt"
# Batch size and threads; the first is the one that counts.
SETTINGS = ((1, 1), (1, 2), (8, 1), (8, 2))
_ROUNDS, _FEWER_ROUNDS = 21, 9  # at the first setting, and at the others
_TURN_S = 0.1
_EXAMPLES = 16


def main() -> None:
    """Prepares and measures each model, writing the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(NAMES))
    parser.add_argument("--again", action="store_true", help="convert anew")
    parser.add_argument("--settings", type=_settings, default=SETTINGS, help="batch x threads")
    options = parser.parse_args()
    if unknown := set(options.only) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    python = environment()
    results = BUILD / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        model = subject(name, BUILD)
        prepared = prepare(model, python, options.again)
        known = {(s["batch"], s["threads"]): s for s in recorded(results / f"{name}.json")}
        known |= {setting: measure(model, python, *setting) for setting in options.settings}
        found = prepared | {
            "name": name,
            "environment": here().model_dump() | {"load": os.getloadavg()[0]},
            "peers": REQUIREMENTS.read_text(encoding="utf-8").splitlines()[1:],
            "settings": [known[s] for s in SETTINGS if s in known],
        }
        part = results / f"{name}.part"
        part.write_text(json.dumps(found, indent=1), encoding="utf-8")
        part.replace(results / f"{name}.json")
        print(line(found), file=sys.stderr, flush=True)
        write_page(options.page, results)


def _settings(text: str) -> tuple[tuple[int, int], ...]:
    """`8x1,8x2` as pairs of batch size and threads."""
    found = tuple((int(b), int(t)) for b, t in (pair.split("x") for pair in text.split(",")))
    if unknown := set(found) - set(SETTINGS):
        raise argparse.ArgumentTypeError(f"not among {SETTINGS}: {sorted(unknown)}")
    return found


def recorded(result: Path) -> list[dict[str, Any]]:
    """What was measured of a model, by setting."""
    if not result.exists():
        return []
    found: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))["settings"]
    return found


def environment() -> Path:
    """The peers' interpreter. It borrows torch from this environment, for the export."""
    folder = BUILD / ".venv"
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS]
        subprocess.run(install, check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        (folder / "installed").touch()
    return python


def prepare(model: Subject, python: Path, again: bool) -> dict[str, Any]:
    """Converts with every tool; the seconds of each."""
    recorded = model.folder / "prepared.json"
    command = [sys.executable, "-m", "qconvert", "convert", str(model.qconfig), "--json", "--quiet"]
    done = subprocess.run(
        [*command, *model.options, *(["--force"] if again else [])],
        stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    if done.returncode not in (0, 1):
        raise SystemExit(f"{model.name}: {done.stdout}")
    if again or not recorded.exists():
        config = load(model.qconfig, [f"output={model.folder / 'qconvert'}"])
        session = Session(config, model.qconfig, Console(quiet=True))
        for name, images in (
            ("calibration", session.calibration_images.sample(100, 0).files),
            ("evaluation", session.evaluation_images.files[:_EXAMPLES]),
        ):
            arrays = [session.read(path)[0].numpy() for path in images]
            np.savez(model.folder / f"{name}.npz", *arrays)
        arguments = [model.source, model.folder / "calibration.npz", model.folder]
        out = subprocess.run(
            [python, HERE / "peers_quantize.py", *arguments, str(int(model.transformer))],
            stdout=subprocess.PIPE, text=True, check=True,
            env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
        ).stdout  # fmt: skip
        seconds = json.loads(out.splitlines()[-1]) | {"own": own_seconds(model)}
        recorded.write_text(json.dumps({"seconds": seconds}))
    found: dict[str, Any] = json.loads(recorded.read_text())
    return found


def own_seconds(model: Subject) -> float:
    """Of this tool's conversion in one process, on the same images; for CPUs with VNNI, as the
    peers'."""
    settings = ["calibration.images=100", "quantization.isa=vnni"]
    out = subprocess.run(
        [sys.executable, HERE / "peers_own.py", model.qconfig, *settings],
        stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
    ).stdout  # fmt: skip
    return sum(json.loads(out.splitlines()[-1]).values())


def files(model: Subject, python: Path) -> dict[str, tuple[Path | str, Path]]:
    """The interpreter and the file of each runtime."""
    return {
        FLOAT: (sys.executable, model.folder / "qconvert/float.pt"),
        OWN: (sys.executable, model.folder / "qconvert/model.int8.pt"),
        "onnxruntime": (python, model.folder / "onnxruntime.onnx"),
        "openvino": (python, model.folder / "openvino.xml"),
    }


class Worker:
    """A process with one runtime."""

    def __init__(self, runtime: str, python: Path | str, arguments: list[str], threads: int):
        settings = ALLOCATOR | {"OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, "-P", HERE / "peers_worker.py", runtime, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | settings,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} died")
        return line

    def ask(self, command: str) -> str:
        """The answer to one command."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def measure(model: Subject, python: Path, batch: int, threads: int) -> dict[str, Any]:
    """The median seconds of a call in each round, by runtime; SQNR of each against float."""
    examples = str(model.folder / "evaluation.npz")
    with ExitStack() as stack:
        workers = {}
        for runtime, (interpreter, path) in files(model, python).items():
            arguments = [str(path), examples, str(batch), str(threads)]
            workers[runtime] = Worker(runtime, interpreter, arguments, threads)
            stack.callback(workers[runtime].close)
        rounds: dict[str, list[float]] = {runtime: [] for runtime in workers}
        order = list(workers)
        first = (batch, threads) == SETTINGS[0]
        for i in range(_ROUNDS if first else _FEWER_ROUNDS):
            order = order[1:] + order[:1]
            for runtime in order if i % 2 else reversed(order):
                calls = json.loads(workers[runtime].ask(str(_TURN_S)))
                rounds[runtime].append(float(np.median(calls)))
        sqnr = (
            {r: outputs(w, model.folder / f"{r}.npz") for r, w in workers.items()} if first else {}
        )
    found: dict[str, Any] = {
        "batch": batch, "threads": threads, "rounds_s": rounds, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if first:
        found["sqnr_db"] = {r: sqnr_db(sqnr[FLOAT], sqnr[r]) for r in sqnr if r != FLOAT}
    return found


def outputs(worker: Worker, path: Path) -> list[np.ndarray]:
    """What a model returns for each example."""
    worker.ask(str(path))
    with np.load(path) as arrays:
        found = [arrays[name] for name in arrays.files]
    path.unlink()
    return found


def sqnr_db(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Of all examples together."""
    pairs = list(zip(wanted, found, strict=True))
    signal = sum(float((a.astype(np.float64) ** 2).sum()) for a, _ in pairs)
    noise = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs)
    return decibels(signal, noise)


def line(found: dict[str, Any]) -> str:
    """For the terminal: the first setting's ratios."""
    rounds = {r: np.array(s) for r, s in found["settings"][0]["rounds_s"].items()}
    mine = rounds[OWN]
    ratios = {r: float(np.median(mine / s)) for r, s in rounds.items() if r != OWN}
    shown = ", ".join(f"{1 / v if r == FLOAT else v:.2f} {r}" for r, v in ratios.items())
    return f"{found['name']:20} {1e3 * float(np.median(mine)):8.2f} ms: {shown}"


if __name__ == "__main__":
    main()
