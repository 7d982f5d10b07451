"""Exports and quantizes one model with the peers, in their environment; prints seconds as JSON.

    peers_quantize.py SOURCE CALIBRATION.npz FOLDER TRANSFORMER(0|1)

SOURCE is the float model: `zoo:NAME`, or its TorchScript file. Writes `float.onnx`,
`onnxruntime.onnx` (static quantization per channel with min-max ranges after the pre-processing
that its documentation asks for) and `openvino.xml` (NNCF's default preset).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLES = 100


def float_model(source: str) -> Any:
    """The module to export."""
    import torch

    kind, _, name = source.rpartition(":")
    if kind != "zoo":
        return torch.jit.load(source).eval()
    import zoo_models

    return zoo_models.build(name).eval()


def export(model: Any, target: Path, example: np.ndarray) -> None:
    """The float model as ONNX, with any batch size, and any width where images differ in it."""
    import torch

    torch.backends.mha.set_fastpath_enabled(False)  # its operator has no form in ONNX
    x = torch.from_numpy(example)
    axes = {0: "batch"} | ({3: "width"} if example.shape[2] != example.shape[3] else {})
    torch.onnx.export(
        model, (x,), str(target), dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": axes, "y": {0: "batch"}},
    )  # fmt: skip


def with_onnxruntime(
    source: Path, target: Path, samples: list[np.ndarray], transformer: bool
) -> None:
    """Pre-process and quantize_static."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self._left, None)
            return None if x is None else {"x": x}

    prepared = target.with_suffix(".prepared.onnx")
    # Its symbolic shapes fail on attention with any batch size.
    quant_pre_process(source, prepared, skip_symbolic_shape=transformer)
    quantize_static(
        prepared, target, Samples(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def with_nncf(source: Path, target: Path, samples: list[np.ndarray], transformer: bool) -> None:
    """convert_model and quantize."""
    import nncf
    import openvino

    model = openvino.convert_model(source)
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    dataset = nncf.Dataset(samples)
    quantized = nncf.quantize(model, dataset, subset_size=_SAMPLES, model_type=kind)
    openvino.save_model(quantized, target, compress_to_fp16=False)


def main() -> None:
    """Exports and quantizes, in this order."""
    calibration, folder = map(Path, sys.argv[2:4])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with np.load(calibration) as arrays:
        samples = [arrays[name] for name in arrays.files][:_SAMPLES]
    onnx = folder / "float.onnx"
    seconds = {}
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        import nncf  # noqa: F401 - imports do not count
        import onnxruntime.quantization.shape_inference  # noqa: F401
        import openvino  # noqa: F401
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        model, transformer = float_model(sys.argv[1]), sys.argv[4] == "1"
        steps = {
            "export": lambda: export(model, onnx, samples[0]),
            "onnxruntime": lambda: with_onnxruntime(
                onnx, folder / "onnxruntime.onnx", samples, transformer
            ),
            "nncf": lambda: with_nncf(onnx, folder / "openvino.xml", samples, transformer),
        }  # fmt: skip
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - start
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
