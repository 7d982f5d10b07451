"""The label of each image, from folder names or a CSV file: the index of a class in the model's
order, or a text."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.errors import LabelError, did_you_mean

COLUMNS = ("file", "label")
# More digits than an index of a class has.
_DIGITS = 9
# As people and pandas write numbers; `10_20` and `nan` are names.
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


# What is right for one image: the index of its class, a text, the file of its mask.
Label = int | str | Path


@dataclass(frozen=True)
class Labelled:
    """Files with their labels; of classes, the index among `classes` (the model's order).

    `classes` is None when labels are indexes and nobody has named the classes. `notes` are
    decisions that a user should know of.
    """

    files: tuple[Path, ...]
    labels: tuple[Label, ...]
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def from_folders(root: Path, files: Sequence[Path], classes_file: Path | None) -> Labelled:
    """The first folder below `root` is the class.

    Raises LabelError when an image is in no such folder or a folder is no class.
    """
    relative = [path.relative_to(root) for path in files]
    flat = [path for path in relative if len(path.parts) < 2]
    if flat:
        raise LabelError(
            f"{len(flat)} images are in no class folder, the first is {flat[0]}",
            where=str(root),
            fix="put them into one folder a class, or write `labels: none` or a CSV file",
        )
    names = [path.parts[0] for path in relative]
    present = sorted(set(names))
    classes = tuple(present) if classes_file is None else read_classes(classes_file)
    _check_known("folder", present, classes, classes_file, root)
    index = {name: i for i, name in enumerate(classes)}
    notes: tuple[str, ...] = ()
    if classes_file is None and all(map(str.isdecimal, present)):
        numeric = sorted(present, key=int)
        if numeric != present:
            notes = (
                "the folders are numbers, sorted as text as torchvision's ImageFolder does "
                f"({', '.join(present[:3])}, …); for another order name `data.classes`",
            )
    return Labelled(tuple(files), tuple(index[name] for name in names), classes, notes)


def from_csv(
    root: Path,
    files: Sequence[Path],
    table: Path,
    classes_file: Path | None,
    texts: bool = False,
) -> Labelled:
    """The rows of a CSV file with the columns `file`, a path below `root`, and `label`.

    A class is given by its name, or its index where all labels are integers and no class is called
    so. With `texts`, labels are as they stand there, and `classes_file` holds their characters (see
    `read_alphabet`). Images that no row names are left out.

    Raises LabelError that lists the rows which are wrong.
    """
    rows = _rows(table)
    known = {path.relative_to(root).as_posix(): path for path in files}
    facts: list[str] = []
    found: dict[Path, str] = {}
    for line, name, label in rows:
        path = known.get(Path(name).as_posix())
        if path is None:
            facts.append(f"line {line}: there is no image {name!r} in {root}")
        elif found.setdefault(path, label) != label:
            facts.append(f"line {line}: {name!r} has two labels, {found[path]!r} and {label!r}")
    if facts:
        raise LabelError(
            facts,
            where=str(table),
            fix="correct the rows; `file` is a path below the folder of images",
        )
    chosen = sorted(found, key=lambda path: path.relative_to(root).as_posix())
    written = [found[path] for path in chosen]
    labels: tuple[Label, ...] = tuple(written)
    if texts:
        classes = None if classes_file is None else read_alphabet(classes_file)
    else:
        classes, labels = _indexes(written, table, classes_file)
    return Labelled(tuple(chosen), labels, classes, left_out(files, chosen, f"row in {table.name}"))


def left_out(files: Sequence[Path], chosen: Sequence[Path], noun: str) -> tuple[str, ...]:
    """The note that some images have no label."""
    left = len(files) - len(chosen)
    return (f"{left} of {len(files)} images have no {noun} and are left out",) if left else ()


def read_classes(path: Path) -> tuple[str, ...]:
    """The classes in the model's order: text, one a line; or JSON: a list, `{class: index}`,
    `{index: class}`, or `{index: [folder, class]}` as ImageNet's index file has it.

    Raises LabelError when a class is named twice, an index is missing, or the file is not that.
    """
    return _names(path, str.strip)


def read_alphabet(path: Path) -> tuple[str, ...]:
    """The characters that a decoder writes, as `read_classes` reads classes; but a space is one."""
    return _names(path, lambda line: line if line.isspace() else line.strip())


def _names(path: Path, name_of: Callable[[str], str]) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise LabelError("is not UTF-8 text", where=str(path), fix="save it as UTF-8") from None
    except OSError as error:
        raise LabelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if path.suffix.lower() == ".json":
        names = _from_json(text, path)
    else:
        names = [name for line in text.splitlines() if (name := name_of(line))]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or not names:
        fact = f"names {', '.join(twice)} twice" if twice else "names no class"
        raise LabelError(fact, where=str(path), fix="write one class a line, each once")
    return tuple(names)


def _from_json(text: str, path: Path) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else error
        fact = f"is not JSON: {reason}"
        raise LabelError(fact, where=str(path), fix="correct the file") from None
    by_index: dict[int, Any] = {}
    if isinstance(content, list):
        by_index = dict(enumerate(content))
    elif isinstance(content, dict) and all(type(v) is int for v in content.values()):
        by_index = {index: name for name, index in content.items()}
    elif isinstance(content, dict) and all(k.isdecimal() and len(k) <= _DIGITS for k in content):
        # ImageNet's index file has [folder, class].
        by_index = {int(k): v[0] if isinstance(v, list) and v else v for k, v in content.items()}
    if by_index and len(by_index) < len(content):
        raise LabelError("gives one index to two classes", where=str(path), fix="correct the file")
    names = [by_index.get(i) for i in range(len(by_index))]
    if (content and not names) or not all(isinstance(name, str) for name in names):
        raise LabelError(
            "is no list of classes, {class: index} or {index: class} with every index from 0",
            where=str(path),
            fix="correct the file, or write a text file with one class a line",
        )
    return [str(name) for name in names]


def is_table(path: Path) -> bool:
    """Whether a file is there and `from_csv` reads its rows."""
    try:
        return bool(_rows(path))
    except LabelError:
        return False


def _rows(table: Path) -> list[tuple[int, str, str]]:
    """Line number, file and label of every row."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            if missing := [name for name in COLUMNS if name not in header]:
                raise LabelError(
                    f"has no column {' and no column '.join(map(repr, missing))} in its first "
                    f"line; it has {', '.join(header)[:100] or 'nothing'}",
                    where=str(table),
                    fix="begin the file with the line `file,label`",
                )
            reader.fieldnames = header
            rows, longer = [], []
            for row in reader:
                if None in row:  # a label with a comma and without quotes
                    longer.append(reader.line_num)
                fields = ((row[name] or "").strip() for name in COLUMNS)
                rows.append((reader.line_num, next(fields), next(fields)))
    except UnicodeDecodeError:
        raise LabelError("is not UTF-8 text", where=str(table), fix="save it as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise LabelError(f"cannot be read: {error}", where=str(table)) from None
    facts = [f"line {line}: is not complete" for line, file, label in rows if not file or not label]
    facts += [f"line {line}: has more fields than the first" for line in longer]
    if facts or not rows:
        raise LabelError(
            facts or "has no row",
            where=str(table),
            fix="give each file its label; one with a comma stands in double quotes",
        )
    return rows


def _indexes(
    labels: Sequence[str], table: Path, classes_file: Path | None
) -> tuple[tuple[str, ...] | None, tuple[int, ...]]:
    names = sorted(set(labels))
    classes = None if classes_file is None else read_classes(classes_file)
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    if numbers and (classes is None or not set(names) <= set(classes)):
        indexes = tuple(_index(label, table) for label in labels)
        if classes is not None and max(indexes) >= len(classes):
            raise LabelError(
                f"the label {max(indexes)} is beyond the {len(classes)} classes of {classes_file}",
                where=str(table),
                fix="count labels from 0, or name every class in `data.classes`",
            )
        return classes, indexes
    if classes is None:
        _check_names(names, table)
        classes = tuple(names)
    _check_known("label", names, classes, classes_file, table)
    index = {name: i for i, name in enumerate(classes)}
    return classes, tuple(index[label] for label in labels)


def _index(label: str, table: Path) -> int:
    digits = label.lstrip("0")
    if len(digits) > _DIGITS:
        raise LabelError(
            f"the label {digits[:_DIGITS]}… of {len(digits)} digits is no index of a class",
            where=str(table),
            fix="count labels from 0",
        )
    return int(digits or "0")


def _check_names(names: Sequence[str], table: Path) -> None:
    """Numbers that are no indexes would be sorted as text, in an order that is not the model's."""
    if all(_NUMBER.fullmatch(name) for name in names):
        odd = next(name for name in names if not name.isdecimal())
        raise LabelError(
            f"the labels are numbers but not whole ones from 0, as {odd!r}",
            where=str(table),
            fix="save labels as integers from 0, or name the classes in `data.classes`",
        )


def _check_known(
    noun: str, names: Sequence[str], classes: Sequence[str], classes_file: Path | None, where: Path
) -> None:
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise LabelError(
            [f"{noun} {n!r} is not in {classes_file}{did_you_mean(n, classes)}" for n in unknown],
            where=str(where),
            fix="name every class in `data.classes`, in the model's order",
        )
