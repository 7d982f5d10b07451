"""Classes of CPUs: which one this process runs on, and how another process is limited to a lesser
one."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import torch

# From the least to the most able. `avx2` and `avx512` are those without VNNI, where torch's int8
# kernels sum two products in 16 bits.
CLASSES = ("avx2", "avx512", "vnni")
# What limits the instruction sets of ATen, of oneDNN and of fbgemm. Each reads its own variable
# when it is first used, so only a fresh process can be limited.
LIMITS: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512",
    },
    "vnni": {},
}
# The classes that the value of a variable allows at most; other values are of better CPUs.
_AT_MOST = {
    "ONEDNN_MAX_CPU_ISA": {
        "SSE41": None,
        "AVX": None,
        "AVX2": "avx2",
        "AVX2_VNNI": "avx2",
        "AVX2_VNNI_2": "avx2",
        "AVX512_CORE": "avx512",
    },
    "FBGEMM_ENABLE_INSTRUCTIONS": {
        "GENERIC": None,
        "AVX2": "avx2",
        "AVX512": "avx512",
        "AVX512_E1": "avx512",
    },
}


def class_here() -> str | None:
    """The best of CLASSES that int8 kernels in this process can use: that of the CPU, or what a
    variable of `LIMITS` leaves of it. None below AVX2, and where the CPU is no x86."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    here = ["avx2"] if torch.cpu._is_avx2_supported() else []
    here += ["avx512"] if here and torch.cpu._is_avx512_supported() else []
    here += ["vnni"] if "avx512" in here and torch.cpu._is_vnni_supported() else []
    for variable, known in _AT_MOST.items():
        value = os.environ.get(variable, "").upper()
        if value in known:
            best = known[value]
            here = here[: CLASSES.index(best) + 1] if best is not None else []
    return here[-1] if here else None


def can_be_shown(name: str) -> bool:
    """Whether a process of this machine can be limited to a class."""
    here = class_here()
    return here is not None and CLASSES.index(name) <= CLASSES.index(here)


def limited(name: str) -> dict[str, str]:
    """This process's environment, limited to a class."""
    return {**os.environ, **LIMITS[name]}
