"""`qconvert inspect`: what it tells of a qconfig and of files, and what it says to mistakes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from project import Project
from safetensors.torch import save_file
from torch import nn

from qconvert import torchscript

SVG = "{http://www.w3.org/2000/svg}"


def rows(path: Path) -> list[ET.Element]:
    return ET.parse(path).getroot().findall(f"{SVG}g[@id='rows']/{SVG}g")


@pytest.fixture(scope="module")
def finished(make_project, tmp_path_factory) -> Project:
    """A project that was converted."""
    project = make_project(tmp_path_factory.mktemp("inspect") / "project")
    result = project.run("convert", "--quiet")
    assert result.code == 0, result.err
    return project


def test_qconfig_is_foretold_as_it_is_converted_then(finished: Project) -> None:
    before = finished.state()
    result = finished.run("inspect", "--json", "--svg", "graph.svg")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    plan = finished.record("plan.json")
    assert {o["name"]: (o["precision"], o["kernel"]) for o in told["operators"]} == {
        o["name"]: (o["precision"], o["kernel"]) for o in plan["operators"]
    }
    coverage = finished.record("convert.json")["coverage"]
    assert told["summary"]["boundaries"] == coverage["boundaries"]
    assert told["summary"]["macs"] == coverage["macs"]
    assert told["files"] == ["graph.svg"]
    assert finished.state() == before
    # The input, the operators, the output.
    assert len(rows(finished.folder / "graph.svg")) == len(told["operators"]) + 2


def test_qconfig_needs_no_step_before_and_writes_nothing(project: Project) -> None:
    result = project.run("inspect")
    assert result.code == 0, result.err
    assert not project.output.exists()
    for text in ("2.conv1", "conv2d bn relu", "Summary", "quantized::"):
        assert text in result.out
    assert "building the float model" in result.err
    other = project.run("inspect", "--quiet", "--set", "quantization.decide=int8", "--json")
    assert json.loads(other.out)["summary"]["macs_shares"]["int8"] == 1
    assert other.err == ""


PICKY = """
from torch import nn

class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        if x.mean() > -1e9:
            x = self.conv(x)
        return x

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Picky(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 3)
    )
"""


def test_code_that_is_kept_as_written_is_named_with_its_line(project: Project) -> None:
    (project.folder / "network.py").write_text(PICKY)
    project.qconfig(model={"source": "network.py:network"})
    result = project.run("inspect", "--json", "--svg", "graph.svg")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    (kept,) = told["kept"]
    assert kept["path"] == "2"
    assert "network.py:10: if x.mean() > -1e9:" in kept["reason"]
    first = told["blocks"][0]
    assert (first["topic"], first["block"], first["paths"]) == ("kept as written", "Picky", ["2"])
    assert first["macs_share"] == 0  # the convolution that it calls is converted
    assert "model.fixed: [2]" in first["advice"]
    assert [part["path"] for part in told["parts"]] == ["", "2.conv"]
    drawn = rows(project.folder / "graph.svg")
    # The code's begin and end, with what it calls between them.
    kinds = [row.get("class") for row in drawn]
    names = [row.findtext(f"{SVG}text") for row in drawn]
    begin, end = (i for i, kind in enumerate(kinds) if kind == "other")
    assert names[begin : end + 1] == ["2", "· 2.conv", "2"]
    assert kinds.count("end") == 2  # what the convolution reads is no input of the model


WHOLE = PICKY.replace("nn.Sequential(", "Whole(").replace(
    "class Picky",
    """class Whole(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = layer(x)
        if x.mean() > 1e9:
            x = -x
        return x

class Picky""",
)


def test_code_of_the_model_itself_is_drawn_around_its_parts(project: Project) -> None:
    (project.folder / "network.py").write_text(WHOLE)
    project.qconfig(model={"source": "network.py:network"})
    result = project.run("inspect", "--json", "--svg", "graph.svg")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert list(told["inputs"]) == ["input"] or list(told["inputs"]) == ["x"]
    names = [row.findtext(f"{SVG}text") for row in rows(project.folder / "graph.svg")]
    assert (names[1], names[-2], names[-1]) == ("the model", "the model", "output")
    assert "· 0" in names
    assert "· · 2.conv" in names


NEVER = PICKY.replace("> -1e9", "> 1e9").replace(
    "        return x",
    """        names = {str(i): x for i in range(2)}
        return names["{}".format(*["1"])]""",
)


def test_code_that_torchscript_cannot_compile_is_refused_as_convert_does(project: Project) -> None:
    (project.folder / "network.py").write_text(NEVER)
    project.qconfig(model={"source": "network.py:network"})
    result = project.run("inspect")
    assert result.code != 0
    assert "TorchScript cannot compile it" in result.err
    assert project.run("convert", "--quiet").err.splitlines()[-2:] == result.err.splitlines()[-2:]


def test_own_file_is_told_with_its_manifest(finished: Project) -> None:
    result = finished.call("inspect", "out/model.int8.pt", "--svg", "file.svg")
    assert result.code == 0, result.err
    manifest = json.loads(torch_manifest(finished.output / "model.int8.pt"))
    kernels = {kernel for _, _, kernel in manifest["operators"] if kernel}
    for text in (*kernels, "qint8", "made with", "cat, cow, dog", "quantized engine of torch"):
        assert text in result.out
    assert "of multiply-accumulates in int8" in result.out
    assert rows(finished.folder / "file.svg")
    whole = finished.call("inspect", "out/model.int8.pt", "--json", "--shape", "1,3,16,16")
    told = json.loads(whole.out)
    assert told["manifest"] == manifest
    assert told["coverage"]["macs"] == finished.record("convert.json")["coverage"]["macs"]


def torch_manifest(path: Path) -> str:
    files = {"manifest.json": ""}
    torchscript.load(path, files)
    return files["manifest.json"]


def lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def cut(path: Path) -> None:
    script = torchscript.trace(nn.Conv2d(3, 8, 3).eval(), [torch.rand(1, 3, 8, 8)])
    path.write_bytes(torchscript.to_bytes(script)[:-200])


def damaged(path: Path) -> None:
    """Its code is no code."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"m/{name}", "3\n")


def flipped(path: Path) -> None:
    """Some bytes of a weight are others."""
    layer = nn.Conv2d(3, 8, 3).eval()
    script = torchscript.trace(layer, [torch.rand(1, 3, 8, 8)])
    data, weight = torchscript.to_bytes(script), layer.weight.detach().numpy().tobytes()
    assert weight in data
    path.write_bytes(data.replace(weight, bytes(8) + weight[8:]))


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (None, "nothing.pt", "cannot be read: No such file or directory"),
        (lambda p: p.mkdir(), "folder.pt", "cannot be read: Is a directory"),
        (lfs, "m.pt", "is a pointer of Git LFS"),
        (cut, "m.pt", "is a damaged or cut-off archive"),
        (flipped, "m.pt", "is a damaged TorchScript file: the check sum of"),
        (lambda p: torch.save(nn.ReLU(), p), "m.pt", "is a whole pickled module, not weights"),
        (damaged, "m.pt", "is a TorchScript file that torch cannot load"),
        (lambda p: torch.save({"w": torch.ones(3)}, p), "w.pth", "is a checkpoint that torch.save"),
        (
            lambda p: torch.save({}, p, _use_new_zipfile_serialization=False),
            "old.pth",
            "is a pickle",
        ),
        (
            lambda p: save_file({"w": torch.ones(3)}, p),
            "w.safetensors",
            "is a safetensors file: weights without a model",
        ),
        (lambda p: p.write_text("hello"), "m.txt", "is neither a qconfig"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." not in value else "",
)
def test_file_that_is_no_model(tmp_path: Path, make, name: str, says: str) -> None:
    if make is not None:
        make(tmp_path / name)
    result = Project(tmp_path).call("inspect", name, "--json")
    assert result.code == 3
    assert says in result.err
    assert "fix: " in result.err
    assert "Traceback" not in result.err
    told = json.loads(result.out)
    assert (told["command"], told["error"]["kind"]) == ("inspect", "model-file")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("missing.yaml",), 2, "cannot be read: No such file or directory"),
        (("my.yaml", "--shape", "1,3,8,8"), 2, "--shape is for files"),
        (("weights.pt", "--set", "output=x"), 2, "--set is for a qconfig"),
        (("weights.pt", "--shape", "1,3,-8"), 2, "not numbers above 0"),
        (("my.yaml", "--svg", "images"), 2, "cannot be written"),
        (("my.yaml", "--set", "quantization.layers=[{match: nope, precision: int8}]"), 2, "nope"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_in_the_command(
    project: Project, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = project.call("inspect", *arguments)
    assert result.code == code
    assert says in result.err
    assert "Traceback" not in result.err
