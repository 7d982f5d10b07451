"""Builds the float model that a qconfig names, in eval mode, with its checkpoint loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qconvert.errors import SourceError, did_you_mean
from qconvert.models.checkpoint import load_checkpoint
from qconvert.models.detectors import Detector, is_detector
from qconvert.qconfig import ModelSection
from qconvert.registry import MODEL_SOURCES
from qconvert.user_code import Imports, folder_of, guarded, resolve

WHERE = "model.source"
_FORMS = "torchvision:NAME, timm:NAME, package.module:callable or path/to/file.py:callable"


@dataclass(frozen=True)
class FloatModel:
    """The user's model. `module` is in eval mode, on the CPU, float32, without gradients.

    `code` holds the digest of every file of the user's own code that building it has imported,
    `notes` what was decided about its checkpoint, in words, and `preprocess` the settings of
    `data.preprocess` that the source knows for itself (timm's do).
    """

    module: nn.Module
    code: dict[str, str]
    notes: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Library:
    """A library of models: `build` takes the keyword arguments of the qconfig and downloads nothing
    unasked, `preprocess` gives the settings of `data.preprocess` for a model built with these."""

    build: Callable[..., Any]
    preprocess: Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Any]]


def build(section: ModelSection) -> FloatModel:
    """Imports the source, calls it, loads the checkpoint.

    Raises SourceError that names the place in the user's code when that code is at fault, and the
    errors of `load_checkpoint`.
    """
    # A source without a checkpoint may have random weights: let them be the same each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _build(section)


def _build(section: ModelSection) -> FloatModel:
    place, _, name = section.source.rpartition(":")
    library: Library | None = None
    imports = Imports(folder_of(section.source))
    with imports:
        if place in MODEL_SOURCES:
            library = MODEL_SOURCES[place].load()(name)
            function = library.build
        else:
            function = resolve(section.source, SourceError, WHERE, _FORMS)
        with guarded(f"calling it with {section.kwargs}", SourceError, WHERE):
            module = function(**section.kwargs)
    if not isinstance(module, nn.Module):
        raise SourceError(
            f"{section.source} returned {type(module).__name__}, not a torch.nn.Module",
            where=WHERE,
            fix="name a function or class that returns the model",
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise SourceError(
            f"{section.source} returned a TorchScript module, which holds no Python to convert",
            where=WHERE,
            fix="return the torch.nn.Module that it was made of",
        )
    module = _uncompiled(module)
    notes: tuple[str, ...] = ()
    if section.checkpoint is not None:
        notes = load_checkpoint(module, section.checkpoint, section.checkpoint_key)
    if is_detector(module):
        module = Detector(module)
    module = module.eval().float().requires_grad_(False)
    code = {} if library else imports.digests()
    known = library.preprocess(module, section.kwargs) if library else {}
    return FloatModel(module, code, notes, known)


def _uncompiled(module: nn.Module) -> nn.Module:
    """Without the wrappers of torch.compile, whose code is that of what they hold."""
    while "_orig_mod" in module._modules:
        module = module._orig_mod  # type: ignore[assignment]
    for name, inner in list(module.named_modules()):
        if name and "_orig_mod" in inner._modules and "_orig_mod" not in name.split("."):
            module.set_submodule(name, _uncompiled(inner))
    return module


def torchvision(name: str) -> Library:
    """`torchvision:NAME`: any model of `torchvision.models.list_models()`, without weights."""
    from torchvision import models

    if name not in models.list_models():
        hint = did_you_mean(name, models.list_models())
        raise SourceError(
            f"torchvision has no model {name!r}{hint}",
            where=WHERE,
            fix="correct the name; torchvision.models.list_models() has them all",
        )

    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # Some take a second kind of pretrained weights, which they would download.
    nothing = {key: None for key in ("weights", "weights_backbone") if key in parameters}

    def build_without_download(**kwargs: Any) -> nn.Module:
        return models.get_model(name, **{**nothing, **kwargs})

    return Library(build_without_download, lambda module, kwargs: {})


def timm(name: str) -> Library:
    """`timm:NAME`: any model of `timm.list_models()`, without weights."""
    try:
        import timm as library
    except ModuleNotFoundError as error:
        raise SourceError(
            f"{error.name} is not installed", where=WHERE, fix="pip install 'qconvert[timm]'"
        ) from None
    if not library.is_model(name.partition(".")[0]):
        hint = did_you_mean(name, library.list_models())
        raise SourceError(
            f"timm has no model {name!r}{hint}",
            where=WHERE,
            fix="correct the name; timm.list_models() has them all",
        )

    def build_without_download(**kwargs: Any) -> nn.Module:
        return library.create_model(name, **{"pretrained": False, **kwargs})

    return Library(build_without_download, _timm_preprocess)


def _timm_preprocess(module: nn.Module, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation transform of timm's `pretrained_cfg`, as `timm.data.create_transform` makes
    it: the shorter side to `crop / crop_pct`, then the centre crop; `squash` ignores the sides'
    ratio."""
    from timm.data import resolve_model_data_config

    given = {name: kwargs[name] for name in ("in_chans", "img_size") if name in kwargs}
    config = resolve_model_data_config(module, given)
    channels, height, width = config["input_size"]
    share = config["crop_pct"]
    if config["crop_mode"] == "squash" or height != width:
        resize: Any = [int(height / share), int(width / share)]
    else:
        resize = int(height / share)
    return {
        "channels": channels,
        "resize": resize,
        "crop": [height, width],
        "interpolation": config["interpolation"],
        "mean": tuple(config["mean"])[:channels],
        "std": tuple(config["std"])[:channels],
    }
