"""TorchScript files: reproducible bytes, nothing of this machine in them, no noise."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import UnsupportedError
from qconvert.models.outputs import tensors

# Run by itself, the network below is traced after other modules were, in an order of its own.
NETWORK = """
import torch
from torch import Tensor, nn

class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

def network() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(3), *(Block(4) for _ in range(11))]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4, 5)).eval().requires_grad_(False)
"""
DIGESTS = """
import hashlib, json, sys
from qconvert import torchscript
x = torch.zeros(1, 3, 25, 25)
for i in range(int(sys.argv[1])):
    torchscript.trace(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU())), [x])
script = torchscript.trace(network(), [x])
scripts = {"traced": script, "frozen": torchscript.freeze(script)}
digests = {k: hashlib.sha256(torchscript.to_bytes(v)).hexdigest() for k, v in scripts.items()}
print(json.dumps(digests))
"""
EXAMPLE = torch.rand(1, 3, 25, 25, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    names: dict = {"__name__": "user_code"}
    exec(NETWORK, names)
    return names["network"]()


def scripted(form: str) -> torch.jit.ScriptModule:
    script = torchscript.trace(network(), [EXAMPLE])
    return torchscript.freeze(script) if form == "frozen" else script


def contents(archive: bytes) -> dict[str, bytes]:
    """Names and contents of an archive's records, decompressed."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {info.filename: file.read(info) for info in file.infolist()}


@pytest.mark.parametrize("form", ["traced", "frozen"])
def test_bytes_are_the_same_in_two_calls(form: str) -> None:
    script = scripted(form)
    first = torchscript.to_bytes(script, {"a.json": "1"})
    assert torchscript.to_bytes(script, {"a.json": "1"}) == first


@pytest.fixture(scope="module")
def digests() -> list[dict[str, str]]:
    """From processes that had traced none and 25 other modules before."""
    found = []
    for count in (0, 25):
        command = [sys.executable, "-c", NETWORK + DIGESTS, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    return found


def test_bytes_do_not_depend_on_what_was_traced_before(digests) -> None:
    assert len({found["frozen"] for found in digests}) == 1


@pytest.mark.parametrize("form", ["traced", "frozen"])
def test_no_path_of_this_machine_is_in_the_file(form: str) -> None:
    archive = torchscript.to_bytes(scripted(form))
    repository = str(Path(__file__).parents[1])
    for name, content in contents(archive).items():
        for path in (repository, "/site-packages/", tempfile.gettempdir() + "/", sys.prefix):
            assert path.encode() not in content, name
            assert path not in name


@pytest.mark.parametrize("form", ["traced", "frozen"])
def test_example_does_not_travel_in_the_file(form: str) -> None:
    """It is a user's image, and would count as size of the model."""
    archive = torchscript.to_bytes(scripted(form))
    pixels = EXAMPLE.numpy().tobytes()
    assert not any(pixels in content for content in contents(archive).values())


@pytest.mark.parametrize("form", ["traced", "frozen"])
@pytest.mark.parametrize("source", ["path", "bytes", "plain torch"])
def test_file_computes_what_the_module_does(tmp_path: Path, form: str, source: str) -> None:
    archive = torchscript.to_bytes(scripted(form))
    path = tmp_path / "model.pt"
    path.write_bytes(archive)
    if source == "plain torch":
        loaded = torch.jit.load(str(path))
    else:
        loaded = torchscript.load(path if source == "path" else archive)
    images = torch.rand(3, 3, 25, 25, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded(images), network()(images))


def test_extra_texts_are_read_back_as_they_were(tmp_path: Path) -> None:
    texts = {
        "manifest.json": '{"größe": "3 µs", "module": "___torch_mangle_7"}',
        "empty.txt": "",
        "folder/lines.txt": "line\r\nline\n",
    }
    archive = torchscript.to_bytes(scripted("traced"), texts)
    path = tmp_path / "model.pt"
    path.write_bytes(archive)
    for source in (path, archive):
        found = dict.fromkeys(texts, "")
        torchscript.load(source, found)
        assert found == texts


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(x))[:, :, 1:-1, 1:-1] - self.conv1(x)
        return self.head(x.mean((2, 3)))


class Computes(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


@pytest.mark.parametrize("form", ["traced", "frozen"])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1, x * 2),
        lambda x: [x + 1, x * 2],
        lambda x: {"out": x + 1, "aux": x * 2},
        lambda x: (x + 1, {"aux": x * 2}),
    ],
    ids=["tuple", "list", "dict", "dict in a tuple"],
)
def test_outputs_keep_their_names_in_the_file(form: str, function: Callable[..., Any]) -> None:
    script = torchscript.trace(Computes(function), [EXAMPLE])
    script = torchscript.freeze(script) if form == "frozen" else script
    loaded = torchscript.load(torchscript.to_bytes(script))
    x = torch.rand(2, 3, 4, 5)
    want, have = tensors(function(x)), tensors(loaded(x))
    assert list(have) == list(want)
    assert all(torch.equal(have[name], want[name]) for name in want)


def test_several_inputs_are_read_in_their_order() -> None:
    inputs = (EXAMPLE, torch.rand(1, 4), torch.tensor([3]))
    script = torchscript.trace(Computes(lambda x, y, n: x.mean() - y * n), inputs)
    loaded = torchscript.load(torchscript.to_bytes(torchscript.freeze(script)))
    torch.testing.assert_close(loaded(*inputs), EXAMPLE.mean() - inputs[1] * 3)


@pytest.mark.parametrize(
    "function",
    [lambda x: {"maps": [x + 1], "more": [x * 2]}, lambda x: {"a": 3, "x": x}, lambda x: "text"],
    ids=["lists in a dict", "number", "text"],
)
def test_result_that_torchscript_cannot_hold_is_refused_in_one_line(function) -> None:
    with pytest.raises(UnsupportedError, match="TorchScript cannot hold the model: ") as error:
        torchscript.trace(Computes(function), [EXAMPLE])
    (fact,) = error.value.facts
    assert "\n" not in fact
    assert "(1,1,.,.)" not in fact
    assert "a dict of tensors by name" in (error.value.fix or "")


class Noisy(nn.Module):
    def __init__(self, message: str, category: type[Warning]) -> None:
        super().__init__()
        self.message, self.category = message, category

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn(self.message, self.category, stacklevel=1)
        return x + 1


@pytest.mark.parametrize(
    ("message", "category"),
    [
        ("the weights are not trained", UserWarning),
        ("my_net.forward is deprecated", DeprecationWarning),
        ("Noisy will change in version 2", FutureWarning),
        ("torch.nn.functional.upsample is deprecated", UserWarning),
        ("quantized models need calibration", UserWarning),
    ],
)
def test_warnings_of_the_model_are_heard(message: str, category: type[Warning]) -> None:
    with pytest.warns(category, match=message):
        torchscript.trace(Noisy(message, category), [torch.zeros(1)])


def test_announcements_of_torch_are_not_heard() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        script = torchscript.trace(TwoBranches().requires_grad_(False), [EXAMPLE])
        torchscript.optimize_for_inference(torchscript.freeze(script))
        torchscript.load(torchscript.to_bytes(script))
        with torchscript.quiet():
            torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
    assert [str(warning.message) for warning in heard] == []


def test_filters_are_put_back() -> None:
    before = list(warnings.filters)
    with pytest.raises(KeyError), torchscript.quiet():
        raise KeyError
    assert warnings.filters == before
    with pytest.warns(FutureWarning, match=r"torch\.jit\.trace"):
        torch.jit.trace(nn.ReLU(), torch.zeros(1))
