"""What plans are decided by: the shipped table, and what was timed in its place."""

from __future__ import annotations

import networks
import pytest

from qconvert.models.operators import kind_of
from qconvert.qconfig import Isa, QuantizationSection
from qconvert.quantization import costs
from qconvert.quantization.planning import make_plan

ISAS: tuple[Isa, ...] = ("vnni", "avx512", "avx2", "portable")


def planned(result, measured: dict[str, dict[str, float]]) -> dict[str, str]:
    """Precision by operator, decided with these nanoseconds in the place of the table's."""
    chosen = costs.with_measured(costs.table("vnni"), result.fused.graph, measured)
    plan = make_plan(result.fused, result.calibration, QuantizationSection(), chosen)
    return {o.name: o.precision for o in plan.operators}


@pytest.mark.parametrize("isa", ISAS)
def test_table_knows_every_class_of_cpu(isa: Isa) -> None:
    """int8 pays for a large convolution and not for what sums up a handful of numbers."""
    table = costs.table(isa)
    large, small = costs.Work(200_000, 200_000, 100_000_000), costs.Work(64, 16, 1024)
    dense = "conv2d dense"
    assert table.estimate(dense, "classic", large) < table.estimate(dense, "float32", large) / 1.5
    pointwise = "conv2d pointwise"
    boundaries = table.crossing("quantize", 64) + table.crossing("dequantize", 16)
    in_int8 = table.estimate(pointwise, "classic", small) + boundaries
    assert in_int8 > table.estimate(pointwise, "float32", small)


def test_measured_time_decides_in_the_place_of_the_table(converted) -> None:
    result = converted(networks.plain)
    slow = dict.fromkeys(("classic", "classic_float", "direct", "direct_float"), 1000000000.0)
    fast = dict.fromkeys(slow, 1.0)
    node = result.operator("3").node
    assert planned(result, {node: {**slow, "float32": 1000.0}})["3"] == "float32"
    assert planned(result, {node: {**fast, "float32": 1e9}})["3"] == "int8"


@pytest.mark.parametrize(
    ("factor", "kept"), [(1.09, False), (0.91, False), (1.2, True), (0.8, True)]
)
def test_measured_time_close_to_the_table_is_left_out(converted, factor: float, kept: bool) -> None:
    """A stopwatch's noise makes no plan."""
    result = converted(networks.plain)
    graph, table = result.fused.graph, costs.table("vnni")
    node = next(n for n in graph.graph.nodes if n.name == result.operator("3").node)
    timed = {node.name: {"classic": factor * table.by_table(graph, node, "classic")}}
    found = costs.with_measured(table, graph, timed)
    assert (found.of(graph, node, "classic") != table.of(graph, node, "classic")) == kept


def test_work_of_a_recurrent_layer_is_its_steps(converted) -> None:
    """Each step in time of each layer and direction has a cost of its own."""
    result = converted(networks.Recurrent)
    node = next(n for n in result.fused.graph.graph.nodes if n.name == "lstm")
    work = costs.work_of(result.fused.graph, node)
    steps = node.args[0].meta["tensor_meta"].shape[1]
    assert work == (steps, 0, steps * 4 * 8 * (16 * 12 + 8))


@pytest.mark.parametrize("isa", ISAS)
def test_weights_come_from_memory(converted, isa: Isa) -> None:
    """By itself a layer has its weights at hand; in a network it has not, and float has more."""
    graph, table = converted(networks.Residual).fused.graph, costs.table(isa)
    layer = next(
        n for n in graph.graph.nodes if n.op == "call_module" and kind_of(graph, n) == "conv2d"
    )
    other = next(n for n in graph.graph.nodes if kind_of(graph, n) == "add")
    assert table.of(graph, layer, "classic") > table.by_table(graph, layer, "classic")
    assert table.of(graph, other, "float32") == table.by_table(graph, other, "float32")
    many = costs.Work(1_000_000, 0, 0)
    in_int8 = table.estimate("weights", "int8", many)
    assert table.estimate("weights", "float32", many) > 2 * in_int8
