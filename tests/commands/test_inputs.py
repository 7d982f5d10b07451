"""What users have: checkpoints, images, labels and models of every usual form, each through the
command in a fresh process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import user_models
from PIL import Image
from project import Project, Result, figures

SHADES = {
    "red": (200, 30, 30),
    "green": (30, 190, 40),
    "blue": (40, 30, 210),
    "white": (230, 230, 230),
    "black": (15, 15, 15),
}
# torch's own announcement when a user loads a file is no fault of the file.
LOAD = """
import json, sys, torch
torch.set_grad_enabled(False)
model = torch.jit.load(sys.argv[1])
def shown(x):
    if isinstance(x, dict):
        return {k: shown(v) for k, v in x.items()}
    if isinstance(x, (tuple, list)):
        return [type(x).__name__, *map(shown, x)]
    return list(x.shape)
print(json.dumps([shown(model(*map(torch.rand, inputs))) for inputs in json.loads(sys.argv[2])]))
"""


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    """A folder with the user's models."""
    project = Project(tmp_path / "my project")
    project.folder.mkdir()
    shutil.copy(user_models.__file__, project.folder)
    return project


def qconfig(project: Project, model: str, data: dict[str, Any], **changes: Any) -> None:
    project.qconfig(model={"source": f"user_models.py:{model}"}, data=data, **changes)


def well(result: Result) -> str:
    """What was said on the way, of a command that ended well and without noise."""
    assert result.code == 0, result.err
    assert "Warning" not in result.err + result.out
    return result.err


def shapes_of_file(project: Project, *inputs: list[list[int]]) -> list[Any]:
    """The structure of what the saved file returns in a process with nothing but torch, for each
    list of input shapes."""
    command = [sys.executable, "-I", "-c", LOAD, project.output / "model.int8.pt"]
    done = subprocess.run([*command, json.dumps(inputs)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def manifest(project: Project) -> dict[str, Any]:
    """The manifest inside the saved file."""
    with zipfile.ZipFile(project.output / "model.int8.pt") as archive:
        name = next(n for n in archive.namelist() if n.endswith("extra/manifest.json"))
        return json.loads(archive.read(name))


def noise(shade: tuple[int, ...], size: tuple[int, int] = (24, 20), seed: int = 0) -> Image.Image:
    """An image of nearly one colour."""
    generator = np.random.default_rng(seed)
    values = np.asarray(shade) + generator.normal(0, 6, (size[1], size[0], len(shade)))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def deep(low: int, high: int) -> Image.Image:
    """A grey image of 16 bits."""
    values = np.random.default_rng(0).integers(low, high, (20, 24))
    return Image.fromarray(values.astype(np.uint16))


def save_every_form(root: Path) -> int:
    """Images of every format and mode, a folder a colour, and what lies about; their number."""

    def place(name: str) -> Path:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    red, green, blue, white, black = (noise(shade) for shade in SHADES.values())
    red.save(place("rot/a.png"))
    red.save(place("rot/DSC 01.JPG"), quality=95)
    red.convert("CMYK").save(place("rot/print.jpeg"), quality=95)
    transparent = red.convert("RGBA")
    transparent.putalpha(0)  # as ImageFolder, alpha is dropped and not blended
    transparent.save(place("rot/clear.png"))
    green.quantize(16).save(place("grün/palette.png"))
    green.quantize(4).save(place("grün/palette-clear.png"), transparency=0)
    green.save(place("grün/2024/summer/b.webp"), lossless=True)
    green.save(place("grün/c.BMP"))
    blue.save(place("blau/a.tif"))
    blue.save(place("blau/b.TIFF"), compression="tiff_lzw")
    blue.save(place("blau/really-a-gif.png"), format="GIF", save_all=True, append_images=[red])
    deep(55_000, 60_000).save(place("weiß/w16.png"))
    deep(55_000, 60_000).save(place("weiß/w16.tif"))
    white.convert("L").save(place("weiß/grey.jpg"), quality=95)
    white.convert("1").save(place("weiß/bits.png"))
    # Pillow's own way from 16 bits to RGB would make these white.
    deep(300, 3_000).save(place("schwarz/k16.png"))
    black.save(place("schwarz/k.ppm"))
    black.save(place("elsewhere.png"))
    (root / "elsewhere.png").rename(root.parent / "elsewhere.png")
    (root / "schwarz/link.png").symlink_to(root.parent / "elsewhere.png")
    (root / "schwarz/back").symlink_to(root)
    for name in ("schwarz/Thumbs.db", "schwarz/notes.txt", ".DS_Store", "rot/._a.png"):
        place(name).write_bytes(b"no image")
    return 18


def test_every_format_in_class_folders_of_any_name_and_order(empty: Project) -> None:
    """The network answers by colour: a wrong pixel or a wrong order of classes is a wrong top-1."""
    count = save_every_form(empty.folder / "My Bilder")
    names = "rot\r\ngrün\r\nblau\r\nweiß\r\nschwarz\r\n"
    (empty.folder / "classes.txt").write_bytes(b"\xef\xbb\xbf" + names.encode())
    steps = {"resize": [16, 16]}
    data = {"calibration": "My Bilder", "classes": "classes.txt", "preprocess": steps}
    qconfig(empty, "Colours", data)
    said = well(empty.run("convert"))
    assert "files that are no images are left out: 1 .db, 1 .txt" in said
    accuracy = empty.record("convert.json")["accuracy"]
    assert accuracy["images"] == count
    assert figures(accuracy) == (1.0, 1.0)
    assert manifest(empty)["classes"] == names.split()

    # Without the model's own order the folders are sorted, and only "grün" keeps its place.
    result = empty.run("fuse", "--json", "--quiet", "--set", "data.classes=null")
    assert figures(json.loads(result.out)["accuracy"])[0] == pytest.approx(4 / count)


def test_labels_from_a_table(empty: Project) -> None:
    """Names and indexes, in flat and nested folders; files without a row are left out."""
    root = empty.folder / "images"
    (root / "sub").mkdir(parents=True)
    names, numbers = ["file, label"], ["label,file"]
    for i, (name, shade) in enumerate(SHADES.items()):
        noise(shade).save(root / f"{i}.png")
        noise(shade, seed=1).save(root / "sub" / f"{i}.png")
        names += [f"{i}.png,{name}", f"sub/{i}.png,{name}"]
        numbers += [f"{i},{i}.png", f"{i},sub/{i}.png"]
    noise(SHADES["red"]).save(root / "nobody.png")
    (empty.folder / "names.csv").write_text("\n".join(names))
    (empty.folder / "numbers.csv").write_text("\r\n".join(numbers) + "\r\n")
    (empty.folder / "classes.json").write_text(json.dumps({n: i for i, n in enumerate(SHADES)}))
    data = {"calibration": "images", "labels": "names.csv", "classes": "classes.json"}
    qconfig(empty, "Colours", data)
    result = empty.run("fuse", "--json")
    assert "images: 1 of 11 images have no row in names.csv and are left out" in well(result)
    accuracy = json.loads(result.out)["accuracy"]
    assert accuracy["images"] == 10
    assert figures(accuracy)[0] == 1.0
    options = ("--set", "data.labels=numbers.csv", "--set", "data.classes=null")
    result = empty.run("fuse", "--json", *options)
    well(result)
    assert figures(json.loads(result.out)["accuracy"])[0] == 1.0


def test_rotated_photographs_of_several_sizes(empty: Project) -> None:
    """The network answers with the brighter half: the camera's mark decides which is the upper."""
    for i, (mark, size) in enumerate([(3, (24, 16)), (3, (16, 16)), (1, (24, 16)), (1, (40, 32))]):
        for label, name in enumerate(("above", "below")):
            # Marked 3: the camera was held upside down, and what is above is stored below.
            bright = label if mark == 1 else 1 - label
            values = np.full((size[1], size[0]), 40, np.uint8)
            values[bright * size[1] // 2 : (bright + 1) * size[1] // 2] = 220
            exif = Image.Exif()
            exif[0x0112] = mark
            path = empty.folder / "images" / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path, exif=exif, quality=95)
    steps = {"channels": 1}
    qconfig(empty, "Bands", {"calibration": "images", "preprocess": steps})
    options = ("--set", "model.kwargs={parts: 2}")
    result = empty.run("fuse", "--json", *options)
    said = well(result)
    assert (
        "images: rotation marks of the camera are ignored, as torchvision does, in 4 of 8" in said
    )
    assert figures(json.loads(result.out)["accuracy"])[0] == 0.5
    said = well(empty.run("convert", *options, "--set", "data.preprocess.exif=apply"))
    assert "rotation marks" not in said
    assert figures(empty.record("convert.json")["accuracy"])[1] == 1.0
    assert manifest(empty)["preprocess"]["exif"] == "apply"
    assert shapes_of_file(empty, [[2, 1, 30, 50]]) == [[2, 2]]


def test_bad_images_are_all_named_or_skipped_and_counted(project: Project) -> None:
    folder = project.folder / "images"
    (folder / "cow" / "page.jpg").write_text("<html>404</html>")
    (folder / "cow" / "empty.png").write_bytes(b"")
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    result = project.run("convert", "--quiet")
    assert result.code == 4
    for name in ("cow/page.jpg", "cow/empty.png", "cat/0.png"):
        assert f"{folder / name}: is no image, or a damaged one" in result.err
    assert "data.on_bad_image: skip" in result.err
    result = project.run("benchmark", "--set", "data.on_bad_image=skip")
    said = well(result)
    # One folder for both: what is said of it is said once.
    assert said.count(f"images: skipped {folder / 'cow' / 'page.jpg'}: is no image") == 1
    assert said.count("images: 3 of 20 images skipped") == 1
    for role in ("calibration", "evaluation"):
        assert f"3 {role} images could not be read and were skipped" in result.out
    assert project.record("calibration.json")["images"] == 17
    report = project.record("report.json")
    assert report["accuracy"]["images"] == 17
    counted = "3 evaluation images could not be read and were skipped."
    assert counted in report["notes"]


def test_images_of_many_channels(empty: Project) -> None:
    """The network answers with the brightest of five channels: arrays set the ranges, a TIFF of
    five pages is an image as well."""
    generator = np.random.default_rng(0)
    for band in range(5):
        for folder in ("arrays", "pages"):
            (empty.folder / folder / str(band)).mkdir(parents=True)
        for i in range(2):
            values = generator.integers(0, 20_000, (16, 12, 5)).astype(np.uint16)
            values[:, :, band] += 40_000
            np.save(empty.folder / "arrays" / str(band) / f"{i}.npy", values)
            first, *others = (Image.fromarray(values[:, :, page]) for page in range(5))
            path = empty.folder / "pages" / str(band) / f"{i}.tif"
            first.save(path, save_all=True, append_images=others)
    steps = {"channels": 5, "mean": [0.5], "std": [0.1, 0.2, 0.1, 0.1, 0.1]}
    qconfig(empty, "Bands", {"calibration": "arrays", "evaluation": "pages", "preprocess": steps})
    well(empty.run("convert", "--set", "model.kwargs={channels: 5}"))
    accuracy = empty.record("convert.json")["accuracy"]
    assert accuracy["images"] == 10
    assert figures(accuracy) == (1.0, 1.0)
    assert manifest(empty)["inputs"] == [{"shape": [None, 5, None, None], "dtype": "float32"}]


def test_dense_maps_in_a_dict_of_images_of_several_sizes(empty: Project) -> None:
    for i, size in enumerate([(32, 24), (24, 32), (48, 40), (32, 24)]):
        path = empty.folder / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(values).save(path)
    qconfig(empty, "Maps", {"calibration": "images", "labels": "none"})
    result = empty.run("convert", "--set", "model.output=map")
    well(result)
    assert "same answer as float" in result.out
    assert "top-1" not in result.out
    assert "the file also works at 88 x 64" in result.out
    assert empty.record("fused.json")["measured_output"] == "map"
    assert empty.record("fused.json")["outputs"] == {"means": [1, 8], "map": [1, 4, 24, 32]}
    accuracy = empty.record("convert.json")["accuracy"]
    # One answer a pixel.
    assert accuracy["agreement"]["value"] > 0.95
    assert accuracy["metrics"] == []
    found = manifest(empty)
    assert found["inputs"] == [{"shape": [None, 3, None, None], "dtype": "float32"}]
    assert found["measured_output"] == "map"
    assert shapes_of_file(empty, [[1, 3, 24, 32]], [[2, 3, 40, 56]]) == [
        {"means": [1, 8], "map": [1, 4, 24, 32]},
        {"means": [2, 8], "map": [2, 4, 40, 56]},
    ]


def test_embedding_is_measured_by_cosine(project: Project) -> None:
    shutil.copy(user_models.__file__, project.folder)
    budgets = {"min_cosine": 0.9, "max_accuracy_drop": 0.5}
    qconfig(project, "Embedding", {"calibration": "images"}, budgets=budgets)
    result = project.run("benchmark")
    assert result.code == 1
    assert "outputs of shape [1, 4] are taken for numbers, not classes" in result.err
    assert "max_accuracy_drop: not measurable" in result.err
    assert "min_cosine" not in result.err.rpartition("budget missed")[2]
    assert "cosine with float" in result.out
    assert "same answer" not in result.out
    accuracy = project.record("report.json")["accuracy"]
    assert (accuracy["metrics"], accuracy["agreement"]) == ([], None)
    assert 0.99 < accuracy["lowest_cosine"] <= accuracy["cosine"]["value"] <= 1
    assert accuracy["sqnr_db"]["value"] > 20


def test_several_inputs_by_a_transform_and_nested_outputs(project: Project) -> None:
    shutil.copy(user_models.__file__, project.folder)
    transform = "user_models.py:image_and_place"
    data = {"calibration": "images", "labels": "none", "transform": transform}
    qconfig(project, "ImageAndPlace", data)
    said = well(project.run("convert"))
    assert "of its outputs '0' is measured, not '1.0', '1.1' (model.output)" in said
    assert project.record("fused.json")["input_shapes"] == [[1, 3, 8, 8], [1, 8]]
    found = manifest(project)
    assert [x["shape"] for x in found["inputs"]] == [[None, 3, None, None], [None, 8]]
    assert found["preprocess"] is None
    well(project.run("analyze"))
    assert project.record("analysis.json")["measured_output"] == "0"
    assert shapes_of_file(project, [[1, 3, 8, 8], [1, 8]], [[5, 3, 8, 8], [5, 8]]) == [
        ["tuple", [1, 4], ["list", [1, 8, 4, 4], [1, 4, 4, 4]]],
        ["tuple", [5, 4], ["list", [5, 8, 4, 4], [5, 4, 4, 4]]],
    ]


def answers_to_pixels(project: Project, *, normalized: bool) -> torch.Tensor:
    """What the saved file says of each calibration image, as a user calls it."""
    file = torch.jit.load(project.output / "model.int8.pt")
    found = []
    for path in sorted((project.folder / "images").rglob("*.png")):
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).unsqueeze(0)
        found.append(file((image.float() / 255 - 0.5) / 0.25 if normalized else image))
    return torch.cat(found)


def test_file_takes_pixels_by_preprocess_and_by_a_transform(project: Project) -> None:
    well(project.run("convert"))
    float_taking = answers_to_pixels(project, normalized=True)
    steps = {"mean": [0.5], "std": [0.25]}
    data = {"calibration": "images", "input": "uint8", "preprocess": steps}
    project.qconfig(data=data)
    result = project.run("benchmark")
    said = well(result)
    assert "fuse: its inputs have changed" in said
    assert "take pixels (uint8) and normalize them inside: latency includes that" in result.out
    found = manifest(project)
    assert found["inputs"] == [{"shape": [None, 3, None, None], "dtype": "uint8"}]
    assert found["normalized_inside"] == steps
    assert not {"mean", "std"} & found["preprocess"].keys()
    assert found["operators"][:2] == [
        ["pixels", "int8", None],
        ["0", "int8", "quantized::conv2d_relu"],
    ]
    taking_pixels = answers_to_pixels(project, normalized=False)
    signal, error = taking_pixels.square().sum(), (taking_pixels - float_taking).square().sum()
    assert 10 * torch.log10(signal / error) > 25
    (project.folder / "pixels.py").write_text(
        "from torchvision.transforms.v2 import functional as F\npixels = F.pil_to_tensor\n"
    )
    project.qconfig(data={**data, "transform": "pixels.py:pixels"})
    well(project.run("convert"))
    assert manifest(project)["preprocess"] is None
    assert manifest(project)["normalized_inside"] == steps
    assert torch.equal(answers_to_pixels(project, normalized=False), taking_pixels)


def test_image_that_more_than_convolutions_read_is_normalized_in_float_and_a_line_says_it(
    empty: Project,
) -> None:
    noise(SHADES["red"]).save(empty.folder / "a.png")
    noise(SHADES["blue"]).save(empty.folder / "b.png")
    data = {"calibration": ".", "labels": "none", "input": "uint8"}
    qconfig(empty, "Weighted", data, quantization={"decide": "int8"})
    result = empty.run("convert")
    well(result)
    assert (
        "in float: normalization (1 normalization): mul reads normalized pixels, and is no "
        "convolution"
    ) in " ".join(result.out.split())


def test_model_of_two_inputs_takes_no_pixels(project: Project) -> None:
    shutil.copy(user_models.__file__, project.folder)
    data = {"calibration": "images", "labels": "none", "input": "uint8"}
    qconfig(project, "ImageAndPlace", data)
    result = project.run("convert")
    assert result.code != 0
    assert "the model reads 2 inputs (image, place), the images give 1" in result.err


def test_timm_model_with_its_own_preprocessing_and_partly_another(project: Project) -> None:
    pytest.importorskip("timm")
    model = {"source": "timm:test_resnet", "kwargs": {"num_classes": 3}}
    project.qconfig(model=model, data={"calibration": "images"})
    said = well(project.run("fuse"))
    own = "channels 3, resize 168, crop [160, 160], interpolation bilinear, mean [0.5, 0.5, 0.5]"
    assert f"data.preprocess: the model's own where not set: {own}" in said
    assert project.record("fused.json")["input_shapes"] == [[1, 3, 160, 160]]
    data = {"calibration": "images", "preprocess": {"resize": 64, "mean": [0.25]}}
    project.qconfig(model=model, data=data)
    said = well(project.run("convert"))
    assert "where not set: channels 3, interpolation bilinear, std [0.5, 0.5, 0.5]" in said
    assert "no crop: the model's own, [160, 160], is for another resize" in said
    steps = manifest(project)["preprocess"]
    assert (steps["resize"], steps["crop"]) == (64, None)
    assert (steps["mean"], steps["std"]) == ([0.25], [0.5, 0.5, 0.5])
    assert shapes_of_file(project, [[1, 3, 64, 64]]) == [[1, 3]]


def on_cuda(path: Path) -> None:
    """Changes a checkpoint as if its tensors had been saved on a GPU."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in content.items():
            if name.endswith("data.pkl"):
                assert b"X\x03\x00\x00\x00cpu" in record
                record = record.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            archive.writestr(name, record)


def from_lightning(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    named = {f"model._orig_mod.{name}": value.half() for name, value in state.items()}
    named["criterion.weight"] = torch.ones(3)
    return {"epoch": 3, "state_dict": named, "optimizer_states": [{"lr": 0.1}]}


def from_own_loop(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    named = {f"module.{name}": value.bfloat16() for name, value in state.items()}
    return {"epoch": 3, "nets": {"ema": named, "net": None}}


FORMS: list[tuple[str, Callable[..., Any], list[str], list[str]]] = [
    ("last.ckpt", from_lightning, [], [
        "the weights are those in 'state_dict' (model.checkpoint_key); ignored: epoch, "
        "optimizer_states",
        "the prefix 'model.' of its names is dropped",
        "outside 'model.': criterion.weight",
        "float16 weights are raised to float32",
    ]),
    ("best.pth.tar", from_own_loop, ["--set", "model.checkpoint_key=nets.ema"], [
        "the prefix 'module.' of its names is dropped",
        "bfloat16 weights are raised to float32",
    ]),
]  # fmt: skip


def test_checkpoints_as_training_leaves_them(project: Project) -> None:
    """Every form gives the weights of the plain file."""
    plain = project.folder / "weights.pt"
    # Multiples of 1/64, which half precision holds exactly.
    state = {
        name: (64 * value).round() / 64 if value.is_floating_point() else value
        for name, value in torch.load(plain, weights_only=True).items()
    }
    torch.save(state, plain)
    well(project.run("fuse", "--quiet"))
    expected = project.record("fused.json")["weights"]
    for file, form, options, lines in FORMS:
        torch.save(form(state), project.folder / file)
        on_cuda(project.folder / file)
        said = well(project.run("fuse", "--set", f"model.checkpoint={file}", *options))
        assert project.record("fused.json")["weights"] == expected
        for line in lines:
            assert any(line in s for s in said.splitlines() if s.startswith("checkpoint: ")), line
