"""Which of torch's engines and which CPU a file needs, and whether they are here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from qconvert.measurement.cpu_classes import CLASSES, class_here
from qconvert.quantization.kernels import FLOAT_LINEAR
from qconvert.records import Record

# Operators with weights that are packed when the file is loaded, for the engine that is set then.
_PACKED = ("quantized::conv", "quantized::linear", "aten::quantized_lstm", "aten::quantized_gru")
_OWN = frozenset({"aten", "prim", "quantized", "onednn", "torchvision"})
_BACKENDS = {
    "prepacked": "XNNPACK",
    "mkldnn": "oneDNN",
    "mkldnn_prepacked": "oneDNN",
    "vulkan_prepacked": "Vulkan, for phones",
    "metal_prepacked": "Metal, for phones",
}
_REMARKS = {
    "vnni": "planned for vnni: sums of older CPUs can overflow, and answers be wrong",
    "portable": "planned to be right on CPUs without VNNI, too (portable)",
}


class Need(Record):
    """Something that a file needs beside torch's own operators, the number of operators that do,
    and whether it is here; `remark` says more."""

    what: str
    operators: int
    here: bool
    remark: str


def needs(kinds: Mapping[str, int], manifest: Mapping[str, Any] | None) -> tuple[Need, ...]:
    """What operators (by their number) need, and the CPU that a manifest names."""
    found = [*_packed(kinds)]
    direct = sum(n for kind, n in kinds.items() if kind.startswith("onednn::"))
    if direct:
        about = "oneDNN's own operators: torch for x86 CPUs has them, whatever engine is set"
        found.append(Need(what="oneDNN", operators=direct, here=_onednn(), remark=about))
    found += _others(kinds)
    isa = (manifest or {}).get("isa")
    if isa is not None:
        int8 = sum(n for k, n in kinds.items() if k.startswith(("quantized::", "onednn::")))
        found.append(_cpu(str(isa), int8, (manifest or {}).get("verified_isa", {})))
    return tuple(found)


def _packed(kinds: Mapping[str, int]) -> list[Need]:
    packed = sum(n for kind, n in kinds.items() if kind.startswith(_PACKED))
    if not packed:
        return []
    engine = str(torch.backends.quantized.engine)
    fbgemm_only = kinds.get(FLOAT_LINEAR, 0)
    known = ("x86", "fbgemm") if fbgemm_only else ("x86", "fbgemm", "onednn", "qnnpack")
    remark = f"its weights are packed as it is loaded, for the engine that is set (here {engine})"
    if fbgemm_only:
        remark += f"; {fbgemm_only} x {FLOAT_LINEAR.partition('::')[2]} is in no other"
    what = f"a quantized engine of torch: {' or '.join(known)}"
    return [Need(what=what, operators=packed, here=engine in known, remark=remark)]


def _others(kinds: Mapping[str, int]) -> list[Need]:
    spaces: Counter[str] = Counter()
    for kind, number in kinds.items():
        spaces[kind.partition("::")[0]] += number
    found = []
    for space, number in sorted(spaces.items()):
        if space == "torchvision":
            remark = "import torchvision before the file is loaded"
            found.append(Need(what="torchvision", operators=number, here=True, remark=remark))
        elif space in _BACKENDS:
            there = {"prepacked": _xnnpack(), "mkldnn": _onednn(), "mkldnn_prepacked": _onednn()}
            remark = f"operators of {space}::, as torch's optimizers write them"
            found.append(
                Need(
                    what=_BACKENDS[space],
                    operators=number,
                    here=there.get(space, False),
                    remark=remark,
                )
            )
        elif space not in _OWN:
            remark = "operators of a library, which must be imported before the file is loaded"
            found.append(Need(what=f"{space}::", operators=number, here=True, remark=remark))
    return found


def _cpu(isa: str, operators: int, verified: Mapping[str, Any]) -> Need:
    """The file's contract: the weakest class of CPUs that it is made for."""
    least = isa if isa in CLASSES else CLASSES[0]
    best = class_here()
    there = best is not None and CLASSES.index(best) >= CLASSES.index(least)
    what = "a CPU with VNNI" if isa == "vnni" else f"an x86 CPU with {least.upper()} or better"
    remark = _REMARKS.get(isa, f"planned for {isa}")
    if verified:
        remark += f"; verified on {', '.join(verified)}"
    if not there:
        remark += f"; this one is {'none' if best is None else f'of class {best}'}"
    return Need(what=what, operators=operators, here=there, remark=remark)


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())


def _xnnpack() -> bool:
    return bool(getattr(getattr(torch.backends, "xnnpack", None), "enabled", False))
