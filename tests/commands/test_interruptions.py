"""Runs that end early, and two at once: earlier results stay whole, nothing is left behind, and the
same command then finishes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from project import QCONVERT, UNMEASURED, Project, Result


class Run:
    """A command that is going on, in a process group of its own, as a shell starts it."""

    def __init__(self, project: Project, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [*QCONVERT, *arguments],
            cwd=project.folder,
            env=UNMEASURED,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._seen: list[str] = []

    def wait_for(self, line: str) -> None:
        """Reads what the command says until it says this."""
        assert self._process.stderr is not None
        for said in self._process.stderr:
            self._seen.append(said)
            if said == line + "\n":
                return
        raise AssertionError(f"{line!r} was not said: {''.join(self._seen)}")

    def send(self, number: signal.Signals) -> None:
        """Ctrl-C and a killed machine reach every process of the group, SIGTERM the command."""
        if number is signal.SIGTERM:
            self._process.send_signal(number)
        else:
            os.killpg(self._process.pid, number)

    def end(self) -> Result:
        """Waits for the end."""
        out, err = self._process.communicate(timeout=120)
        return Result(self._process.returncode, out, "".join(self._seen) + err)

    def children(self) -> bool:
        """Whether a process that it started is still there."""
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        return True


@pytest.fixture(scope="module")
def base(
    make_project: Callable[[Path], Project], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, dict[str, bytes]]:
    """A project after all steps, and its results. The images are enlarged: a step takes long enough
    to be met in the middle."""
    project = make_project(tmp_path_factory.mktemp("base") / "project")
    project.qconfig(
        data={"calibration": "images", "preprocess": {"mean": [0.5], "std": [0.25], "resize": 192}}
    )
    result = project.run("benchmark", "--quiet", "--set", "benchmark.seconds=0.2")
    assert result.code == 0, result.err
    return project, project.state()


@pytest.fixture
def whole(base: tuple[Project, dict[str, bytes]]) -> Project:
    """The project with all results of `base`, whatever the test before has made of them."""
    project, state = base
    for path in project.output.iterdir():
        path.unlink()
    for name, content in state.items():
        (project.output / name).write_bytes(content)
    return project


BRIEF = ("--set", "benchmark.seconds=0.2")
# By command: a setting that makes its step stale, and what it says when it is in the middle, where
# it is sent SIGINT and, another time, SIGTERM.
STEPS = {
    "fuse": (
        ("--set", "fuse.modules=[['0', '1']]"),
        ("building the float model …", "fusing and comparing with the original …"),
    ),
    "calibrate": (("--set", "calibration.averaging=0.5"), ("calibrating …", "calibrating …")),
    "convert": (
        ("--set", "quantization.weights.observer=minmax"),
        ("lowering to int8 …", "verifying the file in a fresh process …"),
    ),
    "benchmark": ((), ("measuring latency …", "measuring latency …")),
}


def results(project: Project) -> dict[str, bytes]:
    """What is in the output folder, but for the record of overflow: on CPUs without VNNI that is a
    step of its own, which `convert` has finished before."""
    return {name: found for name, found in project.state().items() if name != "overflow.json"}


@pytest.mark.parametrize("command", STEPS)
def test_interrupted_run_leaves_everything_whole(whole: Project, command: str) -> None:
    options, lines = STEPS[command]
    before = results(whole)
    for number, line in zip((signal.SIGINT, signal.SIGTERM), lines, strict=True):
        run = Run(whole, command, "my.yaml", *BRIEF, *options)
        run.wait_for(line)
        run.send(number)
        result = run.end()
        assert result.code == 128 + number, result.err
        assert result.err.splitlines()[-1] == (
            f"interrupted by {number.name}: what was finished before is whole, and the same "
            "command goes on from there"
        )
        assert "Traceback" not in result.err
        assert result.out == ""
        assert results(whole) == before
        assert not run.children()
    result = whole.run(command, *BRIEF, *options)
    assert result.code == 0, result.err


def test_killed_run_is_tidied_up_by_the_next(whole: Project) -> None:
    """SIGKILL leaves no time for it, as a lost power supply does."""
    before = results(whole)
    run = Run(whole, "convert", "my.yaml", *BRIEF, "--set", "quantization.weights.observer=minmax")
    run.wait_for("verifying the file in a fresh process …")
    run.send(signal.SIGKILL)
    assert run.end().code == -signal.SIGKILL
    left = results(whole)
    assert {name: left[name] for name in before} == before
    assert [name for name in left if name not in before] == [
        name for name in left if name.startswith(".") and name.endswith("tmp")
    ]
    assert len(left) > len(before)  # or there would be nothing to tidy up
    result = whole.run("fuse", "--quiet", *BRIEF)
    assert result.code == 0, result.err
    assert results(whole) == before


def test_second_run_waits_for_the_first_and_uses_its_results(whole: Project) -> None:
    options = ("my.yaml", *BRIEF, "--set", "calibration.averaging=0.25")
    first = Run(whole, "calibrate", *options)
    first.wait_for("calibrating …")
    second = Run(whole, "calibrate", *options)
    second.wait_for(f"another run is using {whole.output}: waiting for it")
    results = [run.end() for run in (first, second)]
    assert [result.code for result in results] == [0, 0], results
    reasons = [
        [line for line in result.err.splitlines() if line.startswith(("fuse: ", "calibrate: "))]
        for result in results
    ]
    assert reasons == [["calibrate: its inputs have changed"], []]
