"""Opens a TorchScript file, anybody's. Nothing in it is executed but what TorchScript itself runs
to load its state: no pickle of Python objects is."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qconvert import torchscript
from qconvert.errors import CheckpointFileError, ModelFileError, UnsafeCheckpointError
from qconvert.models.checkpoint_file import is_git_lfs_pointer, is_torchscript, read

MANIFEST = "manifest.json"
_STORAGES: Mapping[str, str] = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16",
    "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
    "Bool": "bool", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32",
}  # fmt: skip
_BUILD = "name a qconfig, whose `model.source` builds the model that the weights belong to"


@dataclass(frozen=True)
class ModelFile:
    """A loaded file. `manifest` is what qconvert wrote into it; None in files of others.
    `weights` are the bytes that it stores, by dtype."""

    path: Path
    module: torch.jit.ScriptModule
    manifest: dict[str, Any] | None
    size_bytes: int
    weights: dict[str, int]


def open_model(path: Path) -> ModelFile:
    """Loads a TorchScript file on the CPU.

    Raises ModelFileError that says what the file is instead.
    """
    _check(path)
    extra = {MANIFEST: ""}
    try:
        module = torchscript.load(path, extra)
        weights = stored_bytes(path)
    except Exception as error:  # a damaged archive can raise anything
        raise _not_loaded(path, error) from None
    if not module._c._has_method("forward"):
        raise ModelFileError("has no method `forward`", where=str(path))
    try:
        manifest = json.loads(extra[MANIFEST]) if extra[MANIFEST] else None
    except ValueError:
        manifest = None
    mine = isinstance(manifest, dict) and "made_with" in manifest
    return ModelFile(path, module, manifest if mine else None, path.stat().st_size, weights)


def _check(path: Path) -> None:
    """Names what a file is that is no TorchScript archive."""
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        denied = isinstance(error, PermissionError)
        raise ModelFileError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            fix="let this user read it" if denied else "correct the path",
        ) from None
    if is_torchscript(path):
        _check_sums(path)
        return
    fix: str | None = None
    fact = "is neither a qconfig (.yaml, .yml, .json) nor a TorchScript file"
    if is_git_lfs_pointer(path):
        fact, fix = "is a pointer of Git LFS: the file itself has not been fetched", "git lfs pull"
    elif path.suffix.lower() == ".safetensors":
        fact, fix = "is a safetensors file: weights without a model", _BUILD
    elif head.startswith(b"PK"):
        fact, fix = _what_archive(path)
    elif head.startswith(b"\x80"):
        fact, fix = _what_pickle(
            path, "is a pickle: a checkpoint of an old torch, or another object"
        )
    raise ModelFileError(fact, where=str(path), fix=fix)


def _what_archive(path: Path) -> tuple[str, str | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return "is a damaged or cut-off archive", "copy or save the file again"
    if any(name.endswith("/archive_format") or "models/" in name for name in names):
        return "is a program of torch.export, which is not read", None
    if any(name.endswith("/data.pkl") for name in names):
        return _what_pickle(path, "is a checkpoint that torch.save wrote: weights without a model")
    return "is an archive, but no TorchScript file", None


def _what_pickle(path: Path, otherwise: str) -> tuple[str, str | None]:
    """A whole module is told from weights."""
    try:
        read(path)
    except UnsafeCheckpointError as error:
        return error.facts[0], f"{error.fix}; then {_BUILD}"
    except CheckpointFileError:
        pass
    return otherwise, _BUILD


def _check_sums(path: Path) -> None:
    """torch does not compare the archive's check sums as it loads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except Exception as error:  # a damaged archive can raise anything
        wrong = str(error)
    if wrong is not None:
        raise ModelFileError(
            f"is a damaged TorchScript file: the check sum of {wrong} in it is wrong",
            where=str(path),
            fix="copy or save the file again",
        )


def _not_loaded(path: Path, error: Exception) -> ModelFileError:
    text = str(error)
    if (unknown := re.search(r"[Uu]nknown builtin op: (\S+?)\.?\s", text)) is not None:
        return ModelFileError(
            f"calls {unknown[1]}, which is no operator of torch or torchvision",
            where=str(path),
            fix="inspect it where the library with this operator is imported",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return ModelFileError(
        f"is a TorchScript file that torch cannot load: {reason}",
        where=str(path),
        fix="copy or save the file again",
    )


def stored_bytes(path: Path) -> dict[str, int]:
    """Bytes of the tensors that an archive stores, by dtype, each storage once.

    Reads the records that name them without importing or calling what they name.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist()}
        root = next(iter(sizes)).partition("/")[0]
        found: Counter[str] = Counter()
        for record in ("data", "constants"):
            name = f"{root}/{record}.pkl"
            if name not in sizes:
                continue
            with archive.open(name) as stream:
                storages = _Storages(stream)
                storages.load()
            for key, dtype in storages.found.items():
                found[dtype] += sizes.get(f"{root}/{record}/{key}", 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


class _Anything(dict[Any, Any]):
    """Stands for every object of a pickle: can be made, called and given a state."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any) -> _Anything:
        return self

    def __setstate__(self, _: Any) -> None: ...

    def append(self, _: Any) -> None:
        """As a list."""

    def extend(self, _: Any) -> None:
        """As a list."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class _Storages(pickle.Unpickler):
    """Notes the storages that a pickle names by `persistent_id`, and builds nothing else."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.found: dict[str, str] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Never the class itself: a class that can do nothing."""
        return type(name, (_Anything,), {})

    def persistent_load(self, pid: Any) -> Any:
        """`('storage', class, key, device, length)`."""
        _, kind, key, *_ = pid
        name = kind.__name__.removesuffix("Storage")
        self.found[str(key)] = _STORAGES.get(name, name.lower())
        return _Anything()
