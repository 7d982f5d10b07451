"""Commands in several processes: the same bytes as from one, one voice, and no process waits for
another that is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from project import Project, Result
from team import BRIEF, LIMIT_S, Team, torchrun

# Batches of two: 18 images are three rounds for three ranks.
BATCHES = ("--set", "calibration.batch_size=2")
LONG = ("--set", "benchmark.seconds=60")
# A transform of which rank 1 alone does not come back from one image, or all ranks do.
TRANSFORM = """
import os, signal, torch
from pathlib import Path
from torchvision.transforms.v2 import functional as F

def prepare(image):
    name = "/".join(Path(image.filename).parts[-2:])
    if os.environ.get("RANK") == "1" and name == os.environ.get("LAST"):
        os.kill(os.getpid(), signal.SIGKILL)
    pixels = F.pil_to_tensor(image).float() / 255
    return pixels * float("nan") if name == os.environ.get("NAN") else pixels
"""

# A model with other weights each time, as one that reads a clock.
DRAWN = """
def drawn():
    import os
    torch.manual_seed(int(os.environ["RANK"]))
    return network()
"""


@pytest.fixture(scope="module")
def alone(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, bytes]]:
    """A project with what one process makes of it: moving averages, sizes that differ, and an image
    that is skipped. Digests are of paths, too: others work in the same folder."""
    project = make_project(tmp_path_factory.mktemp("alone") / "project")
    generator = np.random.default_rng(1)
    for i, size in enumerate(((16, 16), (20, 16), (16, 24))):
        pixels = generator.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(project.folder / "images" / "cow" / f"other{i}.png")
    (project.folder / "images" / "cow" / "broken.png").write_bytes(b"no image")
    project.qconfig(
        data={
            "calibration": "images",
            "on_bad_image": "skip",
            "preprocess": {"mean": [0.5], "std": [0.25]},
        },
        calibration={"averaging": 0.1, "batch_size": 2},
        quantization={"activations": {"observer": "moving_average"}},
        benchmark={"threads": [1], "seconds": 0.05, "metrics": ["top1", "per_class"]},
    )
    result = project.run("benchmark", "--json")
    assert result.code == 0, result.err
    return project, project.state()


def copy_of(project: Project, folder: Path) -> Project:
    """The same project elsewhere."""
    shutil.copytree(project.folder, folder)
    return Project(folder)


def untimed(report: dict[str, Any]) -> dict[str, Any]:
    """A report without times, and what is judged by them."""
    return {k: v for k, v in report.items() if k not in ("created", "latency", "notes")}


def test_results_are_those_of_one_process(alone: tuple[Project, dict[str, bytes]]) -> None:
    project, wanted = alone
    shutil.rmtree(project.output)
    result = torchrun(project, 3, "benchmark", "my.yaml", "--json")
    assert result.code == 0, result.err
    printed = json.loads(result.out)  # once
    assert "ranks: 3 processes share the images" in result.err
    assert result.err.count("calibrating …\n") == 1
    found = project.state()
    assert found.keys() == wanted.keys()
    timed = {"report.json", "report.md", "report.html"}
    assert {k: v for k, v in found.items() if k not in timed} == {
        k: v for k, v in wanted.items() if k not in timed
    }
    assert untimed(printed["report"]) == untimed(json.loads(wanted["report.json"]))


def test_results_are_fresh_for_several_and_for_one(
    alone: tuple[Project, dict[str, bytes]],
) -> None:
    project, before = alone
    for name, content in before.items():
        (project.output / name).write_bytes(content)
    result = torchrun(project, 2, "calibrate", "my.yaml", "--json")
    assert result.code == 0, result.err
    assert not re.search("^(fuse|calibrate): ", result.err, re.M), result.err
    one = project.run("calibrate", "--json")
    assert json.loads(result.out)["accuracy"] == json.loads(one.out)["accuracy"]
    assert project.state() == before


def test_one_message_names_every_unreadable_image(project: Project) -> None:
    project.qconfig(data={"calibration": "images", "transform": "prepare.py:prepare"})
    (project.folder / "prepare.py").write_text(TRANSFORM)
    # Of the 18 images the first 16 prove the fused model equal, on rank 0.
    for name in ("dog/4.png", "dog/5.png"):
        (project.folder / "images" / name).write_bytes(b"no image")
    want = project.run("calibrate", *BATCHES)
    assert want.code == 4
    folders = [project.folder] * 3
    results = Team.start(folders, "calibrate", "my.yaml", *BATCHES).end()
    check_told_once(want, results)
    for name in ("dog/4.png", "dog/5.png"):
        assert f"images/{name}: is no image" in results[0].err


def test_error_of_one_rank_is_told_once_as_by_one_process(project: Project) -> None:
    """A NaN is found by rank 1, whose turn comes with every other batch of three."""
    project.qconfig(data={"calibration": "images", "transform": "prepare.py:prepare"})
    (project.folder / "prepare.py").write_text(TRANSFORM)
    options = ("calibrate", "my.yaml", "--set", "calibration.batch_size=3")
    (want,) = Team.start([project.folder], *options, more={"NAN": "dog/4.png"}).end()
    assert want.code == 4
    assert "dog/4.png" in want.err
    results = Team.start([project.folder] * 2, *options, more={"NAN": "dog/4.png"}).end()
    check_told_once(want, results)


def check_told_once(want: Result, results: list[Result]) -> None:
    """The last message is that of one process, and other ranks say nothing."""
    assert {result.code for result in results} == {want.code}
    message = want.err[want.err.index("error (") :]
    assert results[0].err.endswith(message)
    assert results[0].err.count("error (") == 1
    assert [(r.out, r.err) for r in results[1:]] == [("", "")] * (len(results) - 1)


def test_ranks_that_have_other_files_or_none_are_named(project: Project, tmp_path: Path) -> None:
    other = copy_of(project, tmp_path / "other")
    (other.folder / "images" / "cat" / "0.png").unlink()
    other.qconfig(calibration={"averaging": 0.5})
    (tmp_path / "empty").mkdir()
    folders = [project.folder, project.folder, other.folder, tmp_path / "empty"]
    results = Team.start(folders, "fuse", "my.yaml").end()
    for result in results:
        assert result.code == 6, result
        assert result.err.count("error (ranks: rank-differs)") == 1
        assert (
            "rank 2: calibration.averaging of the qconfig differs: 0.5 there, 0.01 on rank 0\n"
        ) in result.err
        assert re.search(
            r"^rank 2: the images of data.calibration differ: 17 files, \w+ there, 18 files, \w+ "
            "on rank 0$",
            result.err,
            re.M,
        )
        assert "rank 3: my.yaml: cannot be read: No such file" in result.err
        assert "rank 1" not in result.err
        assert "Traceback" not in result.err
    assert not project.output.exists()


def test_ranks_that_build_other_weights_are_named(project: Project) -> None:
    project.qconfig(model={"source": "network.py:drawn"})
    with (project.folder / "network.py").open("a") as file:
        file.write(DRAWN)
    results = Team.start([project.folder] * 2, "calibrate", "my.yaml").end()
    for result in results:
        assert result.code == 6, result
        assert "rank 1: the fused model's weights differ: " in result.err
        assert "fix: give the weights as `model.checkpoint`" in result.err


def lost(project: Project) -> None:
    """Lets rank 1 be killed at an image of its share."""
    project.qconfig(data={"calibration": "images", "transform": "prepare.py:prepare"})
    (project.folder / "prepare.py").write_text(TRANSFORM)


def test_killed_rank_is_told_by_the_others(project: Project) -> None:
    lost(project)
    folders = [project.folder] * 3
    last = {"LAST": "cow/2.png", **BRIEF}
    team = Team.start(folders, "calibrate", "my.yaml", *BATCHES, more=last)
    results = team.end()
    assert [result.code for result in results] == [6, -signal.SIGKILL, 6]
    for result in (results[0], results[2]):
        assert result.err.endswith(
            "error (ranks: rank-lost)\n"
            f"nothing was heard of rank 1 for {LIMIT_S} s (QCONVERT_RANK_TIMEOUT)\n"
            "fix: look at what that process said last, and whether its machine was out of memory; "
            "the same command goes on from where it was\n"
        )
        assert "Traceback" not in result.err
    assert sorted(project.state()) == ["float.pt", "fused.json", "fused.pt"]  # whole


def test_killed_rank_under_torchrun_is_told(project: Project) -> None:
    """torchrun ends the others at once, before they have missed it."""
    lost(project)
    last = {"LAST": "cow/2.png"}
    result = torchrun(project, 3, "calibrate", "my.yaml", *BATCHES, more=last)
    assert result.code != 0
    assert result.err.count("error (ranks: rank-lost)\nrank 1 was killed or crashed\n") == 2
    assert "interrupted" not in result.err
    assert sorted(project.state()) == ["float.pt", "fused.json", "fused.pt"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_rank_0_ends_the_others(project: Project, number: signal.Signals) -> None:
    """Killed, its connections close; of a machine that is lost nothing comes any more."""
    team = Team.start([project.folder] * 2, "benchmark", "my.yaml", *LONG, more=BRIEF)
    team.wait_for("measuring latency …")
    first, other = team.processes
    first.send_signal(number)
    _, said = other.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert other.returncode == 6
    assert said.startswith("error (ranks: rank-lost)\n")
    assert "Traceback" not in said


def test_interrupted_team_says_so_once(project: Project) -> None:
    team = Team.start([project.folder] * 2, "benchmark", "my.yaml", *LONG)
    team.wait_for("measuring latency …")
    for process in team.processes:
        process.send_signal(signal.SIGINT)
    results = team.end()
    assert [result.code for result in results] == [130, 130]
    assert results[0].err.count("interrupted by SIGINT") == 1
    assert results[1].err == ""


def test_waiting_rank_sleeps(project: Project) -> None:
    """While rank 0 measures latency: the other one's processor time, as the system counts it."""
    team = Team.start([project.folder] * 2, "benchmark", "my.yaml", "--set", "benchmark.seconds=8")
    team.wait_for("measuring latency …")
    other = Path(f"/proc/{team.processes[1].pid}/stat")

    def ticks() -> int:
        return sum(map(int, other.read_text().rpartition(")")[2].split()[11:13]))

    before = ticks()
    first = team.processes[0]
    assert first.stdout is not None
    first.stdout.readline()  # the result: latency has been measured
    after = ticks()
    assert all(result.code == 0 for result in team.end())
    assert after - before < 20  # of 100 a second; eight seconds have passed


def test_environment_that_is_not_torchruns(project: Project) -> None:
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "4"}
    result = Project(project.folder, environment).run("fuse")
    assert result.code == 6
    assert result.err == (
        "error (ranks: rank-setup)\n"
        "environment: RANK and WORLD_SIZE are set, MASTER_ADDR and MASTER_PORT not\n"
        "fix: start the command with torchrun (docs/cluster.md), or unset RANK and WORLD_SIZE\n"
    )
