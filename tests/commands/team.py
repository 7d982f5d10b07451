"""A command in several processes at once, as torchrun starts it, or with a folder for each."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from project import QCONVERT, UNMEASURED, Project, Result

# For tests that wait for it; others give a busy machine its time.
LIMIT_S = 5
BRIEF = {"QCONVERT_RANK_TIMEOUT": str(LIMIT_S)}
_ENVIRONMENT = {**UNMEASURED, "OMP_NUM_THREADS": "1"}
# A test fails, and does not hang.
_LONGEST_S = 240


def torchrun(
    project: Project, processes: int, *arguments: str, more: Mapping[str, str] | None = None
) -> Result:
    """`torchrun --nproc-per-node PROCESSES -m qconvert ARGUMENTS` in the project's folder."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
         str(processes), "-m", "qconvert", *arguments],
        cwd=project.folder, env={**_ENVIRONMENT, **(more or {})}, capture_output=True, text=True,
        check=False, timeout=_LONGEST_S,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Team:
    """Processes that were started one by one, as on several machines; no launcher ends the others
    when one is lost."""

    processes: Sequence[subprocess.Popen]

    @classmethod
    def start(
        cls,
        folders: Sequence[Path],
        *arguments: str,
        more: Mapping[str, str] | None = None,
    ) -> Team:
        """`qconvert ARGUMENTS` in each folder, rank 0 in the first."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return cls(
            [
                subprocess.Popen(
                    [*QCONVERT, *arguments],
                    cwd=folder,
                    env={
                        **_ENVIRONMENT,
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(port),
                        "RANK": str(rank),
                        "WORLD_SIZE": str(len(folders)),
                        **(more or {}),
                    },
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for rank, folder in enumerate(folders)
            ]
        )

    def wait_for(self, line: str) -> None:
        """Reads what rank 0 says until it says this."""
        said = self.processes[0].stderr
        assert said is not None
        assert any(found == line + "\n" for found in said), f"{line!r} was not said"

    def end(self) -> list[Result]:
        """Waits for the end of all."""
        results = []
        for process in self.processes:
            out, err = process.communicate(timeout=_LONGEST_S)
            results.append(Result(process.returncode, out, err))
        return results
