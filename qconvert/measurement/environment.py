"""What figures depend on: versions and the CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from qconvert import __version__
from qconvert.images.stream import cores
from qconvert.records import Record


class Environment(Record):
    """Where something was made or measured."""

    qconvert: str
    torch: str
    python: str
    system: str
    cpu: str
    cores: int
    vnni: bool


def here() -> Environment:
    """This process and machine."""
    return Environment(
        qconvert=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=cores(),
        vnni=bool(torch.cpu._is_vnni_supported()),
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
