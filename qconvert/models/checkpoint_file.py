"""Reads a checkpoint file, never executing what it holds."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from qconvert.errors import CheckpointFileError, UnsafeCheckpointError
from qconvert.workspace import file_digest

# What torch says when a pickle names a class or function beyond tensors.
_NEEDS_CODE = re.compile(r"Unsupported (global|class)|allowed global|Trying to", re.IGNORECASE)
# What torch.save wrote before 1.6: a magic number, two headers, the content and its storages' keys,
# each a pickle; then the storages.
_LEGACY_PICKLES = 5


def checkpoint_digest(path: Path | None) -> str | None:
    """SHA-256 (hex) of a checkpoint, if there is one.

    Raises CheckpointFileError when it cannot be read.
    """
    if path is None:
        return None
    try:
        return file_digest(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> CheckpointFileError:
    return CheckpointFileError(
        f"cannot be read: {error.strerror}",
        where=str(path),
        fix="let this user read it, or name another file",
    )


def read(path: Path) -> Any:
    """What torch.save or safetensors wrote, on the CPU.

    Raises CheckpointFileError, or UnsafeCheckpointError that names what the pickle would have run.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from None
    if path.suffix.lower() == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path, device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointFileError(
                f"is not a safetensors file: {error}", where=str(path)
            ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they announce is refused here, or harmless
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        refused = isinstance(error, pickle.UnpicklingError) and _NEEDS_CODE.search(str(error))
        if refused and (named := _globals(path)) is not None:
            raise _unsafe(path, named) from None
        if is_torchscript(path):
            raise CheckpointFileError(
                "is a TorchScript file, which holds a whole model",
                where=str(path),
                fix="save its weights: "
                "torch.save(torch.jit.load('model.pt').state_dict(), 'weights.pt')",
            ) from None
        if is_git_lfs_pointer(path):
            raise CheckpointFileError(
                "is a pointer of Git LFS: the file itself has not been fetched",
                where=str(path),
                fix="git lfs pull",
            ) from None
        raise CheckpointFileError(
            "is no checkpoint that torch.save wrote, or a damaged one", where=str(path)
        ) from None


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether a file stands for one that Git LFS has not fetched."""
    with path.open("rb") as stream:
        return stream.read(64).startswith(b"version https://git-lfs")


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that torch.jit.save wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _unsafe(path: Path, found: list[str]) -> UnsafeCheckpointError:
    """Names what the pickle would have imported."""
    layers = [n for n in found if n.startswith("torch.nn.modules.")]
    harmless = ("torch.", "collections.", "__builtin__.set")
    names = [n for n in found if n in layers or not n.startswith(harmless)]
    loaded = f"torch.load({path.name!r}, weights_only=False)"
    if layers:
        fact = "is a whole pickled module, not weights: loading it would run code"
        weights, hint = f"{loaded}.state_dict()", ""
    else:
        fact = "holds more than weights: loading it could run code"
        weights, hint = f"{loaded}['model']", ", where 'model' is the key that they are under"
    named = f" (it names {', '.join(names[:5])})" if names else ""
    return UnsafeCheckpointError(
        f"{fact}, which qconvert never does{named}",
        where=str(path),
        fix=f"where you trust the file, save its weights alone: torch.save({weights}, "
        f"'weights-only.pt'){hint}",
    )


def _globals(path: Path) -> list[str] | None:
    """`module.name` of each class and function that a pickle names, by reading its opcodes; nothing
    is imported. None for a pickle that is cut off."""
    found: dict[str, None] = {}
    strings: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                stream = io.BytesIO(archive.read(record))
        else:
            stream = io.BytesIO(path.read_bytes())
        for _ in range(_LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL":
                    found[str(argument).replace(" ", ".")] = None
                elif opcode.name == "STACK_GLOBAL":
                    found[".".join(strings[-2:])] = None
                elif isinstance(argument, str):
                    strings.append(argument)
            if stream.tell() == len(stream.getbuffer()):
                break
    except Exception:  # a damaged pickle can raise anything
        return None
    return list(found)
