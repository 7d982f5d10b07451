"""A model source is imported, called and checked, with the user's own line in every error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from qconvert.errors import SourceError
from qconvert.models.source import FloatModel, build
from qconvert.qconfig import ModelSection
from qconvert.user_code import digests_now

NET = """\
from torch import nn

def net(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.Dropout(0.5)).half()
"""


@pytest.fixture(autouse=True)
def own_imports():
    """Forgets the modules that a test imports."""
    before, path = set(sys.modules), list(sys.path)
    yield
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith(("qconvert_source", "proj", "sib")):
            del sys.modules[name]


def model(source: str | Path, name: str = "", **settings) -> FloatModel:
    return build(ModelSection(source=f"{source}:{name}" if name else source, **settings))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_torchvision_model_with_kwargs():
    built = model("torchvision:squeezenet1_1", kwargs={"num_classes": 7})
    assert built.module(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert not built.module.training
    assert built.code == {}


def test_file_source_gives_an_eval_float32_model_without_gradients(tmp_path):
    built = model(write(tmp_path / "proj_a.py", NET), "net", kwargs={"width": 6})
    assert built.module[0].out_channels == 6
    assert not built.module[1].training
    for parameter in built.module.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad


def test_package_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path / "proj_pkg/__init__.py", "")
    write(tmp_path / "proj_pkg/nets.py", f"{NET}\nclass Zoo:\n    small = staticmethod(net)\n")
    monkeypatch.chdir(tmp_path)
    assert model("proj_pkg.nets:net").module[0].out_channels == 4
    assert model("proj_pkg.nets:Zoo.small").module[0].out_channels == 4


@pytest.mark.parametrize("lazy", [False, True], ids=["at the top", "inside the callable"])
@pytest.mark.parametrize("package", [False, True], ids=["file", "package"])
def test_sibling_import_works_and_is_listed(tmp_path, monkeypatch, lazy, package):
    sibling = f"sib_{lazy}_{package}"
    write(tmp_path / f"{sibling}.py", NET)
    importing = f"from {sibling} import net\n"
    body = f"def make():\n    {importing}    return net()\n"
    write(tmp_path / "proj_main.py", body if lazy else f"{importing}\ndef make(): return net()\n")
    monkeypatch.chdir(tmp_path if package else "/")
    built = model("proj_main" if package else tmp_path / "proj_main.py", "make")
    names = {"proj_main.py", f"{sibling}.py"}
    assert set(built.code) == {str(tmp_path / name) for name in names}
    assert digests_now(built.code) == built.code


def test_code_digests_tell_changed_and_lost_files(tmp_path):
    write(tmp_path / "sib_digest.py", NET)
    main = write(tmp_path / "proj_digest.py", "from sib_digest import net\n")
    code = model(main, "net").code
    write(tmp_path / "sib_digest.py", NET + "# changed\n")
    assert {path for path, digest in digests_now(code).items() if digest != code[path]} == {
        str(tmp_path / "sib_digest.py")
    }
    main.unlink()
    assert digests_now(code)[str(main)] == ""


def test_building_twice_gives_equal_weights_and_code(tmp_path):
    write(tmp_path / "sib_twice.py", NET)
    path = write(tmp_path / "proj_twice.py", "from sib_twice import net\n")
    one, other = model(path, "net"), model(path, "net")
    assert torch.equal(one.module[0].weight, other.module[0].weight)
    assert one.code == other.code


def test_checkpoint_is_loaded(tmp_path):
    path = write(tmp_path / "proj_trained.py", NET)
    state = {"0.weight": torch.full((4, 3, 1, 1), 2.0), "0.bias": torch.full((4,), 3.0)}
    torch.save({"ema": state}, tmp_path / "w.pt")
    built = model(path, "net", checkpoint=tmp_path / "w.pt", checkpoint_key="ema")
    assert built.module[0].weight.unique().tolist() == [2]
    assert built.module[0].bias.unique().tolist() == [3]


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("torchvision:resnet81", "torchvision has no model 'resnet81'; did you mean 'resnet18'?"),
        ("{here}/proj_x.py:nets", "{here}/proj_x.py has no 'nets'; did you mean 'net'?"),
        ("proj_x:nets", "proj_x has no 'nets'; did you mean 'net'?"),
        ("proj_x:net.small", "proj_x has no 'small'"),
        ("proj_y.nets:net", "there is no module 'proj_y.nets' to import"),
        ("proj_x:size", "proj_x:size is not callable"),
        ("proj_x:words", "proj_x:words returned str, not a torch.nn.Module"),
        ("proj_x", "'proj_x' names no callable"),
        ("proj_x:", "'proj_x:' names no callable"),
    ],
)
def test_wrong_source_is_refused(tmp_path, monkeypatch, source, fact):
    write(tmp_path / "proj_x.py", f"{NET}\nsize = 3\ndef words(): return 'net'\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        model(source.format(here=tmp_path))
    assert caught.value.facts == [fact.format(here=tmp_path)]
    assert caught.value.where == "model.source"


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        ("def make():\n    raise ValueError('no such width')\n", 2, "ValueError: no such width"),
        ("x = 1\nraise RuntimeError('on import')\n", 2, "RuntimeError: on import"),
        ("import proj_no_such_thing\n", 1, "ModuleNotFoundError: No module named"),
        (
            "from torch import nn\n\n\ndef make():\n    return nn.Conv2d(3, 4, 1, groups=2)\n",
            5,
            "ValueError: in_channels must be divisible by groups",
        ),
    ],
    ids=["when called", "when imported", "missing import", "inside torch"],
)
@pytest.mark.parametrize("package", [False, True], ids=["file", "package"])
def test_error_in_the_users_code_names_file_and_line(
    tmp_path, monkeypatch, text, line, error, package
):
    path = write(tmp_path / "proj_bad.py", text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        model("proj_bad" if package else path, "make")
    assert error in str(caught.value)
    assert f"{path}:{line}" in str(caught.value)


def test_syntax_error_names_file_and_line(tmp_path):
    path = write(tmp_path / "proj_syntax.py", "x = 1\ndef make(:\n")
    with pytest.raises(SourceError, match=r"SyntaxError.*proj_syntax\.py, line 2"):
        model(path, "make")


def test_unknown_keyword_argument_is_named(tmp_path):
    path = write(tmp_path / "proj_kwargs.py", NET)
    with pytest.raises(SourceError, match="unexpected keyword argument 'wdth'") as caught:
        model(path, "net", kwargs={"wdth": 3})
    assert "qconvert/models/source.py" not in str(caught.value)


@pytest.mark.parametrize("error", ["RuntimeError('broken')", "ImportError('no proj_cuda here')"])
def test_error_in_a_parent_package_is_shown(tmp_path, monkeypatch, error):
    write(tmp_path / "proj_parent/__init__.py", f"raise {error}\n")
    write(tmp_path / "proj_parent/nets.py", NET)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"broken|no proj_cuda here"):
        model("proj_parent.nets:net")


def test_source_with_random_weights_builds_the_same_each_time(tmp_path):
    path = write(tmp_path / "proj_random.py", NET)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = model(path, "net").module[0].weight
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert torch.equal(model(path, "net").module[0].weight, first)


def test_source_that_leaves_the_process_is_an_error(tmp_path):
    path = write(tmp_path / "proj_exit.py", "def make(): raise SystemExit(2)\n")
    with pytest.raises(SourceError, match="raised SystemExit: 2"):
        model(path, "make")


def test_notes_are_those_of_the_checkpoint(tmp_path):
    path = write(tmp_path / "proj_notes.py", NET)
    state = {"module.0.weight": torch.ones(4, 3, 1, 1), "module.0.bias": torch.ones(4)}
    torch.save(state, tmp_path / "w.pt")
    assert model(path, "net").notes == ()
    assert model(path, "net", checkpoint=tmp_path / "w.pt").notes == (
        "the prefix 'module.' of its names is dropped",
    )


def test_torchvision_model_with_a_pretrained_backbone_downloads_nothing():
    built = model("torchvision:lraspp_mobilenet_v3_large", kwargs={"num_classes": 2})
    with torch.inference_mode():
        assert built.module(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 2, 32, 32)
    assert built.preprocess == {}


def test_timm_model_comes_with_its_preprocessing():
    pytest.importorskip("timm")
    built = model("timm:mobilenetv3_small_050.lamb_in1k", kwargs={"num_classes": 7})
    assert built.preprocess == {
        "channels": 3, "resize": 256, "crop": [224, 224], "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    }  # fmt: skip
    assert built.code == {}


def test_unknown_timm_model_is_named_with_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(SourceError) as caught:
        model("timm:resnet81")
    assert caught.value.facts[0].startswith("timm has no model 'resnet81'; did you mean 'resnet")
