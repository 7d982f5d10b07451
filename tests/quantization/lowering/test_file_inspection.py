"""What is told of a TorchScript file, ours or anybody's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import divided
import networks
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    get_default_qconfig,
    prepare,
    quantize_dynamic,
)

from qconvert import torchscript
from qconvert.models.model_file import open_model
from qconvert.quantization.lowering.file_inspection import FileInspection, inspect_file
from qconvert.reports.inspection_pictures import file_picture

SHAPE = (1, 3, 24, 24)


def saved(module: nn.Module, path: Path, traced: bool = True) -> Path:
    script = (
        torchscript.trace(module, [torch.rand(SHAPE)]) if traced else torchscript.script(module)
    )
    path.write_bytes(torchscript.to_bytes(script))
    return path


def inspected(path: Path, shape: tuple[int, ...] | None = SHAPE) -> FileInspection:
    return inspect_file(open_model(path), [shape] if shape else [])


def test_own_file_has_the_kernels_of_its_plan_and_their_names(converted, tmp_path: Path) -> None:
    result = converted(networks.Residual)
    found = inspected(result.file(tmp_path / "m.pt"))
    planned = [o.kernel for o in result.plan.operators if o.kernel]
    for kernel in planned:
        assert found.operators["int8"][kernel] == planned.count(kernel)
    assert found.coverage.int8_macs_share == pytest.approx(result.plan.int8_macs)
    assert found.coverage.macs == sum(o.macs for o in result.plan.operators)
    marks = sum(found.operators["boundary"].values())
    assert found.coverage.boundaries == marks
    assert found.weights["qint8"] > found.weights.get("float32", 0)
    assert "a quantized engine of torch" in found.needs[0].what
    assert not found.warnings


class Looping(nn.Module):
    """Control flow that only a script can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.again = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(3):
            x = self.again(x).relu() if x.mean() > 0.1 else x + 1
        return self.out(x.mean((2, 3)))


def test_operators_in_branches_and_loops_are_seen_without_running(tmp_path: Path) -> None:
    found = inspected(saved(Looping().eval(), tmp_path / "m.pt", traced=False), None)
    floats = found.operators["float32"]
    assert floats["aten::conv2d"] >= 2
    assert floats["aten::linear"] == 1
    assert set(found.operators) <= {"float32", "other"}
    assert found.coverage is None
    assert "--shape" in (found.why_uncounted or "")
    assert not found.needs
    assert set(found.weights) == {"float32"}


def test_branches_and_loops_are_drawn_with_what_is_in_them(tmp_path: Path) -> None:
    found = inspected(saved(Looping().eval(), tmp_path / "m.pt", traced=False))
    graph = found.graph
    (loop,) = (i for i, o in enumerate(graph) if o.kind == "prim::Loop")
    (chosen,) = (i for i, o in enumerate(graph) if o.kind == "prim::If")
    assert (graph[chosen].depth, graph[chosen].branch) == (1, "loop")
    assert any(graph[i].kind == "aten::gt" for i in graph[chosen].reads)  # through aten::Bool
    inside = {(o.kind, o.branch) for o in graph if o.depth == 2}
    assert inside == {("aten::conv2d", "then"), ("aten::relu", "then"), ("aten::add", "else")}
    after = next(o for o in graph[loop:] if o.depth == 0 and o.kind == "aten::mean")
    assert loop in after.reads
    assert (graph[0].shape, graph[-1].shape) == ((1, 4, 24, 24), (1, 2))
    assert all(o.shape is None for o in graph if o.depth and o.kind == "aten::conv2d")
    picture = file_picture(found, "m.pt")
    assert len(picture.rows) == len(graph) + 2
    told = picture.facts[0].split("; ")
    assert told[:3] == [f"{sum(found.operators['float32'].values())} x float", "1 x if", "1 x loop"]
    assert [row.columns[0] for row in picture.rows].count("· if") == 1


def test_own_file_with_a_branch_is_drawn_whole(converted, tmp_path: Path) -> None:
    result = converted(divided.GateInside)
    file = open_model(result.file(tmp_path / "m.pt"))
    manifest = {"operators": result.plan.manifest_lines()}
    found = inspect_file(replace(file, manifest=manifest), [SHAPE])
    drawn = [o.kind for o in found.graph if o.kind.startswith("quantized::")]
    assert {kind: drawn.count(kind) for kind in set(drawn)} == found.operators["int8"]
    (chosen,) = (i for i, o in enumerate(found.graph) if o.kind == "prim::If")
    assert any(o.kind.startswith("quantized::conv2d") and o.branch for o in found.graph)
    assert found.graph[chosen].reads
    names = {o.name for o in found.graph if o.name}
    assert {"stem.0", "head"} <= names
    # Nothing is called what it is not: what is in a branch stands elsewhere in the plan.
    assert all(not o.name or o.name.startswith("routes") for o in found.graph if o.depth)


def test_branches_that_run_are_counted_with_a_shape(tmp_path: Path) -> None:
    found = inspected(saved(Looping().eval(), tmp_path / "m.pt", traced=False))
    assert found.coverage is not None
    assert found.coverage.int8_macs_share == 0
    assert (found.coverage.macs or 0) >= 24 * 24 * 4 * 27


def test_float_file_of_somebody_else(tmp_path: Path) -> None:
    path = saved(networks.Residual().eval(), tmp_path / "m.pt")
    found = inspected(path)
    assert found.operators["float32"]["aten::_convolution"] == 3
    assert found.coverage.int8_macs_share == 0
    picture = file_picture(found, "m.pt")
    names = [row.columns[0] for row in picture.rows]
    assert {"stem.0", "conv1", "conv2", "head"} <= set(names)
    assert {row.paint for row in picture.rows} == {"float", "end"}
    assert all(edge.source < edge.target for edge in picture.edges)
    assert len([e for e in picture.edges if e.target - e.source > 1]) >= 2  # the two skips


def quantized_by_torch_ao() -> nn.Module:
    """As its tutorials do."""
    torch.manual_seed(0)
    body = nn.Sequential(QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),
                         nn.Flatten(), nn.Linear(3200, 4), DeQuantStub()).eval()  # fmt: skip
    body.qconfig = get_default_qconfig("x86")  # type: ignore[assignment]
    with torchscript.quiet():
        ready = prepare(body)
        ready(torch.rand(2, 3, 24, 24))
        return convert(ready)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_int8_file_of_torch_ao(tmp_path: Path) -> None:
    found = inspected(saved(quantized_by_torch_ao(), tmp_path / "m.pt"))
    int8 = found.operators["int8"]
    assert int8["quantized::conv2d"] == 2
    assert int8["quantized::linear"] == 1
    assert int8["aten::relu"] == 1  # on int8
    assert found.operators["boundary"] == {
        "aten::quantize_per_tensor": 1, "aten::dequantize": 1,
    }  # fmt: skip
    assert found.coverage.int8_macs_share == 1
    (need,) = found.needs
    assert "qnnpack" in need.what
    assert file_picture(found, "m").rows[1].paint == "int8"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_file_of_torch_ao(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1728, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torchscript.quiet():
        found = inspected(saved(quantize_dynamic(model), tmp_path / "m.pt"))
    assert found.operators["dynamic"] == {"quantized::linear_dynamic": 2}
    assert found.coverage.dynamic_macs_share == 1
    assert "dynamic" in {row.paint for row in file_picture(found, "m").rows}


def test_shape_that_the_model_does_not_read_is_said(tmp_path: Path) -> None:
    found = inspected(saved(networks.plain().eval(), tmp_path / "m.pt"), (1, 5, 24, 24))
    assert found.coverage is None
    assert "1 x 5 x 24 x 24" in (found.why_uncounted or "")
    assert (found.why_uncounted or "").rpartition(": ")[2]
    assert found.operators["float32"]
