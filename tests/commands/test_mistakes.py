"""A user's mistakes, each made as she makes it: what is changed in a project that works, and the
whole of what she is told."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from project import UNMEASURED, Project
from safetensors.torch import save_file
from torch import nn

# A mistake takes the project, and by its parameters' names what other fixtures it needs.
Mistake = Callable[..., Any]

# ---- What a user does


def nothing(project: Project) -> None:
    """The mistake is in the command."""


def line(text: str) -> Mistake:
    """Adds a line to the qconfig, in the place of a section of the same name."""

    def spoil(project: Project) -> None:
        if text.startswith("quantization:"):
            project.qconfig(quantization=None)
        path = project.folder / "my.yaml"
        path.write_text(path.read_text() + text + "\n")

    return spoil


def edit(*changes: tuple[str, str]) -> Mistake:
    """Replaces text in the qconfig."""

    def spoil(project: Project) -> None:
        path = project.folder / "my.yaml"
        text = path.read_text()
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        path.write_text(text)

    return spoil


def file(name: str, content: str | bytes) -> Mistake:
    """Writes a file."""

    def spoil(project: Project) -> None:
        path = project.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def folder(name: str) -> Mistake:
    """Makes an empty folder."""
    return lambda project: (project.folder / name).mkdir()


def no_access(name: str, mode: int = 0) -> Mistake:
    """Takes away the rights on a file or folder."""
    return lambda project: (project.folder / name).chmod(mode)


def source(code: str, name: str = "network") -> Mistake:
    """Writes network.py and builds the model from it, without a checkpoint."""

    def spoil(project: Project) -> None:
        (project.folder / "network.py").write_text(code)
        project.qconfig(model={"source": f"network.py:{name}"})

    return spoil


def model(**section: Any) -> Mistake:
    """Writes the section `model` of the qconfig."""
    return lambda project: project.qconfig(model=section)


def data(**section: Any) -> Mistake:
    """Writes the section `data` of the qconfig."""
    return lambda project: project.qconfig(data={"calibration": "images", **section})


def saved(content: Any) -> Mistake:
    """Saves something else as the checkpoint."""
    return lambda project: torch.save(content, project.folder / "weights.pt")


def changed(change: Callable[[dict[str, Any]], Any]) -> Mistake:
    """Changes the weights in the checkpoint."""

    def spoil(project: Project) -> None:
        path = project.folder / "weights.pt"
        state = torch.load(path, weights_only=True)
        torch.save(change(state) or state, path)

    return spoil


def cut(name: str) -> Mistake:
    """Cuts a file off in the middle; an image is saved in the format of its name before."""

    def spoil(project: Project) -> None:
        path = project.folder / name
        if path.suffix in (".png", ".jpg"):
            Image.effect_noise((64, 64), 50).convert("RGB").save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return spoil


def arrays(*content: Any) -> Mistake:
    """Makes a folder of .npy files, and calibrates on it."""

    def spoil(project: Project) -> None:
        (project.folder / "arrays").mkdir()
        for i, array in enumerate(content):
            np.save(project.folder / "arrays" / f"{i}.npy", array)
        project.qconfig(data={"calibration": "arrays", "labels": "none"})

    return spoil


def transform(code: str) -> Mistake:
    """Prepares images with the user's own code."""
    return both(file("prepare.py", code), data(transform="prepare.py:prepare"))


def both(*mistakes: Mistake) -> Mistake:
    """Makes several, one after the other."""

    def spoil(project: Project) -> None:
        for mistake in mistakes:
            mistake(project)

    return spoil


def huge_image(project: Project, claim_size: Callable[[Path, int], Path]) -> None:
    claim_size(project.folder / "images/cat/0.png", 50_000)


def other_size(project: Project) -> None:
    Image.new("RGB", (20, 20)).save(project.folder / "images/cat/0.png")


def torchscript_file(project: Project) -> None:
    archive = torch.jit.script(nn.ReLU())
    torch.jit.save(archive, project.folder / "weights.pt")


def cut_safetensors(project: Project) -> None:
    state = torch.load(project.folder / "weights.pt", weights_only=True)
    save_file(state, project.folder / "weights.safetensors")
    cut("weights.safetensors")(project)
    edit(("weights.pt", "weights.safetensors"))(project)


class Malicious:
    """Its pickle makes a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


FIXED_SIZE = """\
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
"""


# A line that torch.fx cannot trace, and one that TorchScript cannot compile.
TURNED = ("if x.sum() > 0:", "    return x", "return -x")
NO_SCRIPT = ("names = {str(i): x for i in range(2)}", "return names['{}'.format(*['1'])]")
INNER = """\
from torch import nn

class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 3, 3)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        names = {"a": x}
        if x.sum() > 0:
            x = -x
        return names["{}".format(*["a"])] + x

class network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3), Inner()

    def forward(self, x):
        return self.inner(self.stem(x))
"""
TRACED = (
    "torch.fx cannot trace its code: its code asks whether something in a tensor is so, which "
    "differs from image to image"
)


def forward(*lines: str, inputs: str = "x") -> Mistake:
    """A model of one convolution, and what its `forward` does (from line 9 of network.py)."""
    head = """\
from torch import nn

class network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 16)

    def forward(self, {}):
"""
    return source(head.format(inputs) + "".join(f"        {text}\n" for text in lines))


# ---- What she is told

# By kind of error: the exit code, the group, and the usual way to put it right.
KINDS = {
    "qconfig": (2, "qconfig",
        "correct the file, or the --set option; docs/qconfig.md has all keys"),
    "qconfig-file": (2, "qconfig",
        "correct the file; `qconvert init` writes one to start from"),
    "output": (2, "output",
        "make room, or name another folder with `output:` or --output"),
    "model-source": (3, "model",
        "correct the code or the name; --debug shows the whole traceback"),
    "checkpoint-file": (3, "model",
        "save the weights again: torch.save(model.state_dict(), 'weights.pt')"),
    "checkpoint-unsafe": (3, "model",
        "where you trust the file, save its weights alone: "
        "torch.save(model.state_dict(), 'weights.pt')"),
    "checkpoint-keys": (3, "model",
        "give the checkpoint of this model (its `model.kwargs` too), or name the right part with "
        "`model.checkpoint_key`"),
    "model-input": (3, "model",
        "correct `data.preprocess` (channels, resize, crop), `data.transform` or the model"),
    "model-output": (3, "model",
        "name a callable that wraps the model and returns tensors"),
    "no-images": (4, "images",
        "name a folder with .bmp, .jpeg, .jpg, .npy, .pgm, .png, .ppm, .tif, .tiff, .webp files"),
    "bad-image": (4, "images",
        "repair or remove the file, or write `data.on_bad_image: skip`"),
    "image-size": (4, "images",
        "set `data.preprocess.resize: [height, width]`, or a `crop`"),
    "labels": (4, "images",
        "name every class in `data.classes`, in the model's order"),
    "transform": (4, "images",
        "correct the callable; --debug shows the whole traceback"),
    "not-finite": (4, "images",
        "remove the image; if all are named, correct the weights or `data.preprocess`"),
    "untraceable": (5, "conversion",
        "move the layers into modules of their own, which this code calls; or, if it goes the same "
        "way for all images, write `model.fixed: all`"),
    "unsupported": (5, "conversion",
        "name a callable that builds the model without it"),
    "verification": (5, "conversion",
        "give the trained weights with `model.checkpoint`, and images that differ"),
}  # fmt: skip
CLASSES_FIX = (
    "name all classes in `data.classes`, in the model's order, or `labels: none`; "
    "`model.answers: none` if the outputs are no classes"
)


def row(
    name: str,
    mistake: Mistake,
    kind: str,
    *facts: str,
    fix: str | None = None,
    command: str = "fuse my.yaml --quiet",
    needs_rights: bool = False,
) -> Any:
    """One mistake: `facts` and `fix` are the lines of the message, in which `<project>` is the
    project's folder and `<...>` what torch, Pillow or the system says."""
    code, group, usual_fix = KINDS[kind]
    told = [f"error ({group}: {kind})", *facts, f"fix: {fix or usual_fix}"]
    return pytest.param(mistake, command, needs_rights, code, told, id=f"{kind}: {name}")


def usage(name: str, command: str, fact: str) -> Any:
    """One command line that cannot be understood."""
    told = ["Usage: <...>", "Try <...> for help.", "", f"Error: {fact}"]
    return pytest.param(nothing, command, False, 2, told, id=f"usage: {name}")


SAVE_THE_PART = (
    "where you trust the file, save its weights alone: torch.save(torch.load('weights.pt', "
    "weights_only=False)['model'], 'weights-only.pt'), where 'model' is the key that they are under"
)

# fmt: off
TABLE = [
    # ---- the command line
    usage("no such command", "convrt my.yaml", "No such command 'convrt'.<...>"),
    usage("no such option", "fuse my.yaml --quite", "No such option: --quite<...>"),
    usage("no qconfig named", "fuse", "Missing argument 'QCONFIG'."),
    usage("two qconfigs", "fuse my.yaml other.yaml", "Got unexpected extra argument<...>"),
    usage("init without a source", "init --images images", "Missing option '--source'."),
    usage("init without images", "init --source a:b", "Missing option '--images'."),
    row("init with what is not there", nothing, "qconfig",
        "init: --images: there is no folder imgs",
        "init: --checkpoint: there is no file w.pt",
        "init: --evaluation: there is no folder test",
        "init: --source: there is no file net.py",
        "init: --kwargs: '[1]' is no mapping in YAML, as {num_classes: 10}",
        fix="correct the options",
        command="init --source net.py:net --images imgs --checkpoint w.pt --evaluation test "
        "--kwargs [1]"),
    row("init over a qconfig", nothing, "qconfig",
        "init: my.yaml is there already; --force replaces it",
        fix="correct the options",
        command="init my.yaml --source network.py:network --images images"),
    row("--set without a value", nothing, "qconfig",
        "my.yaml: --set calibration.images: is not key=value",
        command="fuse my.yaml --quiet --set calibration.images"),
    row("--set of an unknown key", nothing, "qconfig",
        "my.yaml: calibration.image: unknown key; did you mean 'images'?",
        command="fuse my.yaml --quiet --set calibration.image=3"),
    row("--set below a value", nothing, "qconfig",
        "my.yaml: --set version.major=3: version is no mapping of keys",
        command="fuse my.yaml --quiet --set version.major=3"),
    row("--set of what is not YAML", nothing, "qconfig-file",
        "--set model:1:2: is not valid YAML: <...>",
        fix="correct the option",
        command="fuse my.yaml --quiet --set model=["),

    # ---- the qconfig as a file
    row("not there", nothing, "qconfig-file",
        "mine.yaml: cannot be read: No such file or directory",
        fix="correct the path; `qconvert init` writes a qconfig to start from",
        command="fuse mine.yaml"),
    row("a folder", nothing, "qconfig-file",
        "images: cannot be read: Is a directory",
        fix="correct the path; `qconvert init` writes a qconfig to start from",
        command="fuse images"),
    row("not readable", no_access("my.yaml"), "qconfig-file",
        "my.yaml: cannot be read: Permission denied",
        fix="let this user read it", needs_rights=True),
    row("empty", file("my.yaml", ""), "qconfig-file",
        "my.yaml: is empty"),
    row("not a mapping", file("my.yaml", "- version: 1\n"), "qconfig-file",
        "my.yaml: is not a mapping of keys to values"),
    row("not UTF-8", file("my.yaml", "version: 1  # caf\xe9".encode("latin-1")), "qconfig-file",
        "my.yaml: cannot be read: is not UTF-8 text",
        fix="save it as UTF-8"),
    row("indented by a tab", edit(("  seconds", "\tseconds")), "qconfig-file",
        "my.yaml:2:1: is not valid YAML: found character '\\t' that cannot start any token"),
    row("a colon without quotes", edit(("output: out", "output: a: b")), "qconfig-file",
        "my.yaml:15:10: is not valid YAML: mapping values are not allowed here"),
    row("a key that stands twice", line("output: other"), "qconfig-file",
        "my.yaml:24:1: is not valid YAML: the key 'output' stands twice"),
    row("a control character", file("my.yaml", b"version: \0\n"), "qconfig-file",
        "my.yaml: is not valid YAML: unacceptable character #x0000: special characters are not "
        "allowed"),
    row("an alias of itself", line("budgets: &a {min_speedup: *a}"), "qconfig-file",
        "my.yaml: an alias (&name, *name) holds itself"),
    row("a Python object", line("budgets: !!python/object/apply:os.system [touch pwned]"),
        "qconfig-file",
        "my.yaml:24:10: is not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'"),

    # ---- keys and values
    row("unknown key", line("modle: {}"), "qconfig",
        "my.yaml: modle: unknown key; did you mean 'model'?"),
    row("unknown key like no other", line("zzz: {}"), "qconfig",
        "my.yaml: zzz: unknown key; known: version, model, data, fuse, calibration, "
        "quantization, recovery, finetune, benchmark, budgets, tune, output"),
    row("unknown key further in", line("quantization: {weights: {observr: minmax}}"), "qconfig",
        "my.yaml: quantization.weights.observr: unknown key; did you mean 'observer'?"),
    row("unknown observer", line("quantization: {activations: {observer: histgram}}"), "qconfig",
        "my.yaml: quantization.activations.observer: unknown observer 'histgram'; did you mean "
        "'histogram'? (one of 'auto', 'minmax', 'moving_average', 'percentile' or 'histogram')"),
    row("unknown labels", data(labels="folder"), "qconfig",
        "my.yaml: data.labels: unknown labels 'folder'; did you mean 'folders'? (`folders`, "
        "`none`, a CSV file, or a folder of masks as `masks/`)"),
    row("missing section", edit(("data:", "date:")), "qconfig",
        "my.yaml: data: is missing",
        "my.yaml: date: unknown key; did you mean 'data'?"),
    row("missing key", edit(("  source: network.py:network\n", "")), "qconfig",
        "my.yaml: model.source: is missing"),
    row("key without a value", edit(("output: out", "output:")), "qconfig",
        "my.yaml: output: input should be a path, not null"),
    row("another version", edit(("version: 1", "version: 2")), "qconfig",
        "my.yaml: version: must be 1, not 2"),
    row("value for a section", line("budgets: 0.5"), "qconfig",
        "my.yaml: budgets: input should be a mapping of keys to values, not 0.5"),
    row("word for a number", line("calibration: {images: many}"), "qconfig",
        "my.yaml: calibration.images: input should be a valid integer, not 'many'"),
    row("bool for a number", line("calibration: {images: true}"), "qconfig",
        "my.yaml: calibration.images: input should be a valid integer, not True"),
    row("quoted number", line("calibration: {images: '512'}"), "qconfig",
        "my.yaml: calibration.images: input should be a valid integer, not '512'"),
    row("fraction for a count", line("calibration: {images: 1.5}"), "qconfig",
        "my.yaml: calibration.images: input should be a valid integer, not 1.5"),
    row("negative count", line("calibration: {images: -1}"), "qconfig",
        "my.yaml: calibration.images: input should be greater than or equal to 1, not -1"),
    row("percent for a fraction", line("budgets: {min_agreement: 98}"), "qconfig",
        "my.yaml: budgets.min_agreement: input should be less than or equal to 1, not 98"),
    row("NaN", line("budgets: {min_speedup: .nan}"), "qconfig",
        "my.yaml: budgets.min_speedup: input should be greater than 0, not nan"),
    row("infinity", edit(("seconds: 0.05", "seconds: .inf")), "qconfig",
        "my.yaml: benchmark.seconds: is not a finite number"),
    row("NaN for the model", model(source="network.py:network", kwargs={"scale": float("nan")}),
        "qconfig",
        "my.yaml: model.kwargs: holds NaN, infinity or what JSON cannot hold"),
    row("number for a list", data(preprocess={"mean": 0.5}), "qconfig",
        "my.yaml: data.preprocess.mean: input should be a list, not 0.5"),
    row("empty list", edit(("threads:\n  - 1", "threads: []")), "qconfig",
        "my.yaml: benchmark.threads: input should have at least 1 item, not 0"),
    row("mean of another length", data(preprocess={"mean": [0.5, 0.5]}), "qconfig",
        "my.yaml: data.preprocess: mean has 2 values for 3 channels"),
    row("std of zero", data(preprocess={"std": [0]}), "qconfig",
        "my.yaml: data.preprocess.std[0]: input should be greater than 0, not 0"),
    row("preprocess and transform", data(preprocess={}, transform="network.py:network"), "qconfig",
        "my.yaml: data: give either `preprocess` or `transform`"),
    row("transform to pixels, and none to normalize them",
        data(input="uint8", transform="network.py:network"), "qconfig",
        "my.yaml: data: `input: uint8` with `transform`, which then returns pixels: give `mean` "
        "and `std` in `preprocess`, by which the files normalize them"),
    row("transform to pixels, and more of it",
        data(input="uint8", transform="network.py:network",
             preprocess={"mean": [0], "std": [1], "crop": 8, "resize": 9}), "qconfig",
        "my.yaml: data: with `transform`, which does it, `preprocess` has no crop, resize"),
    row("another kind of input", data(input="uint16"), "qconfig",
        "my.yaml: data.input: unknown input 'uint16'; did you mean 'uint8'? (one of 'float32' or "
        "'uint8')"),
    row("match and type", line("quantization: {layers: [{match: '0', type: Conv2d}]}"), "qconfig",
        "my.yaml: quantization.layers[0]: give either `match` or `type`"),
    row("contradiction",
        line("quantization: {weights: "
             "{observer: per_channel_minmax, granularity: per_tensor}}"), "qconfig",
        "my.yaml: quantization.weights: observer 'per_channel_minmax' contradicts granularity "
        "'per_tensor'; use observer 'minmax'"),
    row("names to fuse not in lists", line("fuse: {modules: [conv, bn]}"), "qconfig",
        "my.yaml: fuse.modules[0]: input should be a list, not 'conv'",
        "my.yaml: fuse.modules[1]: input should be a list, not 'bn'"),
    row("unset variable", edit(("weights.pt", "${NOT_SET}/weights.pt")), "qconfig",
        "my.yaml: model.checkpoint: the environment variable 'NOT_SET' is not set"),
    row("several at once", both(
            line("modle: {}"),
            line("calibration: {images: x}"),
            edit(("seconds: 0.05", "seconds: -1"), ("weights.pt", "${NOT_SET}")),
        ), "qconfig",
        "my.yaml: model.checkpoint: the environment variable 'NOT_SET' is not set",
        "my.yaml: calibration.images: input should be a valid integer, not 'x'",
        "my.yaml: benchmark.seconds: input should be greater than 0, not -1",
        "my.yaml: modle: unknown key; did you mean 'model'?"),
    row("no calibration folder", edit(("images", "imges")), "qconfig",
        "my.yaml: data.calibration: there is no folder <project>/imges"),
    row("no evaluation folder", data(evaluation="test"), "qconfig",
        "my.yaml: data.evaluation: there is no folder <project>/test"),
    row("no checkpoint", edit(("weights.pt", "wieghts.pt")), "qconfig",
        "my.yaml: model.checkpoint: there is no file <project>/wieghts.pt"),
    row("no source file", edit(("network.py", "netwrk.py")), "qconfig",
        "my.yaml: model.source: there is no file <project>/netwrk.py"),
    row("no transform file", data(transform="prepare.py:prepare"), "qconfig",
        "my.yaml: data.transform: there is no file <project>/prepare.py"),
    row("no classes file", data(classes="classes.txt"), "qconfig",
        "my.yaml: data.classes: there is no file <project>/classes.txt"),
    row("no table of labels", data(labels="labels.csv"), "qconfig",
        "my.yaml: data.labels: there is no file <project>/labels.csv"),
    row("rule that matches nothing",
        line("quantization: {layers: [{match: 2.conv9}, {type: Conv3d}]}"), "qconfig",
        "my.yaml: quantization.layers[0]: match: 2.conv9 matches no operator; did you mean "
        "'2.conv2'?",
        "my.yaml: quantization.layers[1]: type: Conv3d matches no operator; did you mean "
        "'Conv2d'?",
        command="calibrate my.yaml --quiet"),
    row("fusing what is not there", line("fuse: {modules: [['0', '9']]}"), "qconfig",
        "my.yaml: fuse.modules[0]: there is no operator '9'"),

    # ---- the output folder
    row("output that is a file", edit(("output: out", "output: weights.pt")), "qconfig",
        "my.yaml: output: <project>/weights.pt is a file, not a folder"),
    row("below a file", edit(("output: out", "output: weights.pt/out")), "output",
        "<project>/weights.pt/out: the output folder cannot be written: Not a directory"),
    row("not writable", both(folder("out"), no_access("out", 0o555)), "output",
        "<project>/out: the output folder cannot be written: Permission denied",
        needs_rights=True),
    row("in a folder that is not writable", no_access(".", 0o555), "output",
        "<project>/out: the output folder cannot be written: Permission denied",
        needs_rights=True),

    # ---- the model's source
    row("no such attribute", model(source="network.py:netwrk"), "model-source",
        "model.source: <project>/network.py has no 'netwrk'; did you mean 'network'?"),
    row("no callable named", model(source="resnet18"), "model-source",
        "model.source: 'resnet18' names no callable",
        fix="write torchvision:NAME, timm:NAME, package.module:callable or "
        "path/to/file.py:callable"),
    row("not callable", source("network = 3\n"), "model-source",
        "model.source: <project>/network.py:network is not callable"),
    row("syntax error", source("def network(:\n    pass\n"), "model-source",
        "model.source: importing it raised SyntaxError: <...> "
        "(<project>/network.py:1: def network(:)"),
    row("imports what is not installed", source("import no_such_package\n"), "model-source",
        "model.source: importing it raised ModuleNotFoundError: No module named "
        "'no_such_package' (<project>/network.py:1: import no_such_package)"),
    row("raises on import", source("raise ValueError('no licence')\n"), "model-source",
        "model.source: importing it raised ValueError: no licence "
        "(<project>/network.py:1: raise ValueError('no licence'))"),
    row("raises when called", source("def network():\n    return 1 / 0\n"), "model-source",
        "model.source: calling it with {} raised ZeroDivisionError: division by zero "
        "(<project>/network.py:2: return 1 / 0)"),
    row("unknown argument", model(source="network.py:network", kwargs={"clases": 3}),
        "model-source",
        "model.source: calling it with {'clases': 3} raised TypeError: network() got an "
        "unexpected keyword argument 'clases'"),
    row("returns no module", source("def network():\n    return {}\n"), "model-source",
        "model.source: <project>/network.py:network returned dict, not a torch.nn.Module",
        fix="name a function or class that returns the model"),
    row("no such package", model(source="no_such_package.models:network"), "model-source",
        "model.source: there is no module 'no_such_package.models' to import",
        fix="install it, or run in the folder that holds it"),
    row("not in torchvision", model(source="torchvision:resnet19"), "model-source",
        "model.source: torchvision has no model 'resnet19'; did you mean 'resnet18'?",
        fix="correct the name; torchvision.models.list_models() has them all"),
    row("not in timm", model(source="timm:resnet_18"), "model-source",
        "model.source: timm has no model 'resnet_18'; did you mean 'resnet18'?",
        fix="correct the name; timm.list_models() has them all"),

    # ---- the checkpoint
    row("of another model",
        both(forward("return x"), model(source="network.py:network", checkpoint="weights.pt"),
             saved({"conv.wieght": torch.zeros(3, 3, 16, 16), "head.bias": torch.zeros(3)})),
        "checkpoint-keys",
        "<project>/weights.pt: conv.bias is missing",
        "<project>/weights.pt: conv.weight is missing (nearest: conv.wieght)",
        "<project>/weights.pt: conv.wieght is not in the model (nearest: conv.weight)",
        "<project>/weights.pt: head.bias is not in the model"),
    row("of other shapes", edit(("  source:", "  kwargs: {classes: 5}\n  source:")),
        "checkpoint-keys",
        "<project>/weights.pt: 5.bias has shape [3], the model has [5]",
        "<project>/weights.pt: 5.weight has shape [3, 32], the model has [5, 32]"),
    row("empty", file("weights.pt", ""), "checkpoint-file",
        "<project>/weights.pt: is no checkpoint that torch.save wrote, or a damaged one"),
    row("text", file("weights.pt", "<html>404</html>\n"), "checkpoint-file",
        "<project>/weights.pt: is no checkpoint that torch.save wrote, or a damaged one"),
    row("cut off", cut("weights.pt"), "checkpoint-file",
        "<project>/weights.pt: is no checkpoint that torch.save wrote, or a damaged one"),
    row("cut off safetensors", cut_safetensors, "checkpoint-file",
        "<project>/weights.safetensors: is not a safetensors file: <...>"),
    row("not readable", no_access("weights.pt"), "checkpoint-file",
        "<project>/weights.pt: cannot be read: Permission denied",
        fix="let this user read it, or name another file", needs_rights=True),
    row("TorchScript", torchscript_file, "checkpoint-file",
        "<project>/weights.pt: is a TorchScript file, which holds a whole model",
        fix="save its weights: torch.save(torch.jit.load('model.pt').state_dict(), 'weights.pt')"),
    row("no weights in it", saved({"epoch": 3, "lr": 0.1}), "checkpoint-file",
        "<project>/weights.pt: holds no state_dict (a mapping of names to tensors); it has the "
        "keys epoch, lr",
        fix="name the part that holds it with `model.checkpoint_key`"),
    row("no such part", both(
            changed(lambda state: {"ema": state, "epoch": 3}),
            edit(("  checkpoint:", "  checkpoint_key: emma\n  checkpoint:")),
        ), "checkpoint-file",
        "<project>/weights.pt: has no 'emma'; it has ema, epoch",
        fix="correct `model.checkpoint_key`"),
    row("malicious", saved({"state_dict": {"0.weight": torch.zeros(1)}, "args": Malicious()}),
        "checkpoint-unsafe",
        "<project>/weights.pt: holds more than weights: loading it could run code, which "
        "qconvert never does (it names posix.system)", fix=SAVE_THE_PART),
    row("malicious, of plain pickle", file("weights.pt", pickle.dumps(Malicious())),
        "checkpoint-file",
        "<project>/weights.pt: is no checkpoint that torch.save wrote, or a damaged one"),
    row("a whole module", saved(nn.Sequential(nn.ReLU())), "checkpoint-unsafe",
        "<project>/weights.pt: is a whole pickled module, not weights: loading it would run "
        "code, which qconvert never does (it names torch.nn.modules.container.Sequential, "
        "torch.nn.modules.activation.ReLU)",
        fix="where you trust the file, save its weights alone: torch.save(torch.load("
        "'weights.pt', weights_only=False).state_dict(), 'weights-only.pt')"),
    row("arguments of training in it",
        changed(lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)}),
        "checkpoint-unsafe",
        "<project>/weights.pt: holds more than weights: loading it could run code, which "
        "qconvert never does (it names argparse.Namespace)", fix=SAVE_THE_PART),

    # ---- the images
    row("empty folder", both(folder("empty"), data(calibration="empty")), "no-images",
        "<project>/empty: there is no image in this folder"),
    row("other files only",
        both(file("notes/readme.txt", "x"), data(evaluation="notes")), "no-images",
        "<project>/notes: there is no image in this folder; it has other files: 1 .txt"),
    row("a folder not readable", no_access("images/cat"), "no-images",
        "<project>/images/cat: the folder cannot be listed: Permission denied",
        fix="let this user read it, or name another folder", needs_rights=True),
    row("not readable", no_access("images/cat/3.png"), "bad-image",
        "<project>/images/cat/3.png: cannot be read: Permission denied",
        fix="let this user read it, or remove it", needs_rights=True),
    row("text named .png", file("images/cat/0.png", "no image"), "bad-image",
        "<project>/images/cat/0.png: is no image, or a damaged one"),
    row("cut off PNG", cut("images/cat/0.png"), "bad-image",
        "<project>/images/cat/0.png: is no image, or a damaged one"),
    row("several at once", both(
            cut("images/cat/0.png"), cut("images/cow/9.jpg"), file("images/dog/3.png", "no image")
        ), "bad-image",
        "<project>/images/cat/0.png: is no image, or a damaged one",
        "<project>/images/cow/9.jpg: is no image, or a damaged one",
        "<project>/images/dog/3.png: is no image, or a damaged one"),
    row("50,000 x 50,000 pixels", huge_image, "bad-image",
        "<project>/images/cat/0.png: has more than 89,478,485 pixels",
        fix="shrink or remove the file"),
    row("arrays of other channels", arrays(np.ones((16, 16, 4), np.float32)), "bad-image",
        "<project>/arrays/0.npy: is an array of shape [16, 16, 4] of float32; wanted is "
        "[height, width, 3]",
        fix="correct the array, or `data.preprocess.channels`"),
    row("NaN in an array",
        arrays(np.ones((16, 16, 3), np.float32), np.full((16, 16, 3), np.nan, np.float32)),
        "not-finite",
        "<project>/arrays/1.npy: the float model computes NaN or infinity on this image"),
    row("NaN in an array for evaluation", both(
            arrays(np.full((16, 16, 3), np.nan, np.float32)),
            edit(("calibration: arrays", "calibration: images\n  evaluation: arrays")),
        ), "not-finite",
        "<project>/arrays/0.npy: the float model computes NaN or infinity"),
    row("sizes that differ", both(source(FIXED_SIZE), other_size), "image-size",
        "<project>/images: the inputs have 2 sizes, as 16 x 16 from 1.png and 20 x 20 from 0.png, "
        "and the model fails: calling the model with an input of shape [1, 3, 20, 20] raised "
        "RuntimeError: <...>"),

    # ---- the labels
    row("images in no class folder", data(calibration="images/cat"), "labels",
        "<project>/images/cat: 6 images are in no class folder, the first is 0.png",
        fix="put them into one folder a class, or write `labels: none` or a CSV file"),
    row("folder that is no class",
        both(file("classes.txt", "cat\nhorse\ndog\n"), data(classes="classes.txt")), "labels",
        "<project>/images: folder 'cow' is not in <project>/classes.txt"),
    row("class that stands twice",
        both(file("classes.txt", "cat\ncow\ndog\ncat\n"), data(classes="classes.txt")), "labels",
        "<project>/classes.txt: names cat twice",
        fix="write one class a line, each once"),
    row("other number of classes than the model's",
        model(source="network.py:network", kwargs={"classes": 5}), "labels",
        "<project>/images: there are 3 classes, the model has 5 outputs",
        fix=CLASSES_FIX),
    row("CSV of absent files",
        both(file("labels.csv", "file,label\ncat/0.png,cat\ncat/99.png,cat\nb.png,cow\n"),
             data(labels="labels.csv")), "labels",
        "<project>/labels.csv: line 3: there is no image 'cat/99.png' in <project>/images",
        "<project>/labels.csv: line 4: there is no image 'b.png' in <project>/images",
        fix="correct the rows; `file` is a path below the folder of images"),
    row("CSV with an unknown class",
        both(file("classes.txt", "cat\ncow\ndog\n"),
             file("labels.csv", "file,label\ncat/0.png,cta\n"),
             data(classes="classes.txt", labels="labels.csv")), "labels",
        "<project>/labels.csv: label 'cta' is not in <project>/classes.txt; did you mean 'cat'?"),
    row("CSV without header",
        both(file("labels.csv", "cat/0.png,cat\n"), data(labels="labels.csv")), "labels",
        "<project>/labels.csv: has no column 'file' and no column 'label' in its first line; it "
        "has cat/0.png, cat",
        fix="begin the file with the line `file,label`"),
    row("CSV that contradicts itself",
        both(file("labels.csv", "file,label\ncat/0.png,cat\ncat/0.png,dog\n"),
             data(labels="labels.csv")), "labels",
        "<project>/labels.csv: line 3: 'cat/0.png' has two labels, 'cat' and 'dog'",
        fix="correct the rows; `file` is a path below the folder of images"),

    # ---- the transform
    row("raises", transform("def prepare(image):\n    return image.crp((0, 0, 8, 8))\n"),
        "transform",
        "data.transform: 0.png: calling it raised AttributeError: <...> has no attribute 'crp' "
        "(<project>/prepare.py:2: return image.crp((0, 0, 8, 8)))"),
    row("returns no tensor", transform("def prepare(image):\n    image.load()\n"), "transform",
        "data.transform: returned NoneType for 0.png",
        fix="return a tensor (channels, height, width), or a tuple of the model's inputs"),
    row("does not import", transform("import no_such_package\n"), "transform",
        "data.transform: importing it raised ModuleNotFoundError: No module named "
        "'no_such_package' (<project>/prepare.py:1: import no_such_package)"),

    # ---- the model on the images
    row("raises", forward("raise RuntimeError('no such size')"), "model-input",
        "model.source: calling the model with an input of shape [1, 3, 16, 16] raised "
        "RuntimeError: no such size (<project>/network.py:9: raise RuntimeError('no such size'))"),
    row("other channels", data(preprocess={"channels": 1}), "model-input",
        "model.source: calling the model with an input of shape [1, 1, 16, 16] raised "
        "RuntimeError: <...>"),
    row("several inputs", forward("return self.conv(x) + y", inputs="x, y"), "model-input",
        "model.source: the model reads 2 inputs (x, y), the images give 1",
        fix="return a tuple of all inputs from `data.transform`, or name a callable that wraps "
        "the model"),
    row("nothing", forward("self.conv(x)"), "model-output",
        "model.source: its result is NoneType, no tensor, which TorchScript cannot return"),
    row("no such output", edit(("  source:", "  output: logits\n  source:")), "model-output",
        "model.output: the model has no output 'logits'",
        fix="leave it out: the model has one output"),
    row("no such output of two", both(
            forward("return {'logits': self.conv(x).flatten(1), 'features': x}"),
            edit(("  source:", "  output: logit\n  source:")),
        ), "model-output",
        "model.output: the model has no output 'logit'; did you mean 'logits'?",
        fix="choose one of logits, features"),

    # ---- the conversion
    row("no module below code that cannot be traced",
        forward("x = nn.functional.conv2d(x, self.conv.weight).flatten(1)", *TURNED),
        "untraceable",
        f"model.source: the model: {TRACED} (<project>/network.py:10: if x.sum() > 0:); and no "
        "module below it that can be traced has a convolution or a linear layer"),
    row("code that cannot be compiled either",
        forward("x = self.conv(x).flatten(1)", "if x.sum() > 0:", "    x = -x", *NO_SCRIPT),
        "unsupported",
        f"model.source: the model: {TRACED} (<project>/network.py:10: if x.sum() > 0:); and "
        "TorchScript cannot compile it: <...> (<project>/network.py:13)",
        fix="if its code goes the same way for all images, write `model.fixed: all`; else write "
        "its code in the part of Python that TorchScript knows"),
    row("module that cannot be compiled either",
        both(source(INNER), model(source="network.py:network", answers="none")),
        "unsupported",
        f"model.source: inner: {TRACED} (<project>/network.py:11: if x.sum() > 0:); and "
        "TorchScript cannot compile it: <...> (<project>/network.py:13)",
        fix="if its code goes the same way for all images, write `model.fixed: [inner]`; else "
        "write its code in the part of Python that TorchScript knows"),
    row("code to be kept that is not listed",
        both(source(INNER), model(source="network.py:network", scripted=[])),
        "untraceable",
        f"model.source: inner: {TRACED} (<project>/network.py:11: if x.sum() > 0:)",
        fix='add its name ("" for the model itself) to `model.scripted`, or write `scripted: '
        "auto`, to convert the rest of the model; or make this line independent of what is in the "
        "tensors"),
    row("unknown modules to keep and to fix",
        edit(("  source:", "  scripted: ['2.conv3']\n  fixed: [block]\n  source:")), "qconfig",
        "my.yaml: model.scripted: the model has no module '2.conv3'; did you mean '2.conv2'?",
        "my.yaml: model.fixed: the model has no module 'block'"),
    row("untrained", changed(lambda state: {k: torch.zeros_like(v) for k, v in state.items()}),
        "verification",
        "verification: the int8 file gives the same output for all images, and the float model "
        "nearly so (they differ by 0 of its output)",
        command="convert my.yaml --quiet"),
]
# fmt: on


@pytest.mark.parametrize(("mistake", "command", "needs_rights", "code", "told"), TABLE)
def test_mistake_is_one_message(
    project: Project,
    request: pytest.FixtureRequest,
    mistake: Mistake,
    command: str,
    needs_rights: bool,
    code: int,
    told: list[str],
) -> None:
    needed = list(inspect.signature(mistake).parameters)[1:]
    mistake(project, *map(request.getfixturevalue, needed))
    result = project.call(*shlex.split(command), within=unprivileged() if needs_rights else ())
    assert_told(result.err.replace(str(project.folder), "<project>"), told)
    assert result.code == code
    assert result.out == ""
    assert not (project.folder / "pwned").exists()
    left = {path.name for path in project.output.iterdir()} if project.output.is_dir() else set()
    assert "model.int8.pt" not in left
    assert not any(name.startswith(".") for name in left)


def assert_told(err: str, told: list[str]) -> None:
    """The message has exactly these lines; `<...>` stands for any text."""
    wanted = "\n".join(told) + "\n"
    pattern = re.escape(wanted).replace(re.escape("<...>"), ".*")
    if not re.fullmatch(pattern, err):
        assert err == wanted  # which shows the difference


def unprivileged() -> list[str]:
    """A command that runs another one as a user whom the rights on files bind."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the tests run as root, whom rights on files do not bind, without setpriv")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]


# ---- The disk is full


@pytest.fixture
def project(project: Project) -> Project:
    """Its commands are many and are not measured."""
    return replace(project, environment=UNMEASURED)


@pytest.fixture(scope="module")
def finished(make_project: Callable[[Path], Project], tmp_path_factory: Any) -> Project:
    """A project with an int8 file."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    result = project.run("convert", "--quiet")
    assert result.code == 0, result.err
    return project


# What each command has when it begins, and the file for which there is no room.
FULL = {
    "fuse": ((), "float.pt"),
    "calibrate": (("float.pt", "fused.pt", "fused.json"), "audit.svg"),
    "convert": (
        (
            "float.pt",
            "fused.pt",
            "fused.json",
            "audit.svg",
            "calibration.safetensors",
            "calibration.json",
        ),
        "model.int8.pt",
    ),
}
PAGE = 4096
# Runs a command with a small disk as the output folder, which is filled and copied back.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$1 tmpfs "$2" && cp "$3"/* "$2" 2>/dev/null
shift; shift; shift
"$@"; code=$?
cp -a out/. after
exit $code
"""


@pytest.mark.parametrize("command", FULL)
def test_full_disk_leaves_earlier_results_whole(
    finished: Project, tmp_path: Path, command: str
) -> None:
    names, refused = FULL[command]
    earlier = {name: content for name, content in finished.state().items() if name in names}
    pages = sum(-(-len(content) // PAGE) for content in earlier.values())
    before, after = tmp_path / "before", finished.folder / "after"
    before.mkdir()
    after.mkdir()
    for name, content in earlier.items():
        (before / name).write_bytes(content)
    small_disk = ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh"]
    # One page more is what the folder's being writable is proved with.
    small_disk += [str((pages + 1) * PAGE), str(finished.output), str(before)]
    if not can_mount(tmp_path):
        pytest.skip("no file system can be mounted here: that takes root")
    try:
        result = finished.call(command, "my.yaml", "--quiet", within=small_disk)
        found = {path.name: path.read_bytes() for path in after.iterdir()}
    finally:
        shutil.rmtree(after)
    _, _, fix = KINDS["output"]
    place = finished.output / refused
    told = ["error (output: output)", f"{place}: cannot be written: No space left on device"]
    assert_told(result.err, [*told, f"fix: {fix}"])
    assert result.code == 2
    assert result.out == ""
    found.pop("overflow.json", None)  # on CPUs without VNNI: small, and written before
    assert found == earlier


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ---- Beside the table


def test_error_is_an_object_on_stdout_with_json(project: Project) -> None:
    """What the user's own code prints is no part of it."""
    source("print('hello')\n\ndef network():\n    return 1 / 0\n")(project)
    result = project.run("fuse", "--json", "--quiet")
    assert result.code == 3
    code, _, fix = KINDS["model-source"]
    place = f"({project.folder}/network.py:4: return 1 / 0)"
    assert json.loads(result.out) == {
        "command": "fuse",
        "error": {
            "kind": "model-source",
            "exit_code": code,
            "facts": [f"calling it with {{}} raised ZeroDivisionError: division by zero {place}"],
            "where": "model.source",
            "fix": fix,
        },
    }
    assert result.err.startswith("hello\nerror (model: model-source)\n")


def test_debug_shows_the_traceback(project: Project) -> None:
    both(folder("empty"), data(calibration="empty"))(project)
    result = project.run("fuse", "--debug")
    assert result.code == 4
    assert "Traceback" in result.err


def test_unreadable_images_are_skipped_where_asked_for(project: Project) -> None:
    """They are named, counted, and left out of every figure."""
    both(
        file("images/cat/0.png", "no image"),
        cut("images/dog/3.png"),
        data(on_bad_image="skip", preprocess={"mean": [0.5], "std": [0.25]}),
    )(project)
    result = project.run("fuse")
    assert result.code == 0, result.err
    for name in ("cat/0.png", "dog/3.png"):
        path = project.folder / "images" / name
        assert f"images: skipped {path}: is no image, or a damaged one\n" in result.err
    assert "images: 2 of 18 images skipped\n" in result.err
    assert "Accuracy on 16 images" in result.out


def test_evaluation_images_are_checked_on_every_run(finished: Project) -> None:
    """Also when no step is stale: they may have been exchanged since."""
    image = finished.folder / "images/cat/0.png"
    content = image.read_bytes()
    (finished.folder / "other/cat").mkdir(parents=True)
    (finished.folder / "other/cat/0.png").write_bytes(content[:100])
    other = ("--set", "data.evaluation=other", "--set", "data.labels=none")
    result = finished.run("benchmark", "--quiet", *other)
    assert result.code == 4, result.err
    assert f"{finished.folder}/other/cat/0.png: is no image, or a damaged one" in result.err


def test_missed_budgets_are_named_and_exit_1(finished: Project) -> None:
    budgets = "budgets={min_speedup: 1000, min_int8_macs: 0.5}"
    result = finished.run("benchmark", "--quiet", "--set", budgets)
    assert result.code == 1
    assert "min_speedup: " in result.err
    assert "the budget is 1000" in result.err
    assert "min_int8_macs" not in result.err
    assert finished.record("report.json")["verdict"] == "budgets missed"


def test_unlabelled_images_give_all_but_top1(project: Project) -> None:
    result = project.run("fuse", "--quiet", "--set", "data.labels=none", "--output", "other")
    assert result.code == 0, result.err
    assert "top-1" not in result.out
    assert "same answer as float" in result.out
    assert (project.folder / "other" / "fused.json").exists()
    assert not project.output.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["convert", "--help"], 0),
        (["convert", "my.yaml", "--set", "modle=1"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_torch_is_not_imported_for(project: Project, arguments: list[str], code: int) -> None:
    program = (
        "import sys, qconvert.cli\n"
        f"sys.argv = ['qconvert', *{arguments}]\n"
        f"try:\n    qconvert.cli.main()\nexcept SystemExit as end:\n    assert end.code == {code}\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
