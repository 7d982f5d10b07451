"""What a user names is imported from where she runs; her own line is in every error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from qconvert import errors
from qconvert.errors import LabelError, TransformError
from qconvert.user_code import Imports, digests_now, folder_of, guarded, is_users, resolve
from qconvert.workspace import file_digest

WHERE = "data.transform"


@pytest.fixture(autouse=True)
def own_imports():
    """Forgets the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def refusal(source: str) -> TransformError:
    with pytest.raises(TransformError) as caught:
        resolve(source, TransformError, WHERE)
    assert caught.value.where == WHERE
    return caught.value


def test_callable_of_a_file_and_of_a_package_are_found(tmp_path):
    path = write(tmp_path / "uc_mine.py", "def f(x): return x + 1\nclass C:\n    g = f\n")
    assert resolve(f"{path}:f", TransformError, WHERE)(2) == 3
    assert resolve(f"{path}:C.g", TransformError, WHERE)(2) == 3
    assert resolve("os.path:join", TransformError, WHERE)("a", "b") == "a/b"


def test_two_callables_of_one_file_share_its_module(tmp_path):
    path = write(tmp_path / "uc_shared.py", "seen = []\ndef f(): return seen\ndef g(): return seen")
    f, g = (resolve(f"{path}:{name}", TransformError, WHERE) for name in "fg")
    assert f() is g()


def test_files_of_one_name_in_two_folders_are_two(tmp_path):
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder / "uc_same.py", f"def f(): return {folder!r}")
        found.append(resolve(f"{path}:f", TransformError, WHERE))
    assert [f() for f in found] == ["a", "b"]


@pytest.mark.parametrize("source", ["prepare", "prepare:", ":prepare", ""])
def test_what_names_no_callable_is_refused_with_the_forms(source):
    error = refusal(source)
    assert error.facts == [f"{source!r} names no callable"]
    assert error.fix == "write package.module:callable or path/to/file.py:callable"


def test_file_that_fails_at_import_is_not_kept(tmp_path):
    path = write(tmp_path / "uc_bad.py", "x = 1\nassert x == 2, 'two'\n")
    fact = f"importing it raised AssertionError: two ({path}:2: assert x == 2, 'two')"
    assert refusal(f"{path}:f").facts == [fact]
    write(path, "def f(): return 'mended'\n# longer than before\n")
    assert resolve(f"{path}:f", TransformError, WHERE)() == "mended"


def test_syntax_error_is_placed_at_its_line(tmp_path):
    path = write(tmp_path / "uc_syntax.py", "x = 1\ndef f(:\n")
    (fact,) = refusal(f"{path}:f").facts
    assert fact.startswith("importing it raised SyntaxError: ")
    assert fact.endswith(f" ({path}:2: def f(:)")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("ValueError('too wide')", "ValueError: too wide"),
        ("SystemExit('usage: train.py')", "SystemExit: usage: train.py"),
        ("KeyError('width')", "KeyError: 'width'"),
    ],
)
def test_whatever_her_code_raises_has_her_innermost_line(tmp_path, error, text):
    path = write(
        tmp_path / "uc_raises.py",
        f"import functools\ndef inner(x): raise {error}\n"
        "def f(): return functools.reduce(lambda a, b: inner(b), [1, 2])\n",
    )
    f = resolve(f"{path}:f", TransformError, WHERE)
    with pytest.raises(TransformError) as caught, guarded("calling it", TransformError, WHERE):
        f()
    line = f"{path}:2: def inner(x): raise {error}"
    assert caught.value.facts == [f"calling it raised {text} ({line})"]


def test_errors_of_qconvert_and_interrupts_pass_as_they_are():
    for error in (LabelError("wrong"), KeyboardInterrupt()):
        with (
            pytest.raises(type(error)) as caught,
            guarded("calling it", TransformError, WHERE),
        ):
            raise error
        assert caught.value is error


def test_own_files_are_told_from_installed_ones(tmp_path):
    assert is_users(str(write(tmp_path / "uc_own.py", "")))
    assert not is_users(str(tmp_path / "lost.py"))
    assert not is_users("<string>")
    for module in (torch, errors, json):
        assert not is_users(module.__file__)


def test_imports_list_the_content_of_her_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    sibling = write(tmp_path / "uc_sibling.py", "import json, decimal\n")
    path = write(tmp_path / "uc_main.py", "def f():\n    import uc_sibling\n")
    before = list(sys.path)
    with Imports(folder_of(f"{path}:f")) as imports:
        resolve(f"{path}:f", TransformError, WHERE)()
        digests = imports.digests()
    assert sys.path == before
    assert digests == {str(p): file_digest(p) for p in (path, sibling)}
    write(sibling, "# changed\n")
    path.unlink()
    assert digests_now(digests) == {str(path): "", str(sibling): file_digest(sibling)}


def test_helpers_of_one_name_in_two_folders_are_kept_apart(tmp_path, monkeypatch):
    """The transform and the model may each have a `uc_common.py` beside them."""
    monkeypatch.chdir("/")
    widths = {}
    for folder, width in (("a", 8), ("b", 16)):
        write(tmp_path / folder / "uc_common.py", f"WIDTH = {width}\n")
        code = "from uc_common import WIDTH\ndef f():\n    return WIDTH\n"
        source = f"{write(tmp_path / folder / f'uc_{folder}.py', code)}:f"
        with Imports(folder_of(source)):
            widths[folder] = resolve(source, TransformError, WHERE)
    assert {folder: f() for folder, f in widths.items()} == {"a": 8, "b": 16}


def test_code_below_the_prefix_of_python_is_hers(tmp_path, monkeypatch):
    """An environment may be made in the project's own folder."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    path = write(tmp_path / "uc_below.py", "def f(): pass\n")
    with Imports(tmp_path) as imports:
        resolve(f"{path}:f", TransformError, WHERE)
        assert list(imports.digests()) == [str(path)]


def test_code_that_changes_the_path_is_no_error(tmp_path):
    path = write(tmp_path / "uc_path.py", "import sys\nsys.path = list(sys.path[1:])\nf = print\n")
    before = list(sys.path)
    with Imports(tmp_path):
        resolve(f"{path}:f", TransformError, WHERE)
    assert sys.path == before
