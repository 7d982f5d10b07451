"""The output folder: its file names, atomic writes, digests, and what is stale.

A step writes its files and then its record, a JSON file that holds the step's `key` (a digest of
everything that went in) and the digests of its files. A step is fresh when its record has the
key of today's inputs and its files are what the record says, as `make` would know it, but by
content instead of by time.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.errors import OutputError


def digest(value: Any) -> str:
    """SHA-256 (hex) of a value that JSON can hold; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(path)) from error
    finally:
        with suppress(OSError):  # also where the folder could not be made
            temporary.unlink(missing_ok=True)


# The ending of a file that is being written; what a killed run leaves of them is removed.
TEMPORARY = ".qconvert-tmp"


def _lock(folder: int, waiting: Callable[[], None], say: Callable[[str], None]) -> None:
    """Locks an open folder for this process; the system unlocks it whatever becomes of us."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        say("two runs in one output folder at once are not kept apart on this system")
        return
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems
        say(f"the output folder cannot be locked ({error.strerror}): let one run at a time use it")


@dataclass(frozen=True)
class Workspace:
    """The files of one conversion."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where the file of this name is or will be."""
        return self.folder / name

    @contextmanager
    def exclusive(self, say: Callable[[str], None]) -> Iterator[None]:
        """Makes the folder, proves that it can be written before the slow work, and keeps other
        runs out; while another one is in it, this one says so and waits.

        What a killed run has left half-written is removed. The folder, if it was made and stays
        empty because the run failed, is removed too.

        Raises OutputError.
        """
        made, folder = self._locked(say)
        try:
            try:
                for left in self.folder.glob(f".*{TEMPORARY}"):
                    if left.is_file():
                        left.unlink()
                with tempfile.TemporaryFile(dir=self.folder) as probe:
                    probe.write(b"0")
            except OSError as error:
                raise self._unusable(error) from None
            yield
        finally:
            if made:
                with suppress(OSError):  # it holds files: they are wanted
                    self.folder.rmdir()
            os.close(folder)  # which unlocks it

    def _locked(self, say: Callable[[str], None]) -> tuple[bool, int]:
        """Whether the folder was made, and it, open and locked."""
        while True:
            made = not self.folder.exists()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                folder = os.open(self.folder, os.O_RDONLY)
            except OSError as error:
                raise self._unusable(error) from None
            _lock(folder, lambda: say(f"another run is using {self.folder}: waiting for it"), say)
            with suppress(OSError):
                if os.path.samestat(os.fstat(folder), self.folder.stat()):
                    return made, folder
            os.close(folder)  # the run that had it has failed and removed it

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"the output folder cannot be written: {error.strerror}", where=str(self.folder)
        )

    def read(self, name: str) -> dict[str, Any] | None:
        """A record, or None when it is missing or not whole."""
        try:
            record = json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(
        self, name: str, key: str, files: Iterable[str], content: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes a step's record, last, when the step's other files are in place."""
        digests = {file: file_digest(self.path(file)) for file in files}
        record = {"key": key, "files": digests, **content}
        write_atomically(self.path(name), (json.dumps(record, indent=2) + "\n").encode())
        return record

    def why_stale(self, name: str, key_of: Callable[[dict[str, Any]], str]) -> str | None:
        """Returns None when the record is fresh, or else the reason in words.

        `key_of` computes today's key; it is given the record, which may list further inputs.
        """
        record = self.read(name)
        if record is None or not isinstance(record.get("files"), dict):
            return f"{name} is missing"
        if record.get("key") != key_of(record):
            return "its inputs have changed"
        for file, recorded in record["files"].items():
            path = self.path(file)
            if not path.is_file():
                return f"{file} is missing"
            if file_digest(path) != recorded:
                return f"{file} has been changed"
        return None
