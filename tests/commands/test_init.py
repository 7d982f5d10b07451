"""`qconvert init`: what it finds out and what it marks, and that its file runs as it stands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import user_models
import yaml
from PIL import Image
from project import Project, Result
from torch import nn


@pytest.fixture
def bare(tmp_path: Path) -> Project:
    """A folder with the user's models, no images and no qconfig."""
    project = Project(tmp_path / "work")
    project.folder.mkdir()
    shutil.copy(user_models.__file__, project.folder)
    return project


def save_images(root: Path, *classes: str, side: int = 32, count: int = 3) -> None:
    """Images of noise, the same side each, below the root or in class folders."""
    generator = np.random.default_rng(0)
    for name in classes or (".",):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            values = generator.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(values).save(root / name / f"{i}.png")


def trained(network: nn.Module, path: Path, side: int) -> None:
    """Saves seeded weights whose batch norms have seen images."""
    torch.manual_seed(0)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(8, 3, side, side))
    torch.save({"model": network.state_dict(), "epoch": 3}, path)


def written(project: Project, name: str = "qconfig.yaml") -> dict[str, Any]:
    return yaml.safe_load((project.folder / name).read_text())


def marked(result: Result) -> list[str]:
    """The keys that are left to the user, of an `init --json`."""
    assert result.code == 0, result.err
    assert "Warning" not in result.err
    return [line.lstrip("# ").partition(":")[0] for line in json.loads(result.out)["todo"]]


def test_torchvision_model_of_other_classes_runs_as_written(bare: Project) -> None:
    """Two parts of images; the checkpoint tells that the model has as many classes as folders."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    trained(resnet18(num_classes=3), bare.folder / "weights.pt", 64)
    for part in ("train", "val"):
        save_images(bare.folder / "images" / part, "cat", "cow", "große Hunde")
    options = ("--checkpoint", "weights.pt", "--images", "images")
    result = bare.call("init", "--source", "torchvision:resnet18", *options)
    assert result.code == 0, result.err
    assert "wrote " in result.out
    assert "next: qconvert benchmark qconfig.yaml" in result.out
    text = (bare.folder / "qconfig.yaml").read_text()
    assert text in result.out
    assert "checkpoint: weights.pt  # the weights are those in 'model'" in text
    assert "TODO: taken from torchvision's weights ResNet18_Weights.IMAGENET1K_V1" in text
    config = written(bare)
    assert config["model"]["kwargs"] == {"num_classes": 3}
    assert config["data"]["calibration"] == "images/train"
    assert config["data"]["evaluation"] == "images/val"
    assert config["data"]["labels"] == "folders"
    assert config["data"]["preprocess"] == {
        "resize": 256, "crop": 224, "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    result = bare.call("convert", "qconfig.yaml", "--set", "benchmark.seconds=0.1")
    assert result.code == 0, result.err
    assert "Warning" not in result.err
    record = json.loads((bare.folder / config["output"] / "convert.json").read_text())
    assert record["accuracy"]["images"] == 9
    assert record["accuracy"]["sqnr_db"]["value"] > 20
    assert record["coverage"]["int8_macs"] > 0.99 * record["coverage"]["macs"]


def test_timm_model_runs_as_written(bare: Project) -> None:
    pytest.importorskip("timm")
    save_images(bare.folder / "images")
    result = bare.call("init", "new/my.yaml", "--source", "timm:test_resnet", "--images", "images",
                       "--json", "--quiet")  # fmt: skip
    assert marked(result) == ["checkpoint", "evaluation"]
    assert result.err == ""
    config = written(bare, "new/my.yaml")
    assert config["data"] == {"calibration": "../images", "labels": "none"}
    assert "timm's own for this model" in (bare.folder / "new" / "my.yaml").read_text()
    result = bare.call("convert", "new/my.yaml", "--set", "benchmark.seconds=0.1")
    assert result.code == 0, result.err
    assert "resize 168, crop [160, 160]" in result.err
    assert (bare.folder / "new" / config["output"] / "model.int8.pt").is_file()


def test_model_of_one_size_and_channel_with_a_table_of_labels(bare: Project) -> None:
    """The images are larger than what the model reads, which is found by trying."""
    save_images(bare.folder / "images")
    (bare.folder / "images" / "labels.csv").write_text("file,label\n0.png,a\n1.png,b\n2.png,c\n")
    options = ("--source", "user_models.py:Digits", "--images", "images", "--json")
    assert marked(bare.call("init", *options)) == ["checkpoint", "evaluation", "mean", "std"]
    data = written(bare)["data"]
    assert data["labels"] == "images/labels.csv"
    assert data["preprocess"] == {
        "channels": 1, "resize": [28, 28], "mean": [0.0], "std": [1.0]
    }  # fmt: skip
    result = bare.call("fuse", "qconfig.yaml", "--json", "--set", "benchmark.seconds=0.1")
    assert result.code == 0, result.err
    assert json.loads(result.out)["accuracy"]["metrics"] != []


def test_model_of_any_size_with_classes_beside_the_images(bare: Project) -> None:
    for part in ("calib", "test"):
        save_images(bare.folder / "images" / part, "b", "a", "e", "d", "c", side=24)
    (bare.folder / "images" / "classes.txt").write_text("e\nd\nc\nb\na\n")
    options = ("--source", "user_models.py:Colours", "--images", "images", "--json")
    assert marked(bare.call("init", *options)) == ["checkpoint", "mean", "std"]
    data = written(bare)["data"]
    assert data["classes"] == "images/classes.txt"
    assert data["labels"] == "folders"
    assert data["calibration"] == "images/calib"
    assert data["evaluation"] == "images/test"
    # The images have one size, and the model reads it.
    assert data["preprocess"] == {"channels": 3, "mean": [0.0], "std": [1.0]}

    # Of several sizes none is the model's own: the user is asked.
    save_images(bare.folder / "images" / "calib", "a", side=40)
    options = ("--source", "user_models.py:Maps", "--images", "images/calib", "--json", "--force")
    assert marked(bare.call("init", *options)) == [
        "checkpoint", "evaluation", "labels", "resize", "mean", "std"
    ]  # fmt: skip
    config = written(bare)
    assert config["model"]["output"] == "means"
    assert config["data"]["preprocess"]["resize"] == [224, 224]


def test_mistakes_are_listed_and_a_file_is_not_overwritten(bare: Project) -> None:
    save_images(bare.folder / "images")
    (bare.folder / "qconfig.yaml").write_text("mine\n")
    options = ("--source", "no.py:Network", "--images", "nowhere", "--checkpoint", "lost.pt",
               "--evaluation", "away", "--kwargs", "[3]")  # fmt: skip
    result = bare.call("init", *options)
    assert result.code == 2
    for fact in (
        "--images: there is no folder nowhere",
        "--checkpoint: there is no file lost.pt",
        "--evaluation: there is no folder away",
        "--source: there is no file no.py",
        "--kwargs: '[3]' is no mapping in YAML",
        "qconfig.yaml is there already; --force replaces it",
    ):
        assert f"init: {fact}" in result.err
    source = ("--source", "torchvision:resnet18x", "--images", "images", "--force")
    result = bare.call("init", *source, "--json", "--quiet")
    assert result.code == 3
    assert "torchvision has no model 'resnet18x'; did you mean 'resnet18'?" in result.err
    assert json.loads(result.out)["error"]["kind"] == "model-source"
    assert (bare.folder / "qconfig.yaml").read_text() == "mine\n"


def test_table_in_another_encoding_or_of_other_columns_is_none(bare: Project) -> None:
    save_images(bare.folder / "images")
    options = ("--source", "user_models.py:Digits", "--images", "images", "--json", "--force")
    for content in ("file,label\n0.png,Käfer\n".encode("latin-1"), b"filename,label\n0.png,a\n"):
        (bare.folder / "images" / "labels.csv").write_bytes(content)
        marked(bare.call("init", *options))
        assert written(bare)["data"]["labels"] == "none"


def test_image_that_cannot_be_read_is_passed_over(bare: Project) -> None:
    save_images(bare.folder / "images", side=24)
    for name in ("0.png", "2.png"):
        (bare.folder / "images" / name).write_text("no image")
    options = ("--source", "user_models.py:Colours", "--images", "images", "--json", "--force")
    assert "on_bad_image" in marked(bare.call("init", *options))
    assert written(bare)["data"]["on_bad_image"] == "skip"
    assert (
        "on_bad_image: skip  # TODO: 2 of 3 images are left out, first '0.png': it is no image"
        in (bare.folder / "qconfig.yaml").read_text()
    )
    (bare.folder / "images" / "1.png").write_text("no image")
    result = bare.call("init", *options)
    assert result.code == 4
    assert "0.png: is no image, or a damaged one" in result.err
