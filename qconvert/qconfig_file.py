"""Reads a qconfig from its YAML file, with every mistake in one message."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from qconvert.errors import QConfigError, did_you_mean
from qconvert.qconfig import QConfig

# The keys that hold a path; `model.source` holds one when it reads `path.py:callable`.
PATH_KEYS = (
    ("model", "checkpoint"),
    ("data", "calibration"),
    ("data", "evaluation"),
    ("data", "classes"),
    ("output",),
)
SOURCE_KEY = ("model", "source")
# What must be there before the slow work starts.
FOLDERS = (("data", "calibration"), ("data", "evaluation"))
FILES = (("model", "checkpoint"), ("data", "classes"))


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(path: Path, overrides: Sequence[str] = (), output: Path | None = None) -> QConfig:
    """Reads, overrides, validates and resolves a qconfig.

    `overrides` are `key.key=value` with the value in YAML; their paths, and `output`, are
    relative to the working directory, those in the file to the file's folder.

    Raises QConfigError that lists all mistakes with their key paths.
    """
    name = path.name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise QConfigError(f"cannot be read: {reason}", where=str(path)) from None
    tree = _parsed(text, name)
    if not isinstance(tree, dict):
        raise QConfigError("is not a mapping of keys to values", where=name)
    facts: list[str] = []
    tree = _expanded(tree, (), facts)
    tree = _with_absolute_paths(tree, path.resolve().parent)
    for override in overrides:
        _merge(tree, override, facts)
    if output is not None:
        tree["output"] = str(output.resolve())
    try:
        config = QConfig.model_validate(tree)
    except ValidationError as error:
        facts.extend(_fact(details, tree) for details in error.errors())
        raise QConfigError(facts, where=name) from None
    facts.extend(_missing_files(config))
    if facts:
        raise QConfigError(facts, where=name)
    return config


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise QConfigError(f"is not valid YAML: {error.problem}", where=place) from None
    except yaml.YAMLError as error:
        raise QConfigError(f"is not valid YAML: {error}", where=where) from None


def _expanded(value: Any, keys: tuple[str, ...], facts: list[str]) -> Any:
    """Replaces `${NAME}` in strings from the environment; an unset name is a fact."""
    if isinstance(value, dict):
        return {key: _expanded(item, (*keys, str(key)), facts) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, (*keys, str(i)), facts) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def from_environment(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            facts.append(f"{_dotted(keys)}: the environment variable {match[1]!r} is not set")
        return os.environ.get(match[1], "")

    return re.sub(r"\$\{(\w+)\}", from_environment, value)


def _with_absolute_paths(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    for keys in PATH_KEYS:
        _replace(tree, keys, lambda text: str((base / Path(text).expanduser()).resolve()))

    def source(text: str) -> str:
        file, colon, attribute = text.rpartition(":")
        if not file.endswith(".py"):
            return text
        return str((base / Path(file).expanduser()).resolve()) + colon + attribute

    _replace(tree, SOURCE_KEY, source)
    return tree


def _replace(tree: dict[str, Any], keys: tuple[str, ...], change: Any) -> None:
    for key in keys[:-1]:
        tree = tree.get(key, {})
        if not isinstance(tree, dict):
            return
    if isinstance(tree.get(keys[-1]), str):
        tree[keys[-1]] = change(tree[keys[-1]])


def _merge(tree: dict[str, Any], override: str, facts: list[str]) -> None:
    """Sets one `key.key=value`, its paths relative to the working directory."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        facts.append(f"--set {override}: is not key=value")
        return
    value: Any = _parsed(text, f"--set {dotted}")
    for key in reversed(keys):
        value = {key: value}
    value = _with_absolute_paths(_expanded(value, (), facts), Path.cwd())
    for key in keys[:-1]:
        if not isinstance(tree.setdefault(key, {}), dict):
            tree[key] = {}
        tree, value = tree[key], value[key]
    tree[keys[-1]] = value[keys[-1]]


def _dotted(keys: Sequence[str | int]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".")


def _fact(details: Mapping[str, Any], tree: dict[str, Any]) -> str:
    """One pydantic error as one sentence: key path, what, and the nearest known name."""
    keys = [key for key in details["loc"] if not _is_union_branch(key, details["loc"], tree)]
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(keys[:-1])
        hint = did_you_mean(str(keys[-1]), known)
        return f"{_dotted(keys)}: unknown key{hint or '; known: ' + ', '.join(known)}"
    if kind == "missing":
        return f"{_dotted(keys)}: is missing"
    if kind == "literal_error":
        expected = str(details["ctx"]["expected"])
        known = re.findall(r"'([^']*)'", expected)
        noun = keys[-1] if keys else "value"
        hint = did_you_mean(str(value), known)
        return f"{_dotted(keys)}: unknown {noun} {value!r}{hint} (one of {expected})"
    message = str(details["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, (dict, list)) or kind == "value_error" else f", not {value!r}"
    return f"{_dotted(keys) or 'qconfig'}: {message}{shown}"


def _is_union_branch(key: str | int, location: Sequence[str | int], tree: dict[str, Any]) -> bool:
    """pydantic names the branch of a union in its location; that is no key of the file."""
    if isinstance(key, int):
        return False
    return bool(re.search(r"[\[\(]|^(int|float|str|constrained-|literal|tuple|bool)", key))


def _fields_at(keys: Sequence[str | int]) -> list[str]:
    """The known keys of the section that `keys` leads to."""
    model: type[BaseModel] = QConfig
    for key in keys:
        if isinstance(key, int):
            continue
        annotation = model.model_fields[key].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(model.model_fields)


def _missing_files(config: QConfig) -> list[str]:
    facts = []
    for keys, is_there, noun in (
        *((keys, Path.is_dir, "folder") for keys in FOLDERS),
        *((keys, Path.is_file, "file") for keys in FILES),
    ):
        path: Any = config
        for key in keys:
            path = getattr(path, key)
        if path is not None and not is_there(path):
            facts.append(f"{_dotted(keys)}: there is no {noun} {path}")
    file, _, _ = config.model.source.rpartition(":")
    if file.endswith(".py") and not Path(file).is_file():
        facts.append(f"model.source: there is no file {file}")
    if config.output.exists() and not config.output.is_dir():
        facts.append(f"output: {config.output} is a file, not a folder")
    return facts


def with_relative_paths(config: QConfig, base: Path) -> dict[str, Any]:
    """Every setting as JSON values, with the paths relative to `base`: names no user's folders."""
    tree = config.resolved()

    def relative(text: str) -> str:
        return Path(os.path.relpath(text, base)).as_posix()

    for keys in PATH_KEYS:
        _replace(tree, keys, relative)
    file, colon, attribute = config.model.source.rpartition(":")
    if file.endswith(".py"):
        tree["model"]["source"] = relative(file) + colon + attribute
    return tree
