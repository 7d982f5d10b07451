"""Checkpoints load strictly, in every usual form, and never run what they hold."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qconvert.errors import ModelError
from qconvert.models.checkpoint import load_checkpoint


class Net(nn.Module):
    def __init__(self, classes: int = 2):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, classes)


class Wrapped(nn.Module):
    """A model whose own child is called `module`."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 3)


def seeded(seed: int, kind: type[nn.Module] = Net) -> nn.Module:
    torch.manual_seed(seed)
    return kind()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "pack", "key"),
    [
        ("w.pt", lambda state: state, None),
        ("w.pth", lambda state: state, None),
        ("w.safetensors", lambda state: state, None),
        ("w.ckpt", lambda state: {"epoch": 3, "state_dict": state}, None),
        ("w.pt", lambda state: {"state_dict": state, "optimizer": {"lr": 0.1}}, "state_dict"),
        ("w.pt", lambda state: {"a": {"b": {"ema": state}, "c": 1}}, "a.b.ema"),
        ("w.pt", lambda state: {f"module.{k}": v for k, v in state.items()}, None),
        ("w.safetensors", lambda state: {f"module.{k}": v for k, v in state.items()}, None),
        ("w.pt", lambda state: {k: v.double() for k, v in state.items()}, None),
    ],
    ids=["pt", "pth", "safetensors", "nested", "key", "dotted key", "prefix",
         "prefix in safetensors", "float64"],
)  # fmt: skip
def test_every_usual_form_loads(tmp_path, name, pack, key):
    trained, model = seeded(1), seeded(2)
    assert not same(model, trained)
    content = pack(trained.state_dict())
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    load_checkpoint(model, tmp_path / name, key)
    assert same(model, trained)
    assert model.fc.weight.dtype == torch.float32


def test_older_format_of_torch_save_loads(tmp_path):
    trained, model = seeded(1), seeded(2)
    path = tmp_path / "w.pt"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    load_checkpoint(model, path, None)
    assert same(model, trained)


def test_model_with_a_child_called_module_loads(tmp_path):
    trained, model = seeded(1, Wrapped), seeded(2, Wrapped)
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    load_checkpoint(model, tmp_path / "w.pt", None)
    assert same(model, trained)


def test_all_differences_are_in_one_error_and_nothing_is_loaded(tmp_path):
    state = dict(Net(classes=5).state_dict())
    state["convolution.weight"] = state.pop("conv.weight")
    del state["bn.running_var"]
    torch.save(state, tmp_path / "w.pt")
    model, before = seeded(1), seeded(1)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(model, tmp_path / "w.pt", None)
    assert caught.value.where == str(tmp_path / "w.pt")
    assert caught.value.facts == [
        "bn.running_var is missing",
        "conv.weight is missing (nearest: convolution.weight)",
        "convolution.weight is not in the model",
        "fc.bias has shape [5], the model has [2]",
        "fc.weight has shape [5, 2], the model has [2, 2]",
    ]
    assert same(model, before)


def test_list_of_differences_is_cut_after_twenty(tmp_path):
    torch.save({f"layer{i:02}": torch.zeros(1) for i in range(40)}, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert len(caught.value.facts) == 21
    assert caught.value.facts[-1] == "and 28 more"


@pytest.mark.parametrize(
    ("content", "key", "fact"),
    [
        ({"model": {"x": 1}, "epoch": 2}, "model.state", "has no 'model.state'; it has x"),
        ({"model": {"x": 1}, "epoch": 2}, "epoch.state", "has no 'epoch.state'; it has no keys"),
        ({"epoch": 2}, None, "holds no state_dict (a mapping of names to tensors)"),
        ({"model": {"x": 1}}, "model", "holds no state_dict (a mapping of names to tensors)"),
        ([1, 2], None, "holds no state_dict (a mapping of names to tensors)"),
        ({}, None, "holds no state_dict (a mapping of names to tensors)"),
        ({0: torch.zeros(1)}, None, "holds no state_dict (a mapping of names to tensors)"),
    ],
    ids=["no key", "key of a number", "numbers", "numbers at key", "list", "empty", "no names"],
)
def test_content_without_weights_is_refused(tmp_path, content, key, fact):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", key)
    assert caught.value.facts == [fact]


class Bait:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_pickle])
@pytest.mark.parametrize("beside_weights", [True, False])
def test_pickle_that_runs_code_is_refused_and_nothing_runs(tmp_path, save, beside_weights):
    marker, path = tmp_path / "executed", tmp_path / "w.pt"
    bait = Bait(marker)
    save({"state_dict": Net().state_dict(), "extra": bait} if beside_weights else bait, path)
    with pytest.raises(ModelError):
        load_checkpoint(Net(), path, "state_dict" if beside_weights else None)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bait))
    assert marker.exists()  # the bait does bite


def test_whole_pickled_model_is_refused_with_the_remedy(tmp_path):
    torch.save(Net(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="could run code, which qconvert never does") as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert "torch.save(model.state_dict()" in caught.value.fix


@pytest.mark.parametrize("form", ["zip.pt", "legacy.pt", "w.safetensors"])
def test_truncated_file_is_refused(tmp_path, form):
    path, state = tmp_path / form, Net().state_dict()
    if form == "w.safetensors":
        save_file(state, path)
    elif form == "zip.pt":
        torch.save(state, path)
    else:
        save_legacy(state, path)
    whole = path.read_bytes()
    for length in [0, 1, len(whole) - 1, *random.Random(0).sample(range(len(whole)), 40)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            load_checkpoint(Net(), path, None)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize(
    "text", ["these are no weights\n", "version https://git-lfs.github.com/spec/v1\n", "<html>"]
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=r"is damaged|is no checkpoint|is not a safetensors file"):
        load_checkpoint(Net(), tmp_path / name, None)
