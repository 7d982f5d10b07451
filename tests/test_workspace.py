"""Files are written whole or not at all, and a step knows whether its results are of today."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from qconvert.errors import OutputError
from qconvert.workspace import TEMPORARY, Workspace, digest, file_digest, write_atomically


@pytest.fixture
def step(tmp_path) -> Workspace:
    """A workspace with one step's two files and its record."""
    workspace = Workspace(tmp_path)
    for name in ("a.bin", "b.bin"):
        write_atomically(workspace.path(name), name.encode())
    workspace.write_record("step.json", "key of today", ["a.bin", "b.bin"], {"images": 7})
    return workspace


def key(record: dict) -> str:
    return "key of today"


@contextmanager
def small_files_only():
    """Lets no file of this process grow beyond 1000 bytes, much as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_file_is_written_and_replaced_in_new_folders(tmp_path):
    path = tmp_path / "new/folder/file.bin"
    for content in (b"first" * 1000, b"second", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file.bin"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_old_file_stays_whole_when_the_disk_is_full(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"old" * 300)
    with small_files_only(), pytest.raises(OutputError, match="cannot be written: File too large"):
        write_atomically(path, b"new" * 3000)
    assert path.read_bytes() == b"old" * 300
    assert os.listdir(tmp_path) == ["file.bin"]


def test_nothing_is_left_when_the_file_cannot_be_replaced(tmp_path):
    (tmp_path / "file.bin").mkdir()
    with pytest.raises(OutputError, match="directory"):
        write_atomically(tmp_path / "file.bin", b"new")
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ([1, (2, 3)], [1, [2, 3]]),
    ],
    ids=["order of keys", "tuple and list"],
)
def test_equal_values_have_one_digest(one, other):
    assert digest(one) == digest(other)


def test_different_values_have_different_digests():
    values = [{}, [], None, 0, 1, 1.5, "1", True, [1, 2], [2, 1], ["1", "2"], ["12"],
              {"a": 1}, {"a": 2}, {"b": 1}, {"a": {"b": 1}}]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_digest_refuses_what_json_cannot_hold():
    for value in (float("nan"), [float("inf")], {1j}):
        with pytest.raises((ValueError, TypeError)):
            digest(value)


def test_file_digest_is_sha256_of_the_content(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_record_holds_the_key_the_files_and_the_content(step):
    record = step.read("step.json")
    assert record == {
        "key": "key of today",
        "files": {name: file_digest(step.path(name)) for name in ("a.bin", "b.bin")},
        "images": 7,
    }


def test_fresh_step_has_no_reason(step):
    assert step.why_stale("step.json", key) is None


def remove_file(folder: Path) -> None:
    (folder / "b.bin").unlink()


def change_file(folder: Path) -> None:
    before = (folder / "b.bin").stat()
    (folder / "b.bin").write_bytes(b"c.bin")
    os.utime(folder / "b.bin", ns=(before.st_atime_ns, before.st_mtime_ns))


def cut_record(folder: Path) -> None:
    text = (folder / "step.json").read_text()
    (folder / "step.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_file, "b.bin is missing"),
        (change_file, "b.bin has been changed"),
        (lambda folder: (folder / "step.json").unlink(), "step.json is missing"),
        (lambda folder: (folder / "step.json").write_bytes(b"\xff\xfe"), "step.json is missing"),
        (lambda folder: (folder / "step.json").write_text("[1]"), "step.json is missing"),
        (cut_record, "step.json is missing"),
    ],
    ids=["file missing", "file changed", "record missing", "bytes", "list", "record cut"],
)
def test_stale_step_says_why(step, damage, reason):
    damage(step.folder)
    assert step.why_stale("step.json", key) == reason


def test_changed_inputs_are_known_from_the_record(step):
    assert step.why_stale("step.json", lambda record: "other") == "its inputs have changed"
    assert step.why_stale("step.json", lambda record: key(record) * (record["images"] == 7)) is None
    step.path("step.json").write_text('{"files": {}}')
    assert step.why_stale("step.json", key) == "its inputs have changed"


def test_folder_that_was_made_and_stays_empty_is_removed(tmp_path):
    workspace = Workspace(tmp_path / "new/out")
    with workspace.exclusive(print):
        assert os.listdir(workspace.folder) == []
    assert not workspace.folder.exists()
    with pytest.raises(KeyError), workspace.exclusive(print):
        raise KeyError
    assert not workspace.folder.exists()


def test_folder_that_was_there_or_holds_files_stays(tmp_path):
    with Workspace(tmp_path).exclusive(print):
        pass
    assert os.listdir(tmp_path) == []
    workspace = Workspace(tmp_path / "out")
    with workspace.exclusive(print):
        write_atomically(workspace.path("a.bin"), b"a")
    assert os.listdir(workspace.folder) == ["a.bin"]


def test_half_written_files_of_a_killed_run_are_removed(tmp_path):
    mine = [".mine", ".notes.tmp", "model.pt"]
    for name in (f".model.pt.123{TEMPORARY}", *mine):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / f".folder{TEMPORARY}").mkdir()
    with Workspace(tmp_path).exclusive(print):
        assert sorted(os.listdir(tmp_path)) == sorted([*mine, f".folder{TEMPORARY}"])


def test_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught:
        Workspace(tmp_path / "file/out").exclusive(print).__enter__()
    assert caught.value.facts == ["the output folder cannot be written: Not a directory"]
    assert caught.value.where == str(tmp_path / "file/out")


def test_full_disk_is_known_before_the_work(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OutputError) as caught:
            Workspace(tmp_path / "out").exclusive(print).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.facts == ["the output folder cannot be written: File too large"]
    assert os.listdir(tmp_path) == []


# Says `waits` when it finds the folder taken, and writes what it sees once it is in.
SECOND = """
import sys
from pathlib import Path
from qconvert.workspace import Workspace
folder = Path(sys.argv[1])
with Workspace(folder).exclusive(lambda text: print(text, flush=True)):
    print(sorted(path.name for path in folder.iterdir()), flush=True)
"""


def second(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", SECOND, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_second_run_waits_for_the_first_and_says_so(tmp_path):
    """Once it waits, this process still writes: the second run sees the file."""
    with Workspace(tmp_path).exclusive(print):
        process = second(tmp_path)
        assert process.stdout.readline() == (f"another run is using {tmp_path}: waiting for it\n")
        write_atomically(tmp_path / "a.bin", b"a")
    rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("['a.bin']\n", 0)


def test_second_run_goes_on_where_the_first_has_removed_the_folder(tmp_path):
    """As a run does that fails before its first file."""
    folder = tmp_path / "out"
    with Workspace(folder).exclusive(print):
        process = second(folder)
        assert process.stdout.readline().endswith("waiting for it\n")
    rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("[]\n", 0)
    assert not folder.exists()


def test_run_alone_waits_for_nobody(tmp_path):
    said, _ = second(tmp_path).communicate(timeout=60)
    assert said == "[]\n"


def test_killed_run_leaves_the_folder_free(tmp_path):
    holding = "import sys; from pathlib import Path; from qconvert.workspace import Workspace\n"
    holding += (
        "with Workspace(Path(sys.argv[1])).exclusive(print): print('in', flush=True); input()"
    )
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        process.kill()
    said, _ = second(tmp_path).communicate(timeout=60)
    assert said == "[]\n"
