"""Imports and calls what a user wrote, and says where in her own code something went wrong."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

import qconvert
from qconvert.errors import QConvertError, did_you_mean
from qconvert.workspace import file_digest

# What lies in these is not the user's. Not all of Python's prefix: her project may lie below it.
_INSTALLED = (
    Path(torch.__file__).parent,
    Path(qconvert.__file__).parent,
    *{Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)
_LIBRARIES = tuple({Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")})
# No model is written in these two of them.
_NOT_MODELS = _INSTALLED[:2]
_FORMS = "package.module:callable or path/to/file.py:callable"


def is_users(file: str) -> bool:
    """Whether a file is the user's own: no part of Python, torch or qconvert, and a real file."""
    path = Path(file)
    if path.suffix != ".py" or not path.is_absolute() or not path.is_file():
        return False
    return not any(path.is_relative_to(folder) for folder in _INSTALLED)


def place_of(error: BaseException) -> str:
    """` (file:line: code)` of the user's innermost frame, or an empty string.

    In a SyntaxError it is the line that does not parse.
    """
    if isinstance(error, SyntaxError) and error.filename and is_users(error.filename):
        return f" ({error.filename}:{error.lineno}: {(error.text or '').strip()})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return _shown(frames[-1], frames[-1].filename) if frames else ""


def place_in(frames: Iterable[traceback.FrameSummary]) -> str:
    """` (file:line: code)` of the innermost frame that is the user's own; else of the innermost one
    of a library that is neither torch nor this; or an empty string."""
    own, others = "", ""
    for frame in frames:
        if is_users(frame.filename):
            own = _shown(frame, frame.filename)
        elif library := _in_library(Path(frame.filename)):
            others = _shown(frame, library)
    return own or others


def _in_library(path: Path) -> str | None:
    """The name of a library's file as people know it, `package/module.py`."""
    if any(path.is_relative_to(folder) for folder in _NOT_MODELS):
        return None
    return next((str(path.relative_to(f)) for f in _LIBRARIES if path.is_relative_to(f)), None)


def _shown(frame: traceback.FrameSummary, file: str) -> str:
    return f" ({file}:{frame.lineno}: {frame.line})"


@contextmanager
def guarded(doing: str, kind: type[QConvertError], where: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one message with her own file and line."""
    try:
        yield
    except QConvertError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(
            f"{doing} raised {type(error).__name__}: {error}{place_of(error)}", where=where
        ) from error


def resolve(
    source: str, kind: type[QConvertError], where: str, forms: str = _FORMS
) -> Callable[..., Any]:
    """What `package.module:callable` or `path/to/file.py:callable` names.

    Raises `kind` that names the key `where`, when it cannot be imported or is not callable; `forms`
    are the ways in which that key may be written.
    """
    place, colon, name = source.rpartition(":")
    if not colon or not name or not place:
        raise kind(f"{source!r} names no callable", where=where, fix=f"write {forms}")
    owner = (
        _from_file(Path(place), kind, where)
        if place.endswith(".py")
        else _from_package(place, kind, where)
    )
    for part in name.split("."):
        if not hasattr(owner, part):
            hint = did_you_mean(part, [n for n in dir(owner) if not n.startswith("_")])
            raise kind(f"{place} has no {part!r}{hint}", where=where)
        owner = getattr(owner, part)
    if not callable(owner):
        raise kind(f"{source} is not callable", where=where)
    return owner


def keep_importable(folder: Path) -> None:
    """Puts a folder last on the path of this process, for what the user's code imports when it is
    called."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def folder_of(source: str) -> Path:
    """The folder in which the source finds the modules beside it."""
    place = source.rpartition(":")[0]
    return Path(place).parent if place.endswith(".py") else Path.cwd()


class Imports:
    """Notes which of the user's own files are imported while it is entered; `folder` comes first on
    the path meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: set[str] = set()

    def __enter__(self) -> Imports:
        self._forget_namesakes()
        self._before = set(sys.modules)
        sys.path.insert(0, str(self._folder))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # her code has changed the path
            sys.path.remove(str(self._folder))

    def _forget_namesakes(self) -> None:
        """A helper of another folder (the transform's `common.py`) must not stand in for one of
        this folder (the model's); who has imported it keeps it."""
        for name, module in list(sys.modules.items()):
            top = self._folder / name.partition(".")[0]
            file = getattr(module, "__file__", None)
            if (
                file
                and is_users(file)
                and not Path(file).is_relative_to(self._folder)
                and (top.is_dir() or top.with_suffix(".py").is_file())
            ):
                del sys.modules[name]

    def digests(self) -> dict[str, str]:
        """The content of each file of the user's own modules, but for installed packages: those
        imported since, and those below the folder that the process had imported already."""
        found = set()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if not file or not is_users(file):
                continue
            if name not in self._before or Path(file).is_relative_to(self._folder):
                found.add(file)
        return {file: file_digest(Path(file)) for file in sorted(found)}


def digests_now(paths: dict[str, str]) -> dict[str, str]:
    """Today's digests of files that `Imports.digests` listed; a lost file has an empty one."""
    found = {}
    for path in paths:
        found[path] = ""
        with suppress(OSError):
            found[path] = file_digest(Path(path))
    return found


def _from_file(path: Path, kind: type[QConvertError], where: str) -> Any:
    name = f"qconvert_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise kind(f"{path} cannot be imported", where=where)
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded  # the model and the transform may come from one file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with guarded("importing it", kind, where):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


def _from_package(name: str, kind: type[QConvertError], where: str) -> Any:
    with guarded("importing it", kind, where):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and what it imports is not
    raise kind(
        f"there is no module {name!r} to import",
        where=where,
        fix="install it, or run in the folder that holds it",
    )
