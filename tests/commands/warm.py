"""Forks commands: run as a script, it imports what every command imports, does nothing else, and
makes a process for each line on its stdin.

Such a process has the folder, environment, streams, modules and exit code of a command's own, and
begins where importing torch has ended, which takes longer than most commands. `Project.call` asks
for it; commands that must be whole start cold (`Project.cold`).
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def serve() -> None:
    """Reads requests, the arguments of `begin` in JSON, and answers each with an exit code."""
    gc.freeze()  # or every child copies what it collects
    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            begin(*json.loads(request))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def begin(
    arguments: list[str], folder: str, environment: dict[str, str], out: str, err: str
) -> NoReturn:
    """Goes on as `python -m qconvert ARGUMENTS` and ends with it; `out` and `err` are files for its
    streams."""
    for number, path in enumerate((os.devnull, out, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    measure()
    sys.path[0] = os.getcwd()
    sys.argv[1:] = arguments
    try:
        runpy.run_module("qconvert", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        end(ended.code)
    sys.exit()


def end(code: object) -> NoReturn:
    """Ends as Python does, but for taking torch apart, which takes a second."""
    if not isinstance(code, int):
        sys.exit(code)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def measure() -> None:
    """Begins the coverage of this process, where it is asked for. Processes that this one starts
    are not measured: they import torch once more, and those of cold commands run the same code."""
    if "COVERAGE_PROCESS_CONFIG" in os.environ:
        coverage.process_startup(force=True)
    for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
        del os.environ[name]


if __name__ == "__main__":
    with suppress(ImportError):
        import coverage
    import qconvert.cli
    import qconvert.steps.outcome
    import qconvert.steps.session  # noqa: F401

    serve()
