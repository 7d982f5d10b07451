"""init: finds out what it can about a model and its images, and writes a qconfig to start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qconvert.errors import BadImageError, CheckpointKeysError, LabelError, QConvertError
from qconvert.images.decode import decode, size_of
from qconvert.images.folder import ImageSet, read_folder
from qconvert.images.labels import is_table, read_classes
from qconvert.images.preprocess import Preprocessed
from qconvert.measurement.detections import KEYS
from qconvert.models.detectors import Detector
from qconvert.models.graph import required_inputs
from qconvert.models.outputs import are_answers, choose, tensors
from qconvert.models.source import FloatModel, build
from qconvert.qconfig import ModelSection, Preprocess
from qconvert.qconfig_file import load
from qconvert.registry import MODEL_SOURCES
from qconvert.starter import TODO, Findings, Request, Setting, to_yaml
from qconvert.steps.voice import Voice
from qconvert.workspace import write_atomically

# Names of folders that hold a part of the images, most telling first.
_CALIBRATION = ("calibration", "calib", "train", "training")
_EVALUATION = ("evaluation", "eval", "val", "valid", "validation", "test", "testing")
# Files that people keep their classes in, among or beside the images.
_CLASS_FILES = ("classes.txt", "labels.txt", "classes.json", "class_to_idx.json")
# Sides that models are made for, the most usual first.
_SIDES = (
    224, 256, 32, 28, 64, 128, 96, 112, 160, 192, 240, 260, 288, 299, 300, 320, 384, 448, 512,
    16, 20, 24, 36, 40, 48, 72, 80, 100, 144, 200, 518, 640,
)  # fmt: skip


def write_starter(request: Request, voice: Voice) -> Findings:
    """Builds the model, looks at the images, tries the model on one, and writes the qconfig.

    Raises OutputError and the errors of sources, checkpoints and images.
    """
    calibration, evaluation = _folders(request)
    images = read_folder(calibration, "none", None)
    with voice.busy("building the float model"):
        model, kwargs = _built(request, calibration)
    found = _findings(request, images, evaluation, model, kwargs)
    text = to_yaml(found, request.target)
    write_atomically(request.target, text.encode())
    load(request.target)  # a file that cannot be read back is a bug
    return found


def _folders(request: Request) -> tuple[Path, Setting]:
    """The folders of calibration and evaluation: as said, or two parts of the one folder."""
    if request.evaluation is not None:
        return request.images, Setting(request.evaluation, "to judge by: not those of calibration")
    parts = {p.name.lower(): p for p in sorted(request.images.glob("*/"))}
    first = next((parts[name] for name in _CALIBRATION if name in parts), None)
    second = next((parts[name] for name in _EVALUATION if name in parts), None)
    if first is not None and second is not None:
        return first, Setting(second, "to judge by")
    return request.images, Setting(
        None, "a folder of other images to judge by; without it those of calibration are", True
    )


def _built(request: Request, calibration: Path) -> tuple[FloatModel, Mapping[str, Any]]:
    """The model; with as many classes as there are folders, if its checkpoint wants that."""
    section = ModelSection(
        source=request.source, kwargs=dict(request.kwargs), checkpoint=request.checkpoint
    )
    try:
        return build(section), request.kwargs
    except CheckpointKeysError:
        folders = len(list(calibration.glob("*/")))
        if request.kwargs or not folders or not _library(request.source):
            raise
        kwargs = {"num_classes": folders}
        try:
            return build(section.model_copy(update={"kwargs": kwargs})), kwargs
        except QConvertError:
            pass
        raise


def _library(source: str) -> str | None:
    library = source.partition(":")[0]
    return library if library in MODEL_SOURCES else None


def _findings(
    request: Request,
    images: ImageSet,
    evaluation: Setting,
    model: FloatModel,
    kwargs: Mapping[str, Any],
) -> Findings:
    required = required_inputs(model.module)
    bad: Setting | None = None
    if len(required) > 1:
        steps: dict[str, Setting] = {}
        remark = (
            f"{TODO}: transform: prepare.py:prepare, which returns the model's {len(required)} "
            f"inputs ({', '.join(required)})"
        )
        outputs: dict[str, Tensor] | str = "it reads several inputs"
    else:
        images, bad = _readable(request, images, model)
        steps, remark, outputs = _tried(request, images, model)
    output, count, about = _outputs(outputs)
    labels, classes = _labels(evaluation.value or images.root, count)
    if isinstance(outputs, str):
        labels = Setting("none", f"the model could not be tried: {outputs}", True)
    return Findings(
        source=str(request.source),
        kwargs=kwargs,
        checkpoint=request.checkpoint,
        checkpoint_remark="; ".join(model.notes)
        or ("" if request.checkpoint else "the trained weights: .pt, .pth or .safetensors"),
        output=output,
        calibration=images.root,
        evaluation=evaluation,
        labels=labels,
        classes=classes,
        preprocess=steps,
        preprocess_remark=remark,
        outputs=about,
        on_bad_image=bad,
    )


def _readable(
    request: Request, images: ImageSet, model: FloatModel
) -> tuple[ImageSet, Setting | None]:
    """The images without those that cannot be read, and `on_bad_image` if there are such.

    Only the first is read whole, of the others the header. Raises BadImageError when all are bad.
    """
    known = _library(request.source) is not None
    channels = Preprocess(**model.preprocess).channels if known else _channels(model.module)
    bad: dict[Path, BadImageError] = {}
    for i, path in enumerate(images.files):
        try:
            if len(bad) == i:
                decode(path, channels)
            else:
                size_of(path, "ignore")
        except BadImageError as error:
            bad[path] = error
    if not bad:
        return images, None
    first, reason = next(iter(bad.items()))
    if len(bad) == len(images):
        raise reason
    name = first.relative_to(images.root).as_posix()
    remark = (
        f"{len(bad)} of {len(images)} images are left out, first {name!r}: it {reason.facts[0]}"
    )
    return images.without(bad), Setting("skip", remark, True)


def _tried(
    request: Request, images: ImageSet, model: FloatModel
) -> tuple[dict[str, Setting], str, dict[str, Tensor] | str]:
    """The preprocessing, a remark on it, and what the model returns for an image prepared so."""
    steps, remark = _preprocess(request, images, model)
    settings = {key: setting.value for key, setting in steps.items() if setting.value is not None}
    read = Preprocessed(Preprocess(**{**model.preprocess, **settings}))
    outputs = _attempt(model.module, read(images.files[0])[0])
    if isinstance(outputs, str) and "resize" in steps:
        failed = Setting(steps["resize"].value, f"the model fails so: {outputs}", True)
        steps = {**steps, "resize": failed}
    return steps, remark, outputs


def _attempt(module: nn.Module, x: Tensor) -> dict[str, Tensor] | str:
    """The model's outputs, or why it gives none."""
    try:
        with torch.inference_mode():
            return tensors(module(x))
    except Exception as error:  # a model says in its own way what it does not read
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _outputs(outputs: dict[str, Tensor] | str) -> tuple[Setting | None, int | None, str]:
    """The measured output if there are several, the number of classes, and words about both."""
    if isinstance(outputs, str):
        return None, None, ""
    if {f"0.{key}" for key in KEYS} <= outputs.keys():
        return None, None, "returns boxes, labels and scores of each image"
    name = choose(outputs, None)
    shape = list(outputs[name].shape)
    classes = shape[1] if len(shape) == 2 and are_answers(outputs[name], "auto") else None
    if len(outputs) == 1:
        return None, classes, f"returns {shape}"
    others = ", ".join(key for key in outputs if key != name)
    return Setting(name, f"measured; the model also returns {others}"), classes, ""


def _labels(judged: Path, classes: int | None) -> tuple[Setting, Setting]:
    """`labels` and `classes`."""
    order = Setting(None, "classes.txt, one a line in the model's order, if not folders, sorted")
    table = judged / "labels.csv"
    if is_table(table):
        return Setting(table, "columns `file` and `label`"), order
    images = read_folder(judged, "none", None)
    relative = [path.relative_to(judged).parts for path in images.files]
    if any(len(parts) < 2 for parts in relative):
        return Setting("none", "the images are in no class folders; agreement is measured"), order
    folders = {parts[0] for parts in relative}
    if classes is None:
        return Setting("none", f"{len(folders)} folders; the outputs are no classes"), order
    for path in (parent / name for parent in (judged, judged.parent) for name in _CLASS_FILES):
        if path.is_file() and _names(path, folders, classes):
            return Setting("folders"), Setting(path, f"{classes} classes in the model's order")
    if len(folders) == classes:
        return Setting("folders", f"{classes} folders, sorted, are the model's classes"), order
    wanted = f"for `folders` name all {classes} classes in `classes`; {len(folders)} have images"
    return Setting("none", wanted, True), order


def _names(path: Path, folders: set[str], classes: int) -> bool:
    """Whether a file names all classes, and the folders among them."""
    try:
        names = read_classes(path)
    except LabelError:
        return False
    return len(names) == classes and folders <= set(names)


def _preprocess(
    request: Request, images: ImageSet, model: FloatModel
) -> tuple[dict[str, Setting], str]:
    if model.preprocess:
        return {}, "preprocess: timm's own for this model is the default"
    known = _torchvision(request) if _library(request.source) == "torchvision" else None
    if known is not None:
        return known
    channels = _channels(model.module)
    sides = {size_of(path, "ignore") for path in images.files}
    resize, crop = _size(model.module, images, channels, len(sides) == 1)
    return {
        "channels": Setting(channels, "of the first layer"),
        "resize": resize,
        "crop": crop,
        **_normalization(model.module),
    }, ""


def _normalization(module: nn.Module) -> dict[str, Setting]:
    if isinstance(module, Detector):
        about = "the model normalizes by itself"
        return {"mean": Setting([0.0], about), "std": Setting([1.0], about)}
    return {
        "mean": Setting([0.0], "as in training; 0 and 1 leave pixels between 0 and 1", True),
        "std": Setting([1.0], "as in training", True),
    }


def _channels(module: nn.Module) -> int:
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.LazyConv2d)):
            return layer.in_channels
    return 3


def _size(
    module: nn.Module, images: ImageSet, channels: int, same: bool
) -> tuple[Setting, Setting]:
    """`resize` and `crop` at which the model works."""
    crop = Setting(None, "centre crop, if training had one")
    if same:
        x = Preprocessed(Preprocess(channels=channels))(images.files[0])[0]
        if not isinstance(_attempt(module, x), str):
            size = f"{x.shape[2]} x {x.shape[3]}"
            return Setting(None, f"the images are all {size}, which the model reads"), crop
    works = list(_working(module, channels))
    if len(works) == 1:
        side = works[0]
        return Setting([side, side], "the size that the model reads"), crop
    if works:
        return Setting([224, 224], "as in training; the model reads several sizes", True), crop
    return Setting([224, 224], "as in training", True), crop


def _working(module: nn.Module, channels: int) -> Iterator[int]:
    """The sides at which the model works; two are enough to know that it is not bound to one."""
    found = 0
    for side in _SIDES:
        if not isinstance(_attempt(module, torch.zeros(1, channels, side, side)), str):
            found += 1
            yield side
            if found == 2:
                return


def _torchvision(request: Request) -> tuple[dict[str, Setting], str] | None:
    """The transforms of torchvision's weights: those of this checkpoint, known by its file name, or
    of the model's first ones."""
    from torchvision.models import get_model_weights

    try:
        weights: Sequence[Any] = list(get_model_weights(request.source.partition(":")[2]))
    except ValueError:
        return None
    name = "" if request.checkpoint is None else request.checkpoint.name
    exact = [entry for entry in weights if entry.url.endswith("/" + name)]
    if not weights:
        return None
    chosen = (exact or weights)[0]
    steps: Any = chosen.transforms()
    if not hasattr(steps, "mean") or not hasattr(steps, "resize_size"):
        return None
    remark = f"from torchvision's weights {chosen}"
    unsure = not exact
    resize, crop = list(steps.resize_size), list(getattr(steps, "crop_size", []))

    def setting(value: Any, about: str = "") -> Setting:
        return Setting(value, about, unsure and bool(about))

    first = f"taken {remark}; must be as in training" if unsure else remark
    return {
        "resize": setting(resize[0] if len(resize) == 1 else resize, first),
        **({"crop": setting(crop[0] if len(crop) == 1 else crop)} if crop else {}),
        "interpolation": setting(steps.interpolation.value),
        "mean": setting(list(steps.mean)),
        "std": setting(list(steps.std)),
    }, ""
