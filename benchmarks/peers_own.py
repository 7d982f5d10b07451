"""The seconds that this tool's own conversion takes in one process, as JSON: the float model made
ready, calibration, the plan, lowering, the file's bytes. Imports, building the float model and all
that is measured or verified do not count, as they do not in the peers' times.

    peers_own.py QCONFIG KEY=VALUE …
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qconvert import torchscript
from qconvert.console import Console
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.qconfig_file import load
from qconvert.quantization.calibration import calibrate
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8
from qconvert.quantization.planning import make_plan
from qconvert.steps.session import Session


def main() -> None:
    """Runs the steps in order."""
    path = Path(sys.argv[1])
    config = load(path, sys.argv[2:])
    session = Session(config, path, Console(quiet=True))
    module, example = session.float_model.module, session.example
    section, images = config.calibration, session.calibration_images
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - start
        return result

    with torchscript.quiet():
        fused = timed("fuse", lambda: fuse(capture(module, example)))
        calibration = timed(
            "calibrate",
            lambda: calibrate(
                fused, images, session.read,
                batch_size=section.batch_size, averaging=section.averaging,
            ),
        )  # fmt: skip
        plan = timed("plan", lambda: make_plan(fused, calibration, config.quantization))
        model = timed("lower", lambda: lower(fused, plan, Int8(plan)))
        timed(
            "file", lambda: torchscript.to_bytes(torchscript.freeze(fused.assembly.script(model)))
        )
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
