"""Makes the table of costs that plans are decided by: `make costs`.

    python benchmarks/costs.py qconvert/quantization/costs.json

Times operators of each class over a grid of shapes, in float and in int8, at one thread and for
each class of CPU (oneDNN, fbgemm and ATen limited by their own variables, in a process each), and
fits four numbers, none below zero, with the least relative error: a fixed time, and the times of an
element read, an element written and a multiply-accumulate, all in nanoseconds. Beside them, fitted
by nothing: what int8 operators take that plans do not use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from qconvert import torchscript
from qconvert.measurement.cpu_classes import LIMITS
from qconvert.measurement.environment import here
from qconvert.models.fusion import FusedModel, fuse
from qconvert.models.graph import capture
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.costs import Work, class_of, work_of
from qconvert.quantization.layer_rules import asked_for
from qconvert.quantization.lowering.reinterpretation import as_quint8, as_uint8
from qconvert.quantization.timing import Program, time_programs, time_unit, time_units
from qconvert.quantization.units import Unit, units_of

Row = tuple[str, str, Work, float]
Alternative = tuple[str, str, int, int]  # name, shape, nanoseconds in int8 and in float
INT8 = torch.ops.quantized
HELD = (0.05, 128)  # scale and zero point
_BEYOND = 64 << 20  # bytes: more than the caches hold
SQUARES = ((16, 112), (64, 56), (144, 28), (256, 14), (512, 7), (960, 7), (240, 1))


class Of(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OfTwo(Of):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


def convolutions() -> Iterator[tuple[nn.Module, list[tuple[int, ...]]]]:
    """Dense, pointwise, grouped, depthwise; of one, two and three axes."""
    for ci, co, h in ((16, 64, 56), (24, 144, 28), (96, 24, 56), (240, 40, 28), (80, 480, 14),
                      (256, 512, 14), (960, 160, 7), (512, 2048, 7), (240, 64, 1), (64, 240, 1),
                      (1280, 1000, 1), (32, 8, 1), (72, 24, 1), (48, 1152, 1), (480, 120, 1),
                      (672, 168, 1), (168, 672, 1), (960, 240, 1), (240, 960, 1),
                      (2048, 512, 1)):  # fmt: skip
        yield nn.Conv2d(ci, co, 1), [(1, ci, h, h)]
    for ci, co, h, k, s in ((3, 32, 224, 3, 2), (3, 64, 224, 7, 2), (16, 16, 56, 3, 1),
                            (64, 64, 56, 3, 1), (64, 128, 56, 3, 2), (128, 32, 28, 3, 1),
                            (128, 128, 28, 3, 1), (256, 256, 14, 3, 1), (512, 512, 7, 3, 1),
                            (192, 192, 14, (1, 7), 1)):  # fmt: skip
        yield nn.Conv2d(ci, co, k, s, padding=1), [(1, ci, h, h)]
    for c, h, g in ((64, 56, 8), (128, 56, 32), (512, 14, 32), (48, 56, 2), (320, 14, 20)):
        yield nn.Conv2d(c, c, 3, padding=1, groups=g), [(1, c, h, h)]
    for c, h, k, s in ((16, 112, 3, 1), (64, 56, 3, 2), (96, 56, 3, 1), (144, 56, 3, 1),
                       (192, 28, 5, 1), (240, 28, 5, 2), (480, 14, 3, 1), (480, 14, 5, 1),
                       (960, 7, 3, 1), (1152, 7, 5, 1), (96, 56, 7, 1),
                       (384, 14, 7, 1)):  # fmt: skip
        yield nn.Conv2d(c, c, k, s, padding=k // 2, groups=c), [(1, c, h, h)]
    for c, h, d in ((116, 14, 1), (116, 28, 1), (232, 14, 2), (960, 14, 2), (122, 28, 1)):
        yield nn.Conv2d(c, c, 3, padding=d, dilation=d, groups=c), [(1, c, h, h)]
    for ci, co, n, k in ((16, 32, 256, 3), (64, 64, 128, 5), (128, 256, 64, 3)):
        yield nn.Conv1d(ci, co, k, padding=k // 2), [(1, ci, n)]
    for ci, co, n in ((3, 16, 16), (16, 32, 8), (32, 64, 8)):
        yield nn.Conv3d(ci, co, 3, padding=1), [(1, ci, n, n, n)]


def others() -> Iterator[tuple[nn.Module, list[tuple[int, ...]]]]:
    """Linear and recurrent layers, and what lies between layers."""
    for rows, ci, co in ((1, 512, 1000), (1, 2048, 1000), (1, 4096, 4096), (49, 384, 1536),
                         (197, 192, 768), (197, 768, 768), (197, 3072, 768),
                         (784, 96, 384)):  # fmt: skip
        yield nn.Linear(ci, co), [(1, ci) if rows == 1 else (1, rows, ci)]
    for size, steps in ((64, 20), (96, 40), (128, 40), (256, 40), (512, 20)):
        for layer in (nn.LSTM, nn.GRU):
            yield layer(size, size, batch_first=True), [(1, steps, size)]
            yield layer(size, size, batch_first=True, bidirectional=True), [(1, steps, size)]
    for c, h in SQUARES:
        shape = (1, c, h, h)
        for function in (F.relu, F.relu6, F.hardswish, F.silu, F.gelu, F.sigmoid, F.hardsigmoid,
                         F.leaky_relu, F.elu, torch.tanh, lambda x: torch.mean(x, (2, 3)),
                         lambda x: torch.flatten(x, 1), lambda x: F.channel_shuffle(x, 2),
                         lambda x: torch.narrow(x, 1, 0, x.shape[1] // 2)):  # fmt: skip
            yield Of(function), [shape]
        for layer in (nn.PReLU(c), nn.BatchNorm2d(c), nn.GroupNorm(8, c),
                      nn.ConvTranspose2d(c, c // 2, 2, 2)):  # fmt: skip
            yield layer, [shape]
        yield nn.LayerNorm(c), [(1, h * h, c)]
        yield nn.Softmax(-1), [(1, h * h, c)]
        for function in (torch.add, torch.mul):
            yield OfTwo(function), [shape, shape]
        yield OfTwo(lambda x, y: torch.cat([x, y], 1)), [shape, shape]
        if h > 1:
            yield nn.MaxPool2d(3, 2, 1), [shape]
            yield nn.AvgPool2d(3, 1, 1), [shape]
            yield nn.AdaptiveAvgPool2d(7), [shape]
            yield nn.Upsample(scale_factor=2), [shape]
            yield nn.Upsample(scale_factor=2, mode="bilinear"), [shape]
            yield nn.ZeroPad2d(1), [shape]
        else:
            yield nn.Upsample(size=(14, 14), mode="bilinear"), [shape]


def prepared(
    module: nn.Module, shapes: list[tuple[int, ...]]
) -> tuple[FusedModel, list[Unit], QuantizationSection]:
    """A module as a fused model, and its units."""
    example = [torch.randn(shape) for shape in shapes]
    # A layer by itself would be traced into.
    whole = nn.Sequential(module) if len(shapes) == 1 else module
    model = fuse(capture(whole.eval(), example))
    section = QuantizationSection()
    return model, units_of(model, section, asked_for(model, section), frozenset()), section


def timed(module: nn.Module, shapes: list[tuple[int, ...]]) -> Iterator[Row]:
    """The rows of a module of one operator."""
    model, units, section = prepared(module, shapes)
    times = time_units(model, units, section)
    for unit in units:
        for way, nanoseconds in times.get(unit.node.name, {}).items():
            work = work_of(model.graph, unit.node)
            yield class_of(model.graph, unit.node, way), way, work, nanoseconds  # type: ignore[arg-type]


def with_activations() -> Iterator[Row]:
    """What a layer takes longer with an activation in its kernel."""
    activations: tuple[tuple[str, nn.Module], ...] = (
        ("relu", nn.ReLU()), ("saturation", nn.ReLU6()), ("hardswish", nn.Hardswish()),
        ("silu", nn.SiLU()), ("gelu", nn.GELU()), ("gelu_tanh", nn.GELU(approximate="tanh")),
        ("tanh", nn.Tanh()), ("leaky_relu", nn.LeakyReLU(0.1)),
    )  # fmt: skip
    layers: tuple[tuple[nn.Module, tuple[int, ...]], ...] = (
        (nn.Conv2d(24, 144, 1), (1, 24, 28, 28)), (nn.Conv2d(64, 64, 1), (1, 64, 56, 56)),
        (nn.Conv2d(480, 480, 3, padding=1, groups=480), (1, 480, 14, 14)),
        (nn.Linear(192, 768), (1, 197, 192)), (nn.Linear(384, 1536), (1, 49, 384)),
    )  # fmt: skip
    for layer, shape in layers:
        model, units, section = prepared(layer, [shape])
        alone = time_unit(model, units[0], section)
        for name, activation in activations:
            model, units, section = prepared(nn.Sequential(layer, activation), [shape])
            if len(units) != 1:
                continue
            together = time_unit(model, units[0], section)
            written = work_of(model.graph, units[0].value).written
            for way in together.keys() & alone.keys() - {"float32"}:
                more = max(together[way] - alone[way], 1.0)
                yield f"with {name}", way, Work(0, written, 0), more


def with_sums() -> Iterator[Row]:
    """What a convolution takes longer with another tensor added in its kernel."""
    operator = torch.ops.onednn.qconv2d_pointwise
    for ci, co, h in ((64, 64, 56), (96, 24, 56), (144, 32, 28), (256, 256, 14), (512, 512, 7)):
        x, term = (
            torch.randint(0, 255, (1, c, h, h), dtype=torch.uint8)
            .contiguous(memory_format=torch.channels_last)
            for c in (ci, co)
        )  # fmt: skip
        weight = torch.randint(-127, 127, (co, ci, 1, 1), dtype=torch.int8)
        scale, zeros = torch.full((co,), 1e-3), torch.zeros(co, dtype=torch.int32)
        space = ([1, 1], [0, 0], [1, 1], 1)
        packed = torch.ops.onednn.qconv_prepack(weight, scale, 0.05, 0, *space, list(x.shape))

        def alone(x=x, packed=packed, scale=scale, zeros=zeros, space=space) -> Tensor:
            return operator(x, 0.05, 0, packed, scale, zeros, None, *space, 0.1, 0, torch.uint8,
                            "none", [], "")  # fmt: skip

        def summed(x=x, term=term, packed=packed, scale=scale, zeros=zeros, space=space) -> Tensor:
            return operator.binary(x, 0.05, 0, packed, scale, zeros, term, None, *space, 0.1, 0,
                                   torch.uint8, 0.1, 0, "sum", 1.0, "none", [], "")  # fmt: skip

        times = time_programs({"alone": Program(alone, ()), "summed": Program(summed, ())})
        more = max(1e9 * (times["summed"] - times["alone"]), 1.0)
        yield "with sum", "direct", Work(0, term.numel(), 0), more


def crossings() -> Iterator[Row]:
    """From float to int8 and back, and between the two forms of int8."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "quantize": lambda x: torch.quantize_per_tensor(x, 0.05, 128, torch.quint8),
        "dequantize": lambda x: x.dequantize(),
        "to_direct": as_uint8,
        "to_classic": lambda x: as_quint8(x, 0.05, 128),
    }
    for c, h in SQUARES:
        x = torch.randn(1, c, h, h).contiguous(memory_format=torch.channels_last)
        quint8 = torch.quantize_per_tensor(x, 0.05, 128, torch.quint8)
        inputs = {"quantize": x, "dequantize": quint8, "to_direct": quint8}
        programs = {}
        for name, function in functions.items():
            given = (inputs.get(name, quint8.int_repr()),)
            script = torchscript.freeze(torchscript.trace(Of(function), given))
            programs[name] = Program(script, given)
        for name, seconds in time_programs(programs).items():
            yield "crossing", name, Work(x.numel(), 0, 0), 1e9 * seconds


def weights() -> Iterator[Row]:
    """What a weight takes longer where others have pushed it out of the processor's own cache, in
    products of a matrix and a vector."""
    for ci, co in ((512, 1000), (960, 240), (240, 960), (1024, 1024)):
        x, number = torch.randn(1, ci), ci * co
        floats = [torch.randn(co, ci) for _ in range(_BEYOND // (4 * number))]
        packed = [
            INT8.linear_prepack(torch.quantize_per_tensor(w, 0.05, 0, torch.qint8), None)
            for w in (torch.randn(co, ci) for _ in range(_BEYOND // number))
        ]
        functions: dict[str, tuple[list, Callable]] = {
            "float32": (floats, lambda w, x=x: F.linear(x, w)),
            "int8": (packed, lambda w, x=x: INT8.linear_dynamic(x, w, False)),
        }
        for way, (held, function) in functions.items():
            programs = {
                name: Program(lambda each=each, function=function: [*map(function, each)], ())
                for name, each in (("cold", held), ("warm", [held[0]] * len(held)))
            }
            times = time_programs(programs)
            more = 1e9 * (times["cold"] - times["warm"]) / len(held)
            yield "weights", way, Work(number, 0, 0), max(more, 1.0)


def alternatives() -> Iterator[Alternative]:
    """What torch's other int8 operators take, from int8 to int8, and what float operators take with
    a dequantization before and a quantization after."""
    for c, h in SQUARES:
        x = torch.randn(1, c, h, h).contiguous(memory_format=torch.channels_last)
        rows, gate, slopes = torch.randn(1, h * h, c), torch.rand(1, c, 1, 1), torch.rand(c)
        weight = torch.randn(c, c // 2, 2, 2)
        held = torch.quantize_per_tensor(weight, 0.05, 0, torch.qint8)
        packed = INT8.conv_transpose2d_prepack(held, None, [2, 2], [0, 0], [0, 0], [1, 1], 1)
        for name, inputs, in_int8, in_float in (
            ("hardswish", [x], lambda x: INT8.hardswish(x, *HELD), F.hardswish),
            ("hardsigmoid", [x], F.hardsigmoid, F.hardsigmoid),
            ("leaky_relu", [x], lambda x: INT8.leaky_relu(x, 0.01, False, *HELD), F.leaky_relu),
            ("prelu", [x, slopes], lambda x, y: INT8.prelu(x, y, *HELD), F.prelu),
            ("elu", [x], lambda x: INT8.elu(x, *HELD), F.elu),
            ("sigmoid", [x], lambda x: INT8.sigmoid(x, *HELD), torch.sigmoid),
            ("silu, as sigmoid and mul", [x],
             lambda x: INT8.mul(x, INT8.sigmoid(x, *HELD), *HELD), F.silu),
            ("tanh", [x], torch.tanh, torch.tanh),
            ("gelu", [x], F.gelu, F.gelu),
            ("softmax", [rows], lambda x: INT8.softmax(x, -1, *HELD), lambda x: x.softmax(-1)),
            ("layer_norm", [rows],
             lambda x, c=c: INT8.layer_norm(x, [c], None, None, 1e-5, *HELD),
             lambda x, c=c: F.layer_norm(x, [c])),
            ("group_norm", [x], lambda x: INT8.group_norm(x, 8, None, None, 1e-5, *HELD),
             lambda x: F.group_norm(x, 8)),
            ("mean, over the feature map", [x], *2 * (lambda x: x.mean((2, 3)),)),
            ("mul, of each channel", [x, gate], lambda x, y: INT8.mul(x, y, *HELD), torch.mul),
            ("matmul", [rows[:, :64], rows.transpose(1, 2)[..., :64]],
             lambda x, y: INT8.matmul(x, y, *HELD), torch.matmul),
            ("conv_transpose2d, per tensor", [x],
             lambda x, packed=packed: INT8.conv_transpose2d(x, packed, *HELD),
             lambda x, weight=weight: F.conv_transpose2d(x, weight, None, 2)),
        ):  # fmt: skip
            yield _compared(name, in_int8, in_float, inputs, packed)


def _compared(
    name: str, in_int8: Callable, in_float: Callable, inputs: list[Tensor], packed: object
) -> Alternative:
    """A row; `packed` is what the function in int8 may hold."""
    given = tuple(torch.quantize_per_tensor(x, *HELD, torch.quint8) for x in inputs)

    def with_boundaries(*held: Tensor) -> Tensor:
        result = in_float(*(x.dequantize() for x in held))
        return torch.quantize_per_tensor(result, *HELD, torch.quint8)

    programs = {}
    for way, function in (("int8", in_int8), ("float", with_boundaries)):
        module = OfTwo(function) if len(inputs) == 2 else Of(function)
        module.packed = packed
        programs[way] = Program(torchscript.freeze(torchscript.trace(module, given)), given)
    times = time_programs(programs)
    shape = " x ".join(str(size) for size in inputs[0].shape[1:])
    return name, shape, round(1e9 * times["int8"]), round(1e9 * times["float"])


def measured() -> list[Row]:
    """All rows, on this CPU as it is limited."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows: list[Row] = []
    for module, shapes in (*convolutions(), *others()):
        rows += timed(module, shapes)
        print(f"\r{len(rows)} rows", end="", file=sys.stderr)
    rows += [*with_activations(), *with_sums(), *crossings(), *weights()]
    print(f"\r{len(rows)} rows", file=sys.stderr)
    return rows


def fitted(rows: list[Row]) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:
    """The numbers of each class and way, and the median relative error of each class."""
    by_way: dict[tuple[str, str], list[tuple[Work, float]]] = {}
    for name, way, work, nanoseconds in rows:
        by_way.setdefault((name, way), []).append((work, nanoseconds))
    classes: dict[str, dict[str, list[float]]] = {}
    errors: dict[str, list[float]] = {}
    for (name, way), points in sorted(by_way.items()):
        times = np.array([max(t, 100.0) for _, t in points])
        features = np.array([[1.0, *work] for work, _ in points])
        numbers, _ = nnls(features / times[:, None], np.ones(len(times)))
        classes.setdefault(name, {})[way] = [float(f"{n:.4g}") for n in numbers]
        errors.setdefault(name, []).extend(np.abs(features @ numbers / times - 1))
    return classes, {name: round(float(np.median(e)), 3) for name, e in errors.items()}


def main(target: Path) -> None:
    """Measures each class of CPUs in a process of its own, and writes the table."""
    tables, errors, grids, others = {}, {}, {}, {}
    for isa, limits in LIMITS.items():
        print(isa, file=sys.stderr)
        command, env = [sys.executable, __file__, "--rows"], {**os.environ, **limits}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
        found, others[isa] = json.loads(done.stdout)
        rows = [(name, way, Work(*work), t) for name, way, work, t in found]
        tables[isa], errors[isa] = fitted(rows)
        # An operator that no row tells of costs what a simple one does.
        tables[isa]["other"] = {"float32": tables[isa]["relu"]["float32"]}
        grids[isa] = [(name, way, *work, round(t)) for name, way, work, t in rows]
    made = {"date": str(date.today()), "cpu": here().cpu, "torch": torch.__version__}
    content = {"made": made, "errors": errors, "classes": tables, "grid": grids}
    target.write_text(_text(content | {"alternatives": others}))


def _text(content: dict) -> str:
    """JSON with a line for each class and each row."""
    parts = [f'"{key}": {json.dumps(content[key])}' for key in ("made", "errors")]
    for key in ("classes", "grid", "alternatives"):
        tables = []
        for isa, table in content[key].items():
            if key == "classes":
                items = [f"{json.dumps(name)}: {json.dumps(ways)}" for name, ways in table.items()]
            else:
                items = [json.dumps(row) for row in table]
            left, right = "{}" if key == "classes" else "[]"
            tables.append(f'"{isa}": {left}\n  ' + ",\n  ".join(items) + f"\n {right}")
        parts.append(f'"{key}": {{\n ' + ",\n ".join(tables) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--rows"]:
        print(json.dumps([measured(), list(alternatives())]))
    else:
        main(Path(sys.argv[1]))
