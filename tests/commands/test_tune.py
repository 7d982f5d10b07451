"""`qconvert tune`: what it meets, what it keeps, and what is left of it when it is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from isa_here import ISA
from project import NO_RECOVERY, QCONVERT, UNMEASURED, Project

from qconvert.errors import BUDGETS_MISSED

# Int8 as bad as can be: one scale for weights of very different size, and a tenth of all values
# clipped. Equalization and the others help, but not enough.
BAD = {
    "decide": "int8", "isa": ISA, "weights": {"observer": "minmax"},
    "activations": {"observer": "percentile", "percentile": 0.9},
}  # fmt: skip
WANTED = 0.998


def bad_project(make_project: Callable[[Path], Project], folder: Path, **changes: Any) -> Project:
    project = make_project(folder)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    weights["0.weight"] *= torch.logspace(0, -2, 8).view(8, 1, 1, 1)
    torch.save(weights, folder / "weights.pt")
    project.qconfig(**{"quantization": BAD, "budgets": {"min_cosine": WANTED}} | changes)
    return project


@pytest.fixture(scope="module")
def tuned(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project after a `tune` that meets its budget."""
    project = bad_project(make_project, tmp_path_factory.mktemp("tune") / "project")
    result = project.run("tune", "--quiet")
    assert result.code == 0, result.err
    assert "all budgets met" in result.out
    return project


def best(trail: dict[str, Any]) -> dict[str, Any]:
    return next(tried for tried in trail["trials"] if tried["number"] == trail["best"])


def test_recovery_is_tried_first_and_then_more_in_float(tuned: Project) -> None:
    trail = tuned.record("tune.json")
    first, second, *others = trail["trials"]
    assert set(first["settings"]["recovery"].values()) == {"off"}
    assert not first["settings"]["in_float"]
    assert set(second["settings"]["recovery"].values()) <= {"on", "off"}
    assert not second["settings"]["in_float"]
    assert others
    for tried in others:
        assert tried["settings"]["recovery"] == second["settings"]["recovery"]
        assert tried["settings"]["in_float"]
    met = [tried for tried in trail["trials"] if tried["found"]["min_cosine"] >= WANTED]
    assert best(trail) == min(met, key=lambda tried: tried["latency_s"])


def test_a_file_is_what_its_trial_promised(tuned: Project) -> None:
    """Figures of accuracy are exactly those of the verified file."""
    kept = best(tuned.record("tune.json"))
    names = ("max_accuracy_drop", "min_agreement", "min_cosine", "min_int8_macs")
    assert [kept["found"][n] for n in names] == [kept["proof"]["found"][n] for n in names]
    assert kept["proof"]["found"]["min_cosine"] >= WANTED
    plan = json.loads((tuned.output / "tuned/plan.json").read_text())
    in_float = {o["name"] for o in plan["operators"] if o["precision"] == "float32"}
    assert set(kept["settings"]["in_float"]) <= in_float


def test_the_tuned_qconfig_is_one_like_any_other(tuned: Project) -> None:
    """Every command takes it, finds what is made, and makes the same file elsewhere."""
    path = tuned.output / "tuned.yaml"
    content = yaml.safe_load(path.read_text())
    assert content["model"]["source"] == "../network.py:network"
    assert content["output"] == "tuned"
    assert "tune" not in content
    file = (tuned.output / "tuned/model.int8.pt").read_bytes()
    result = tuned.call("convert", str(path))
    assert result.code == 0, result.err
    assert "convert: " not in result.err
    copied = tuned.folder / "copied"
    copied.mkdir()
    shutil.copy(path, copied)
    result = tuned.call("convert", "copied/tuned.yaml", "--quiet")
    assert result.code == 0, result.err
    assert (copied / "tuned/model.int8.pt").read_bytes() == file


def test_trials_are_used_again(tuned: Project) -> None:
    before = tuned.record("tune.json")
    result = tuned.run("tune")
    assert result.code == 0, result.err
    assert f"tune: {len(before['trials'])} trials of before are used again" in result.err
    assert "tune: trial" not in result.err
    assert tuned.record("tune.json") == before


def test_other_budgets_go_on_from_the_same_trials(tuned: Project, tmp_path: Path) -> None:
    """A budget that an earlier trial meets needs no more of them; in a copy of the project."""
    before = tuned.record("tune.json")["trials"]
    found = before[1]["found"]["min_cosine"]
    project = Project(Path(shutil.copytree(tuned.folder, tmp_path / "copy")))
    result = project.run("tune", "--quiet", "--json", "--set", f"budgets.min_cosine={found - 1e-6}")
    assert result.code == 0, result.err
    trail = json.loads(result.out)["trail"]
    assert [t["number"] for t in trail["trials"]] == [t["number"] for t in before]
    assert trail["best"] == 2


def test_what_cannot_be_met_is_said_and_the_nearest_kept(
    make_project: Callable[[Path], Project], tmp_path: Path
) -> None:
    project = bad_project(
        make_project,
        tmp_path / "project",
        recovery=NO_RECOVERY,
        budgets={"min_cosine": 1.0, "min_int8_macs": 0.8},
        tune={"trials": 4, "qconfig": "kept/best.yaml"},
    )
    result = project.run("tune")
    assert result.code == BUDGETS_MISSED, result.err
    trail = project.record("tune.json")
    assert len(trail["trials"]) <= 4
    kept = best(trail)
    near = [t for t in trail["trials"] if t["found"]["min_int8_macs"] >= 0.8]
    assert kept["found"]["min_cosine"] == max(t["found"]["min_cosine"] for t in near)
    assert f"trial {kept['number']}, " in result.out
    assert f"the nearest that was found misses min_cosine {kept['found']['min_cosine']:.6g}" in (
        result.out
    )
    written = yaml.safe_load((project.folder / "kept/best.yaml").read_text())
    assert written["output"] == "../out/tuned"
    assert (project.output / "tuned/model.int8.pt").is_file()


@pytest.mark.parametrize("budgets", [None, {"min_speedup": 2.0}])
def test_without_a_limit_of_accuracy_there_is_nothing_to_do(
    project: Project, budgets: dict[str, float] | None
) -> None:
    project.qconfig(budgets=budgets)
    result = project.run("tune")
    assert result.code == 2
    assert "budgets: tune needs a limit of accuracy to meet" in result.err
    assert "budgets.min_agreement" in result.err
    assert not project.output.exists()


def test_a_budget_that_cannot_be_measured_is_an_error(project: Project) -> None:
    """Not one that no trial meets."""
    data = {"calibration": "images", "labels": "none", "preprocess": {"mean": [0.5], "std": [0.25]}}
    project.qconfig(data=data, budgets={"max_accuracy_drop": 0.01, "min_agreement": 0.5})
    result = project.run("tune", "--quiet")
    assert result.code == 2
    assert "my.yaml: budgets.max_accuracy_drop: the evaluation images do not tell it" in result.err
    assert "min_agreement: the" not in result.err


def killed_after(project: Project, lines: int) -> bool:
    """Runs `tune` until it has said so much of what it does, then kills all its processes as a lost
    power supply does; whether it was still running."""
    run = subprocess.Popen(
        [*QCONVERT, "tune", "my.yaml"], cwd=project.folder, env=UNMEASURED, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert run.stderr is not None
    said = iter(run.stderr.readline, "")
    for line in said:
        if line.startswith("importing torch"):
            break
    for _ in islice(said, lines):
        pass
    met = run.poll() is None
    if met:
        os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    return met


def test_a_killed_run_goes_on_and_ends_no_worse(tuned: Project, tmp_path: Path) -> None:
    """From what was converted before on; the rest from the beginning."""
    project = Project(Path(shutil.copytree(tuned.folder, tmp_path / "copy")))
    (project.output / "tune.json").unlink()
    (project.output / "tuned.yaml").unlink()
    shutil.rmtree(project.output / "tuned")
    drawn, trials = random.Random(0), 0
    for _ in range(4):
        assert killed_after(project, drawn.randrange(2, 7))
        if (project.output / "tune.json").is_file():
            trail = project.record("tune.json")
            assert len(trail["trials"]) >= trials
            trials = len(trail["trials"])
            if trials:  # the best so far is a qconfig that loads
                assert yaml.safe_load((project.output / "tuned.yaml").read_text())["version"] == 1
    assert trials
    result = project.run("tune", "--quiet")
    assert result.code == 0, result.err
    found, alone = (best(p.record("tune.json")) for p in (project, tuned))
    assert found["settings"] == alone["settings"]
    assert found["proof"]["file"] == alone["proof"]["file"]
