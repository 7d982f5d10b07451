"""What the docs say is so: commands run as written, generated pages are current, links lead on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qconvert import errors_reference, operators_reference, qconfig_reference
from qconvert.qconfig_file import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(command: str | list[str]) -> subprocess.CompletedProcess[str]:
    """A command in the project's folder, as a reader would paste it."""
    return subprocess.run(
        command,
        cwd=ROOT,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_demo_and_the_example_run_as_written() -> None:
    """The four commands on the embedded sample, then its use without qconvert."""
    assert blocks("console")[0].startswith("make demo ")
    done = run("make demo")
    # Speed on a busy machine is no matter of a test; everything else is.
    missed = re.findall(r"budget missed\)\s+(\w+):", done.stderr)
    assert set(missed) <= {"min_speedup"}, done.stderr
    assert (done.returncode == 0) == (not missed)
    assert "build/fashion/report.md" in done.stdout
    (example,) = blocks("python")
    assert "qconvert" not in re.sub(r"#.*", "", example)
    done = run([sys.executable, "-I", "-W", "error::UserWarning", "-c", example])
    assert done.returncode == 0, done.stderr
    name, share = done.stdout.split()
    assert name == "bag"
    assert float(share) > 0.9


def test_commands_of_the_readme_run_as_written() -> None:
    """They find everything fresh after `make demo`."""
    (block,) = [text for text in blocks("console") if "qconvert fuse" in text]
    commands = [line.partition("#")[0] for line in block.splitlines()]
    assert [command.split()[1] for command in commands] == [
        "fuse", "calibrate", "convert", "benchmark",
    ]  # fmt: skip
    for command in commands:
        done = run(f"{command} --quiet --set benchmark.seconds=0.5 --set budgets.min_speedup=0.01")
        assert done.returncode == 0, done.stderr


def test_make_help_lists_the_targets_of_the_readme() -> None:
    done = run("make help")
    for target in ("demo", "test", "install", "figures", "demo-imagenet"):
        assert f"make {target} " in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_ready_qconfig_loads(path: Path, tmp_path: Path) -> None:
    """Those whose images must be fetched first are loaded with others in their place."""
    sample = ROOT / "sample_models" / "fashion"
    fetched = [
        f"model.checkpoint={sample / 'weights.pt'}",
        f"data.calibration={sample / 'calibration'}",
        f"data.evaluation={sample / 'test'}",
    ]
    if path.stem == "mobilenet_v2":
        fetched.append(f"data.classes={sample / 'classes.txt'}")
    elif path.stem == "efficientnet_lite0":
        fetched.append(f"model.source={sample / 'network.py'}:fashion_net")
    assert load(path, () if path.stem == "fashion" else fetched).version == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (qconfig_reference.SCHEMA, qconfig_reference.schema),
        (qconfig_reference.PAGE, qconfig_reference.page),
        (errors_reference.PAGE, errors_reference.page),
        (operators_reference.PAGE, operators_reference.page),
    ],
    ids=["schema", "settings", "errors", "operators"],
)
def test_generated_pages_are_current(name: str, content: Callable[[], str]) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == content(), "run `make docs`"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))])  # fmt: skip
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_readme_yaml_is_a_qconfig(tmp_path: Path) -> None:
    """With a network, weights and images where it says they are."""
    (tmp_path / "network.py").write_text("")
    (tmp_path / "weights.pt").write_bytes(b"")
    for folder in ("calibration", "test"):
        (tmp_path / "images" / folder).mkdir(parents=True)
    full, layers = blocks("yaml")
    (tmp_path / "my.yaml").write_text(full + layers)
    config = load(tmp_path / "my.yaml")
    assert config.data.preprocess.crop == 224
    assert [rule.precision for rule in config.quantization.layers] == ["float32", "auto"]
