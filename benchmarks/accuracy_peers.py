"""Quantizes one model with the peers and runs what they made on the evaluation images, in their
environment; prints seconds as JSON.

    accuracy_peers.py FLOAT.pt CALIBRATION.npz EVALUATION.npz FOLDER

NNCF in its performance preset (fast bias correction) and in its mixed preset with full bias
correction; ONNX Runtime's `quantize_static`, per channel, min-max. Writes each one's outputs as
`NAME.npy` into FOLDER.

What they made is computed in float arithmetic, as its nodes say: on CPUs without VNNI their int8
kernels overflow (MobileNetV2: 17.7 instead of 20.6 dB, 8.9 instead of 14.8), and that would be a
comparison of another thing.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from peers_quantize import export, float_model, with_onnxruntime


def with_nncf(onnx: Path, samples: list[np.ndarray], **settings: Any) -> Any:
    """An OpenVINO model."""
    import nncf
    import openvino

    dataset = nncf.Dataset(samples)
    return nncf.quantize(
        openvino.convert_model(onnx), dataset, subset_size=len(samples), **settings
    )


def run_openvino(model: Any, images: list[np.ndarray]) -> np.ndarray:
    """The outputs of each image, from its fake quantization."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return np.concatenate([compiled([x])[0] for x in images])


def run_onnxruntime(path: Path, images: list[np.ndarray]) -> np.ndarray:
    """The outputs of each image, node by node as the file has them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x})[0] for x in images])


def main() -> None:
    """Exports, then quantizes and runs with each."""
    source, calibration, evaluation, folder = sys.argv[1], *map(Path, sys.argv[2:5])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    samples, images = (list(np.load(path).values()) for path in (calibration, evaluation))
    onnx, static = folder / "float.onnx", folder / "onnxruntime.onnx"
    seconds = {}
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        import nncf

        export(float_model(source), onnx, samples[0])

        def onnxruntime() -> np.ndarray:
            with_onnxruntime(onnx, static, samples, transformer=False)
            return run_onnxruntime(static, images)

        def performance() -> np.ndarray:
            return run_openvino(with_nncf(onnx, samples), images)

        def mixed() -> np.ndarray:
            settings = {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False}
            return run_openvino(with_nncf(onnx, samples, **settings), images)

        ways: dict[str, Callable[[], np.ndarray]] = {
            "NNCF, performance preset": performance,
            "NNCF, mixed preset, full bias correction": mixed,
            "ONNX Runtime, per channel": onnxruntime,
        }
        for name, way in ways.items():
            start = time.perf_counter()
            np.save(folder / f"{name}.npy", way())
            seconds[name] = time.perf_counter() - start
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
