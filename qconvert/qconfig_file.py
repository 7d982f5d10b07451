"""Reads a qconfig from its YAML file, with every mistake in one message."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from qconvert.errors import QConfigError, QConfigFileError, did_you_mean
from qconvert.qconfig import OF_ACCURACY, QConfig, is_csv, is_label_path

# The keys that hold a path. `data.labels` holds one when it names a CSV file or a folder, and the
# callables when they read `path.py:callable`.
PATH_KEYS = (
    ("model", "checkpoint"),
    ("data", "calibration"),
    ("data", "evaluation"),
    ("data", "classes"),
    ("finetune", "images"),
    ("tune", "images"),
    ("tune", "qconfig"),
    ("output",),
)
LABELS_KEY = ("data", "labels")
METRICS_KEY = ("benchmark", "metrics")
CALLABLE_KEYS = (("model", "source"), ("data", "transform"), ("benchmark", "decoder"))
# What must be there before the slow work starts.
FOLDERS = (
    ("data", "calibration"), ("data", "evaluation"), ("finetune", "images"), ("tune", "images"),
)  # fmt: skip
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
        reason, fix = "is not UTF-8 text", "save it as UTF-8"
        if isinstance(error, OSError):
            reason = str(error.strerror)
            fix = "correct the path; `qconvert init` writes a qconfig to start from"
        if isinstance(error, PermissionError):
            fix = "let this user read it"
        raise QConfigFileError(f"cannot be read: {reason}", where=str(path), fix=fix) from None
    tree = parsed(text, name)
    if not isinstance(tree, dict):
        fact = "is empty" if tree is None else "is not a mapping of keys to values"
        raise QConfigFileError(fact, where=name)
    facts: list[str] = []
    try:
        tree = _expanded(tree, (), facts)
    except RecursionError:
        raise QConfigFileError("an alias (&name, *name) holds itself", where=name) from None
    tree = _with_absolute_paths(tree, path.resolve().parent, facts)
    for override in overrides:
        _merge(tree, override, facts)
    if output is not None:
        tree["output"] = str(output.resolve())
    try:
        config = QConfig.model_validate(tree)
    except ValidationError as error:
        facts.extend(_validation_facts(error, tree))
        raise QConfigError(facts, where=name) from None
    # A path with an unset variable in it is missing for that reason.
    facts = facts or _missing_files(config)
    if facts:
        raise QConfigError(facts, where=name)
    return config


def check_goal(config: QConfig, name: str) -> None:
    """Raises QConfigError where `tune` has nothing to work towards."""
    if not config.budgets.set_of_accuracy:
        raise QConfigError(
            "budgets: tune needs a limit of accuracy to meet, and none is set",
            where=name,
            fix=f"set one of {', '.join(f'budgets.{key}' for key in OF_ACCURACY)}; without labels "
            "budgets.min_agreement, as 0.98",
        )


def parsed(text: str, where: str, fix: str | None = None) -> Any:
    """The value of a text in YAML.

    Raises QConfigFileError with its line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise QConfigFileError(
            f"is not valid YAML: {error.problem}", where=place, fix=fix
        ) from None
    except RecursionError:
        raise QConfigFileError("is nested too deeply", where=where, fix=fix) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).partition("\n")[0]  # the second line counts characters
        raise QConfigFileError(f"is not valid YAML: {reason}", where=where, fix=fix) from None


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


def _with_absolute_paths(tree: dict[str, Any], base: Path, facts: list[str]) -> dict[str, Any]:
    def absolute(text: str) -> str:
        try:
            return str((base / Path(text).expanduser()).resolve())
        except (RuntimeError, ValueError) as error:  # no such user, a null character
            facts.append(f"{text!r} is no path: {error}")
            return text

    _change_paths(tree, absolute)
    return tree


def _change_paths(tree: dict[str, Any], change: Callable[[str], str]) -> None:
    """Changes every path of the settings, in place."""

    def in_callable(text: str) -> str:
        file, colon, attribute = text.rpartition(":")
        return change(file) + colon + attribute if file.endswith(".py") else text

    for keys in PATH_KEYS:
        _replace(tree, keys, change)
    for keys in CALLABLE_KEYS:
        _replace(tree, keys, in_callable)
    _replace(tree, METRICS_KEY, in_callable)
    _replace(tree, LABELS_KEY, lambda text: change(text) if is_label_path(text) else text)


def _replace(tree: dict[str, Any], keys: tuple[str, ...], change: Callable[[str], str]) -> None:
    for key in keys[:-1]:
        tree = tree.get(key, {})
        if not isinstance(tree, dict):
            return
    value = tree.get(keys[-1])
    if isinstance(value, str):
        tree[keys[-1]] = change(value)
    elif isinstance(value, list):
        tree[keys[-1]] = [change(item) if isinstance(item, str) else item for item in value]


def _merge(tree: dict[str, Any], override: str, facts: list[str]) -> None:
    """Sets one `key.key=value`, its paths relative to the working directory."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        facts.append(f"--set {override}: is not key=value")
        return
    value: Any = parsed(text, f"--set {dotted}", fix="correct the option")
    for key in reversed(keys):
        value = {key: value}
    value = _with_absolute_paths(_expanded(value, (), facts), Path.cwd(), facts)
    for i, key in enumerate(keys[:-1]):
        if not isinstance(tree.setdefault(key, {}), dict):
            facts.append(f"--set {override}: {'.'.join(keys[: i + 1])} is no mapping of keys")
            return
        tree, value = tree[key], value[key]
    tree[keys[-1]] = value[keys[-1]]


def _dotted(keys: Sequence[str | int]) -> str:
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}"
    return text.lstrip(".")


def _validation_facts(error: ValidationError, tree: dict[str, Any]) -> list[str]:
    """One sentence for each place that is wrong.

    Where a key may be of several kinds, pydantic reports a mistake for each kind; they become one.
    """
    places: dict[tuple[str | int, ...], list[Any]] = {}
    for details in error.errors():
        places.setdefault(_keys_in(tree, details), []).append(details)
    facts = []
    for keys, found in places.items():
        inside = any(other[: len(keys)] == keys and other != keys for other in places)
        if inside and all(details["type"] != "extra_forbidden" for details in found):
            continue  # the mistake is named further in
        facts.append(_fact(keys, found))
    return facts


def _keys_in(tree: Any, details: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The keys of the file that lead to a mistake, without the branches that pydantic tried."""
    keys: list[str | int] = []
    for i, key in enumerate(details["loc"]):
        last = i == len(details["loc"]) - 1
        if key in tree if isinstance(tree, dict) else _indexes(key, tree):
            tree = tree[key]
        elif not (last and details["type"] == "missing"):
            continue
        keys.append(key)
    return tuple(keys)


def _indexes(key: str | int, tree: Any) -> bool:
    return isinstance(tree, list) and isinstance(key, int) and key < len(tree)


def _fact(keys: tuple[str | int, ...], found: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong at one place as one sentence, with the nearest known name."""
    place, details = _dotted(keys) or "qconfig", found[0]
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(keys[:-1])
        hint = did_you_mean(str(keys[-1]), known)
        return f"{place}: unknown key{hint or '; known: ' + ', '.join(known)}"
    if kind == "missing":
        return f"{place}: is missing"
    if kind == "literal_error" and len(found) == 1:
        expected = str(details["ctx"]["expected"])
        hint = did_you_mean(str(value), re.findall(r"'([^']*)'", expected))
        noun = next(key for key in reversed(keys) if isinstance(key, str))
        return f"{place}: unknown {noun} {value!r}{hint} (one of {expected})"
    messages = [str(d["msg"]).removeprefix("Value error, ") for d in found]
    message = " or ".join(dict.fromkeys(m[0].lower() + m[1:] for m in messages))
    for pattern, words in _PYDANTIC:
        message = re.sub(pattern, words, message)
    shown = "null" if value is None else repr(value)
    if kind == "value_error" and not keys:  # of two keys that do not agree; it names them
        return message
    if isinstance(value, (dict, list)) or kind == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message}, not {shown}"


# What pydantic says of Python's types, in YAML's words.
_PYDANTIC = (
    (r"a valid tuple", "a list"),
    (r"tuple should have (.+?) after validation", r"input should have \1"),
    (r"a valid dictionary( or instance of \w+)?", "a mapping of keys to values"),
    (r"is not a valid path for <class '.*?'>", "should be a path"),
)


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


def unlike(place: str, path: Path, is_right: Callable[[Path], bool], wrong: str) -> list[str]:
    """The fact `wrong` of a path that is not as it should be, or why that cannot be found out."""
    try:
        return [] if is_right(path) else [wrong]
    except OSError as error:  # below a folder that this user may not enter, a name too long
        return [f"{place}: {path} cannot be reached: {error.strerror}"]


def missing(place: str, path: Path, is_there: Callable[[Path], bool], noun: str) -> list[str]:
    """The fact that a file or folder is not there, if so."""
    return unlike(place, path, is_there, f"{place}: there is no {noun} {path}")


def _missing_files(config: QConfig) -> list[str]:
    facts: list[str] = []
    for keys, is_there, noun in (
        *((keys, Path.is_dir, "folder") for keys in FOLDERS),
        *((keys, Path.is_file, "file") for keys in FILES),
    ):
        path: Any = config
        for key in keys:
            path = getattr(path, key)
        if isinstance(path, Path):
            facts += missing(_dotted(keys), path, is_there, noun)
    labels = config.data.labels
    if isinstance(labels, Path):
        is_there, noun = (Path.is_file, "file") if is_csv(str(labels)) else (Path.is_dir, "folder")
        facts += missing(_dotted(LABELS_KEY), labels, is_there, noun)
    metrics = config.benchmark.metrics
    for keys, source in (
        (CALLABLE_KEYS[0], config.model.source),
        (CALLABLE_KEYS[1], config.data.transform or ""),
        (CALLABLE_KEYS[2], config.benchmark.decoder or ""),
        *((METRICS_KEY, name) for name in (() if metrics == "auto" else metrics)),
    ):
        file, _, _ = source.rpartition(":")
        if file.endswith(".py"):
            facts += missing(_dotted(keys), Path(file), Path.is_file, "file")
    return facts + unlike(
        "output",
        config.output,
        lambda path: path.is_dir() or not path.exists(),
        f"output: {config.output} is a file, not a folder",
    )


def with_relative_paths(config: QConfig, base: Path) -> dict[str, Any]:
    """Every setting as JSON values, with the paths relative to `base`: names no user's folders."""
    return _relative(config.resolved(), base)


def as_given(config: QConfig, base: Path) -> dict[str, Any]:
    """The settings that are set, without defaults, as JSON values; paths as above. A file with them
    means the same as `config`."""
    return _relative(config.model_dump(mode="json", exclude_unset=True), base)


def _relative(tree: dict[str, Any], base: Path) -> dict[str, Any]:
    def relative(text: str) -> str:
        return Path(os.path.relpath(text, base)).as_posix()

    _change_paths(tree, relative)
    return tree
