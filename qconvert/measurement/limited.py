"""TorchScript modules in a fresh process whose instruction sets are limited to a class of CPUs:
what a lesser CPU would compute."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import Any

from torch import Tensor

from qconvert.errors import VerificationError
from qconvert.measurement.cpu_classes import limited
from qconvert.measurement.handover import read_message, write_message


class LimitedProcess:
    """A process of one class of CPUs, as a context manager; see `cpu_classes`.

    It computes with one thread: integers do not depend on it. `needs` are the packages that its
    files need.
    """

    def __init__(self, isa: str, needs: Sequence[str] = ()) -> None:
        self._isa = isa
        self._needs = tuple(needs)
        self._lock = Lock()
        self._loaded = 0

    def __enter__(self) -> LimitedProcess:
        self._talk = tempfile.TemporaryFile()
        # -P: a file of the working folder must not stand in for a module.
        worker = "qconvert.measurement.limited_worker"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker, *self._needs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._talk,
            env=limited(self._isa) | {"OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._talk):
            if stream is not None:
                stream.close()

    def load(self, file: bytes) -> Callable[..., Any]:
        """A module from the content of a TorchScript file; calls of what is returned are run by
        the process, one at a time.

        Raises VerificationError when the process ends or the module raises, here and at each call.
        """
        self._ask({"file": file})
        number, self._loaded = self._loaded, self._loaded + 1

        def run(*inputs: Tensor) -> Any:
            return self._ask({"number": number, "inputs": inputs})

        return run

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            requests, answers = self._process.stdin, self._process.stdout
            if requests is None or answers is None:
                raise AssertionError("a process without pipes")
            try:
                write_message(requests, request)
                answer = read_message(answers)
            except BrokenPipeError:
                answer = None
        if answer is None:
            self._process.wait()
            raise self._failure(self._last_words())
        if "error" in answer:
            raise self._failure(str(answer["error"]))
        return answer["result"]

    def _last_words(self) -> str:
        self._talk.seek(0)
        lines = [line for line in self._talk.read().decode(errors="replace").splitlines() if line]
        return lines[-1] if lines else "the process died"

    def _failure(self, fact: str) -> VerificationError:
        fact = f"a process limited to {self._isa} does not run what int8 needs: {fact}"
        return VerificationError(fact, where="verification")
