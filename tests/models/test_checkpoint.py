"""Checkpoints load strictly, in every usual form, and never run what they hold."""

from __future__ import annotations

import argparse
import pickle
import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qconvert.errors import CheckpointFileError, CheckpointKeysError, UnsafeCheckpointError
from qconvert.models.checkpoint import load_checkpoint

State = dict[str, Tensor]


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


def loaded(folder: Path, content: object, kind: type[nn.Module] = Net) -> tuple[str, ...]:
    """Loads what is as trained with seed 1 into a model of another seed; returns the notes."""
    model = seeded(2, kind)
    torch.save(content, folder / "w.pt")
    notes = load_checkpoint(model, folder / "w.pt", None)
    assert same(model, seeded(1, kind))
    return notes


def weights(prefix: str = "", kind: type[nn.Module] = Net) -> State:
    return {prefix + name: value for name, value in seeded(1, kind).state_dict().items()}


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict", "net", "ema"])
def test_weights_are_found_under_usual_names(tmp_path, name):
    content = {"epoch": 3, name: weights(), "optimizer": {"lr": 0.1}}
    assert loaded(tmp_path, content) == (
        f"the weights are those in {name!r} (model.checkpoint_key); ignored: epoch, optimizer",
    )
    assert loaded(tmp_path, {name: weights()}) == (
        f"the weights are those in {name!r} (model.checkpoint_key)",
    )


def test_of_two_usual_names_the_choice_is_said(tmp_path):
    content = {"ema": seeded(3).state_dict(), "model": weights(), "epoch": 3}
    assert loaded(tmp_path, content) == (
        "the weights are those in 'model', not 'ema' (model.checkpoint_key); ignored: ema, epoch",
    )


@pytest.mark.parametrize(
    ("prefix", "noted"),
    [
        ("module.", "module."),
        ("model.", "model."),
        ("module.model.", "module.model."),
        ("_orig_mod.", ""),
        ("model._orig_mod.", "model."),
        ("_orig_mod.module.", "module."),
        ("module._orig_mod.model.", "module.model."),
    ],
)
def test_prefixes_of_wrappers_are_dropped(tmp_path, prefix, noted):
    compiled = ("'_orig_mod.' is dropped from its names",) if "_orig_mod" in prefix else ()
    notes = (f"the prefix {noted!r} of its names is dropped",) if noted else ()
    assert loaded(tmp_path, weights(prefix)) == (*compiled, *notes)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_load(tmp_path, wrap):
    loaded(tmp_path, wrap(seeded(1)).state_dict())


def test_compiled_part_of_a_model_loads(tmp_path):
    state = {name.replace("fc.", "fc._orig_mod."): value for name, value in weights().items()}
    loaded(tmp_path, state)
    loaded(tmp_path, {f"module.{name}": value for name, value in state.items()})


def test_lightning_checkpoint_loads(tmp_path):
    """Beside the network there are the loss's own tensors and a metric's."""
    extra = {"criterion.weight": torch.ones(2), "val_acc.correct": torch.zeros(1)}
    content = {"epoch": 3, "state_dict": {**weights("model."), **extra}, "callbacks": {}}
    assert loaded(tmp_path, content) == (
        "the weights are those in 'state_dict' (model.checkpoint_key); ignored: epoch, callbacks",
        "the prefix 'model.' of its names is dropped",
        "ignored, for they are outside 'model.': criterion.weight, val_acc.correct",
    )


def test_averaged_weights_load(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(seeded(1))
    assert loaded(tmp_path, averaged.state_dict()) == (
        "the prefix 'module.' of its names is dropped",
        "ignored, for they are outside 'module.': n_averaged",
    )


def test_counts_of_operations_are_ignored_with_a_note(tmp_path):
    """thop leaves them in every module that it has seen."""
    counts = {name: torch.zeros(1) for name in ("total_ops", "conv.total_ops", "fc.total_params")}
    assert loaded(tmp_path, {**weights(), **counts}) == (
        "ignored, for they are no weights: total_ops, conv.total_ops, fc.total_params",
    )


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_counters_of_batch_norms_may_come_or_go(tmp_path, change):
    state = weights()
    if change == "missing":
        del state["bn.num_batches_tracked"]
    else:
        state["conv.num_batches_tracked"] = torch.tensor(7)
    assert loaded(tmp_path, state) == ()


def test_numbers_beside_the_weights_are_ignored_with_a_note(tmp_path):
    content = {**weights(), "epoch": 3, "arch": "net"}
    assert loaded(tmp_path, content) == ("ignored, for they are no tensors: epoch, arch",)


@pytest.mark.parametrize(
    ("dtypes", "names"),
    [
        ([torch.float16], "float16"),
        ([torch.bfloat16], "bfloat16"),
        ([torch.bfloat16, torch.float16, torch.float32], "bfloat16 and float16"),
    ],
)
def test_half_precision_is_raised_with_a_note(tmp_path, dtypes, names):
    state = {
        name: value.to(dtypes[i % len(dtypes)]) if value.is_floating_point() else value
        for i, (name, value) in enumerate(weights().items())
    }
    torch.save(state, tmp_path / "w.pt")
    model = seeded(2).half()
    notes = load_checkpoint(model, tmp_path / "w.pt", None)
    assert notes == (f"{names} weights are raised to float32",)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tensors_saved_on_a_gpu_load(tmp_path):
    torch.save(weights(), tmp_path / "cpu.pt")
    with (
        zipfile.ZipFile(tmp_path / "cpu.pt") as source,
        zipfile.ZipFile(tmp_path / "cuda.pt", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                changed = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
                assert changed != content
                content = changed
            target.writestr(name, content)
    model = seeded(2)
    assert load_checkpoint(model, tmp_path / "cuda.pt", None) == ()
    assert same(model, seeded(1))


class Backbone(nn.Module):
    """A model whose own names begin with what a wrapper could have put there."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_prefix_that_is_the_models_own_stays(tmp_path, prefix):
    notes = loaded(tmp_path, weights(prefix, Backbone), Backbone)
    assert notes == ((f"the prefix {prefix!r} of its names is dropped",) if prefix else ())


def test_part_of_another_checkpoint_is_named_with_its_keys(tmp_path):
    """The prefix is that of most names; the others are still missing."""
    state = weights("model.")
    del state["model.fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointKeysError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.facts == ["fc.bias is missing"]


def test_lost_file_is_named_with_the_reason(tmp_path):
    for name in ("lost.pt", "lost.safetensors"):
        with pytest.raises(CheckpointFileError) as caught:
            load_checkpoint(Net(), tmp_path / name, None)
        assert caught.value.facts == ["cannot be read: No such file or directory"]
        assert caught.value.where == str(tmp_path / name)


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
    with pytest.raises(CheckpointKeysError) as caught:
        load_checkpoint(model, tmp_path / "w.pt", None)
    assert caught.value.where == str(tmp_path / "w.pt")
    assert caught.value.facts == [
        "bn.running_var is missing",
        "conv.weight is missing (nearest: convolution.weight)",
        "convolution.weight is not in the model (nearest: conv.weight)",
        "fc.bias has shape [5], the model has [2]",
        "fc.weight has shape [5, 2], the model has [2, 2]",
    ]
    assert "model.checkpoint_key" in caught.value.fix
    assert same(model, before)


def test_of_many_differences_twenty_are_shown(tmp_path):
    torch.save({f"layer{i:02}": torch.zeros(1) for i in range(40)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointKeysError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert len(caught.value.facts) == 8 + 40
    shown = str(caught.value).splitlines()
    assert shown[19].endswith(": layer11 is not in the model")
    assert shown[20] == "and 28 more, which --json lists"
    assert shown[21].startswith("fix: ")


NONE = "holds no state_dict (a mapping of names to tensors)"


@pytest.mark.parametrize(
    ("content", "key", "fact"),
    [
        ({"model": {"x": 1}, "epoch": 2}, "model.state", "has no 'model.state'; it has x"),
        ({"model": {"x": 1}, "epoch": 2}, "epoch.state", "has no 'epoch.state'; it has no keys"),
        ({"epoch": 2, "G": {"x": torch.ones(1)}}, None, f"{NONE}; it has the keys epoch, G"),
        ({"model": {"x": 1}}, "model", f"'model' {NONE}"),
        ([1, 2], None, NONE),
        ({}, None, NONE),
        ({0: torch.zeros(1)}, None, f"{NONE}; it has the keys 0"),
        (torch.zeros(1), None, NONE),
    ],
    ids=[
        "no key",
        "key of a number",
        "numbers",
        "numbers at key",
        "list",
        "empty",
        "no names",
        "tensor",
    ],
)
def test_content_without_weights_is_refused(tmp_path, content, key, fact):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointFileError) as caught:
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
    with pytest.raises(UnsafeCheckpointError, match="which qconvert never does"):
        load_checkpoint(Net(), path, "state_dict" if beside_weights else None)
    assert not marker.exists()
    pickle.loads(pickle.dumps(bait))
    assert marker.exists()  # the bait does bite


MORE = "holds more than weights: loading it could run code, which qconvert never does"
WHOLE = (
    "is a whole pickled module, not weights: loading it would run code, which qconvert never does"
)


@pytest.mark.parametrize("save", [torch.save, save_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (lambda state: nn.Linear(1, 1), f"{WHOLE} (it names torch.nn.modules.linear.Linear)"),
        (lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
         f"{MORE} (it names argparse.Namespace)"),
        (lambda state: {"state_dict": state, "data": Path("images")},
         f"{MORE} (it names pathlib.PosixPath)"),
    ],
    ids=["module", "arguments", "path"],
)  # fmt: skip
def test_more_than_weights_is_refused_and_named(tmp_path, save, content, fact):
    save(content(Net().state_dict()), tmp_path / "w.pt")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.facts == [fact]
    assert caught.value.where == str(tmp_path / "w.pt")
    assert "torch.save(torch.load('w.pt', weights_only=False)" in caught.value.fix


def test_whole_model_of_ones_own_class_is_named(tmp_path):
    torch.save(Net(), tmp_path / "w.pt")
    with pytest.raises(UnsafeCheckpointError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.facts[0].startswith(f"{WHOLE} (it names {Net.__module__}.Net, torch.nn.")


def test_values_of_numpy_are_refused_and_named(tmp_path):
    content = {"state_dict": Net().state_dict(), "best": np.float64(0.9)}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"\(it names numpy\._core\.multiarray\.scalar"):
        load_checkpoint(Net(), tmp_path / "w.pt", None)


def test_torchscript_file_is_refused_with_the_remedy(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.ReLU()).save(tmp_path / "w.pt")
        with pytest.raises(CheckpointFileError) as caught:
            load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.facts == ["is a TorchScript file, which holds a whole model"]
    assert "torch.jit.load('model.pt').state_dict()" in caught.value.fix


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
        with pytest.raises(CheckpointFileError):
            load_checkpoint(Net(), path, None)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("text", ["these are no weights\n", "<html>"])
def test_file_that_is_no_checkpoint_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(
        CheckpointFileError, match=r"is damaged|is no checkpoint|is not a safetensors file"
    ):
        load_checkpoint(Net(), tmp_path / name, None)


def test_weights_below_unusual_names_are_found_for_the_message(tmp_path):
    torch.save({"epoch": 3, "nets": {"G": {"ema": weights()}, "lr": 0.1}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointFileError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.fix.endswith("`model.checkpoint_key`, as 'nets.G.ema'")
    load_checkpoint(Net(), tmp_path / "w.pt", "nets.G.ema")


def test_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    with pytest.raises(CheckpointFileError, match="pointer of Git LFS") as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.fix == "git lfs pull"


def test_ending_in_capitals_and_nan_in_the_weights(tmp_path):
    state = weights()
    state["fc.bias"] = torch.full_like(state["fc.bias"], torch.nan)
    save_file(state, tmp_path / "W.SAFETENSORS")
    notes = load_checkpoint(Net(), tmp_path / "W.SAFETENSORS", None)
    assert notes == ("there is NaN or infinity in fc.bias",)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.ones(2, dtype=torch.int8), "integer"),
        (torch.ones(2).to_sparse(), "a tensor without plain values"),
        (torch.empty(2, device="meta"), "a tensor without plain values"),
    ],
    ids=["complex", "integer", "sparse", "meta"],
)
def test_weights_that_are_no_plain_floats_are_refused(tmp_path, value, kind):
    torch.save({**weights(), "fc.bias": value}, tmp_path / "w.pt")
    with pytest.raises(CheckpointKeysError) as caught:
        load_checkpoint(Net(), tmp_path / "w.pt", None)
    assert caught.value.facts == [f"fc.bias is {kind}, in the model it is float"]
