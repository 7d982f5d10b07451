"""Builds the float model that a qconfig names, in eval mode, with its checkpoint loaded."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qconvert.errors import ModelError, did_you_mean
from qconvert.models.checkpoint import load_checkpoint
from qconvert.models.user_code import is_users, place_of
from qconvert.qconfig import ModelSection
from qconvert.workspace import file_digest


@dataclass(frozen=True)
class FloatModel:
    """The user's model. `module` is in eval mode, on the CPU, float32, without gradients.

    `code` holds the digest of every file of the user's own code that building it has imported.
    """

    module: nn.Module
    code: dict[str, str]


def build(section: ModelSection) -> FloatModel:
    """Imports the source, calls it, loads the checkpoint.

    Raises ModelError that names the place in the user's code when that code is at fault.
    """
    # A source without a checkpoint may have random weights: let them be the same each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _build(section)


def _build(section: ModelSection) -> FloatModel:
    place = section.source.rpartition(":")[0]
    folder = Path(place).parent if place.endswith(".py") else Path.cwd()
    before = set(sys.modules)
    with _first_on_path(folder):
        module = _call(_resolve(section.source), section)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"{section.source} returned {type(module).__name__}, not a torch.nn.Module",
            where="model.source",
            fix="name a function or class that returns the model",
        )
    if section.checkpoint is not None:
        load_checkpoint(module, section.checkpoint, section.checkpoint_key)
    module = module.eval().float().requires_grad_(False)
    files = [] if place == "torchvision" else _users_files(before, folder)
    return FloatModel(module, {str(path): file_digest(path) for path in files})


def code_digests(paths: dict[str, str]) -> dict[str, str]:
    """Today's digests of files that `FloatModel.code` listed; a lost file has an empty one."""
    return {path: file_digest(Path(path)) if Path(path).is_file() else "" for path in paths}


def _resolve(source: str) -> Callable[..., Any]:
    place, colon, name = source.rpartition(":")
    if not colon or not name:
        raise ModelError(
            f"{source!r} is not a model source",
            where="model.source",
            fix="write torchvision:NAME, package.module:callable or path/to/file.py:callable",
        )
    if place == "torchvision":
        return _torchvision(name)
    owner = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    for part in name.split("."):
        if not hasattr(owner, part):
            hint = did_you_mean(part, [n for n in dir(owner) if not n.startswith("_")])
            raise ModelError(f"{place} has no {part!r}{hint}", where="model.source")
        owner = getattr(owner, part)
    if not callable(owner):
        raise ModelError(f"{source} is not callable", where="model.source")
    return owner


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    if name not in models.list_models():
        hint = did_you_mean(name, models.list_models())
        raise ModelError(f"torchvision has no model {name!r}{hint}", where="model.source")

    parameters = inspect.signature(models.get_model_builder(name)).parameters
    # Some take a second kind of pretrained weights, which they would download.
    nothing = {key: None for key in ("weights", "weights_backbone") if key in parameters}

    def build_without_download(**kwargs: Any) -> nn.Module:
        return models.get_model(name, **{**nothing, **kwargs})

    return build_without_download


def _from_file(path: Path) -> Any:
    name = f"qconvert_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} cannot be imported", where="model.source")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _user_code("importing it"):
        spec.loader.exec_module(module)
    return module


def _from_package(name: str) -> Any:
    with _user_code("importing it"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
    raise ModelError(
        f"there is no module {name!r} to import",
        where="model.source",
        fix="install it, or run in the folder that holds it",
    )


def _call(function: Callable[..., Any], section: ModelSection) -> Any:
    with _user_code(f"calling it with {section.kwargs}"):
        return function(**section.kwargs)


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _user_code(doing: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one message with her own file and line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{doing} raised {type(error).__name__}: {error}{place_of(error)}",
            where="model.source",
            fix="correct the code; --debug shows the whole traceback",
        ) from error


def _users_files(before: set[str], folder: Path) -> list[Path]:
    """The files of the user's own modules, but for installed packages: those imported since
    `before`, and those below the source's folder that the process had imported already."""
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or not is_users(file) or Path(file).is_relative_to(sys.prefix):
            continue
        if name not in before or Path(file).is_relative_to(folder):
            found.add(Path(file))
    return sorted(found)
