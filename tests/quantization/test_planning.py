"""What the qconfig's quantization section does to the plan and to the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import networks
import pytest
import torch
from isa_here import needs_vnni
from torch import nn

from qconvert import torchscript
from qconvert.errors import QConfigError
from qconvert.models.operators import module_of
from qconvert.qconfig import QuantizationSection
from qconvert.quantization.lowering.coverage import check_against_plan, count
from qconvert.quantization.plan import FewerBits
from qconvert.quantization.planning import make_plan
from qconvert.quantization.weights import quantized


def precisions(result) -> dict[str, str]:
    """Precision by operator name."""
    return {o.name: o.precision for o in result.plan.operators}


@pytest.mark.parametrize(
    "rule", [{"match": "conv1"}, {"match": "conv?"}, {"match": "conv1*"}], ids=str
)
def test_rule_keeps_matching_layers_in_float(converted, rule: dict) -> None:
    result = converted(networks.Residual, layers=[{**rule, "precision": "float32"}])
    found = precisions(result)
    assert found["conv1"] == "float32"
    assert found["conv2"] == ("float32" if "?" in rule["match"] else "int8")
    assert found["stem.0"] == "int8"
    assert "the qconfig asks for it" in (result.operator("conv1").reason or "")
    assert result.sqnr_db() > 25


def test_rule_without_a_number_matches_every_call(converted) -> None:
    result = converted(networks.Chunks, layers=[{"match": "conv", "precision": "float32"}])
    found = precisions(result)
    assert (found["conv"], found["conv:2"], found["stem"]) == ("float32", "float32", "int8")


def test_activation_alone_can_be_kept_in_float(converted) -> None:
    result = converted(networks.Residual, layers=[{"match": "relu", "precision": "float32"}])
    found = precisions(result)
    assert (found["relu"], found["relu:2"], found["conv1"]) == ("float32", "float32", "int8")
    assert result.operator("conv1").with_activation is None
    assert result.sqnr_db() > 25


def test_rules_add_up_key_by_key(converted) -> None:
    layers = [
        {"match": "0", "precision": "float32"},
        {"type": "Conv2d", "weights": {"scheme": "affine"}},
        {"match": "4", "activations": {"observer": "minmax"}},
    ]
    activations = {"scheme": "symmetric"}
    result = converted(networks.relu6, layers=layers[:2], activations=activations)
    assert precisions(result)["0"] == "float32"
    assert result.operator("2").weight.scheme == "affine"
    result = converted(
        networks.relu6, layers=layers[2:], activations=activations, lowering="classic"
    )
    held = result.plan.tensors[result.operator("4").value]
    assert (held.observer, held.zero_point) == ("minmax", 128)


def test_rule_in_vain_is_noted(converted) -> None:
    rule = {"type": "Linear", "activations": {"observer": "minmax"}}
    (note,) = converted(networks.plain, layers=[rule]).plan.notes
    assert "layers[0]: the activations of type: Linear change nothing" in note
    assert converted(networks.plain).plan.notes == ()


def test_rule_on_a_module_holds_for_everything_in_it(converted) -> None:
    result = converted(networks.Recurrent, layers=[{"match": "features", "precision": "float32"}])
    assert precisions(result)["features.0"] == "float32"


def test_rule_by_type_and_last_match_wins(converted) -> None:
    layers = [{"type": "Conv2d", "precision": "float32"}, {"match": "conv2", "precision": "int8"}]
    found = precisions(converted(networks.Residual, layers=layers))
    assert [found[name] for name in ("stem.0", "conv1", "conv2", "head")] == [
        "float32", "float32", "int8", "int8",
    ]  # fmt: skip


def test_all_in_float_equals_the_original(converted) -> None:
    rule = {"match": "*", "precision": "float32"}
    result = converted(networks.Residual, layers=[rule])
    assert set(precisions(result).values()) == {"float32"}
    assert result.sqnr_db() > 100


def test_rules_that_match_nothing_are_listed_with_the_nearest_name(converted) -> None:
    layers = [{"match": "conv9", "precision": "float32"}, {"type": "Conv2", "precision": "int8"}]
    with pytest.raises(QConfigError) as error:
        converted(networks.Residual, layers=layers)
    assert "layers[0]: match: conv9 matches no operator; did you mean 'conv" in str(error.value)
    assert "layers[1]: type: Conv2 matches no operator; did you mean 'Conv2d'" in str(error.value)


@pytest.mark.parametrize(
    ("network", "rule", "fact"),
    [
        (
            networks.Recurrent, {"match": "lstm", "precision": "int8"},
            "quantization.layers: lstm cannot be int8: this version has no int8 lstm",
        ),
        (
            networks.plain, {"match": "3", "precision": "dynamic"},
            "quantization.layers: 3 cannot be dynamic: torch quantizes linear layers, LSTM and GRU "
            "dynamically, nothing else",
        ),
        (
            networks.plain, {"type": "AdaptiveAvgPool2d", "precision": "int8"},
            "quantization.layers: 9 cannot be int8: an average over many 8-bit values has more "
            "than 8 bits",
        ),
    ],
    ids=["int8 LSTM", "dynamic convolution", "int8 global average"],
)  # fmt: skip
def test_precision_that_does_not_exist_is_refused(
    converted, network: Callable[[], nn.Module], rule: dict, fact: str
) -> None:
    with pytest.raises(QConfigError) as error:
        converted(network, layers=[rule])
    assert error.value.facts == [fact]


@pytest.mark.parametrize("family", ["auto", "classic", "direct"])
def test_int8_that_is_slow_is_done_when_asked(converted, family: str) -> None:
    result = converted(
        networks.odd_depthwise,
        layers=[{"match": "3", "precision": "int8"}],
        decide="table",
        lowering=family,
    )
    line = result.operator("3")
    assert line.precision == "int8"
    assert line.lowering == ("classic" if family == "classic" else "direct")
    assert result.sqnr_db() > 30


def with_relu() -> nn.Module:
    """A linear layer with a ReLU, between others."""
    return nn.Sequential(
        *networks.conv(3, 8, stride=2), nn.Flatten(), nn.Linear(8 * 144, 32), nn.ReLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


@pytest.mark.parametrize("isa", [pytest.param("vnni", marks=needs_vnni), "portable"])
def test_linear_layer_is_dynamic_when_asked(converted, tmp_path: Path, isa: str) -> None:
    """It reads and returns float; its activation is an operator of its own."""
    rule = {"match": "4", "precision": "dynamic"}
    result = converted(with_relu, layers=[rule], isa=isa)
    line, relu = result.operator("4"), result.operator("5")
    assert (line.precision, line.kernel) == ("dynamic", "quantized::linear_dynamic")
    assert (line.lowering, line.with_activation, line.value) == (None, None, line.node)
    assert (relu.precision, relu.inputs) == ("float32", (line.value,))
    assert line.value not in result.plan.tensors
    assert result.sqnr_db() > 30
    file = torchscript.load(result.file(tmp_path / "model.pt"))
    found = count(file, [result.images[:1]])
    check_against_plan(found, result.plan)
    assert found.dynamic_macs == 8 * 144 * 32
    assert found.int8_macs_share == 1


def test_share_of_int8_counts_dynamic_layers(converted) -> None:
    layers = [
        {"match": "4", "precision": "dynamic"},
        {"match": "0", "precision": "float32"},
    ]
    plan = converted(with_relu, layers=layers).plan
    first, second, third = 12 * 12 * 8 * 27, 8 * 144 * 32, 320
    assert [plan.macs(p) for p in ("float32", "dynamic", "int8")] == [first, second, third]
    assert plan.int8_macs == pytest.approx((second + third) / (first + second + third))


def test_layer_has_its_own_observers(converted) -> None:
    layers = [
        {"match": "0", "activations": {"observer": "minmax"},
         "weights": {"observer": "minmax", "scheme": "affine"}},
    ]  # fmt: skip
    result = converted(networks.plain, layers=layers)
    first, second = result.operator("0"), result.operator("3")
    assert result.plan.tensors[first.value].observer == "minmax"
    assert result.plan.tensors[second.value].observer == "auto"
    assert (first.weight.granularity, len(first.weight.scales)) == ("per_tensor", 1)
    assert (second.weight.granularity, len(second.weight.scales)) == ("per_channel", 32)
    assert result.sqnr_db() > 20


@pytest.mark.parametrize("activations", ["affine", "symmetric"])
@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_every_scheme_computes_what_its_plan_predicts(
    converted, activations: str, scheme: str, granularity: str
) -> None:
    result = converted(
        networks.Residual,
        activations={"scheme": activations},
        weights={"observer": "histogram", "scheme": scheme, "granularity": granularity},
    )
    assert result.sqnr_db() > 20
    assert abs(result.sqnr_db() - result.sqnr_db("simulated")) < 1.5
    zero = torch.zeros(1)
    for held in result.plan.tensors.values():
        q = torch.quantize_per_tensor(zero, held.scale, held.zero_point, torch.quint8)
        assert q.dequantize().item() == 0


@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_unmeasured_plan_without_vnni_cannot_overflow(converted, isa: str, scheme: str) -> None:
    """No two products of an output channel exceed 16 bits, in whatever pairs they are summed; and
    activations keep 8 bits."""
    result = converted(networks.relu6, isa=isa, weights={"scheme": scheme})
    nodes = {node.name: node for node in result.fused.graph.graph.nodes}
    layers = [o for o in result.plan.operators if o.weight is not None]
    for operator in layers:
        module = module_of(result.fused.graph, nodes[operator.node])
        rows = quantized(module.weight, operator.weight).int_repr().long().flatten(1)
        for side in (rows, -rows):
            largest = side.clamp(min=0).sort(dim=1, descending=True).values[:, :2].sum(1)
            assert int(largest.max()) * 255 < 2**15
    assert len(layers) >= 3
    assert sum(operator.fewer_bits is not None for operator in layers) >= 2
    assert {held.quant_max for held in result.plan.tensors.values()} == {255}
    assert result.sqnr_db() > 20


def test_layers_that_give_up_bits_are_named_with_their_channels(converted) -> None:
    whole = converted(networks.relu6, isa="vnni")
    given_up = FewerBits(what="weights", neighbours=(0, 2), of=8, reason="it overflows")
    node = whole.operator("0").node
    section = QuantizationSection(isa="portable", decide="int8")
    plan = make_plan(whole.fused, whole.calibration, section, fewer_bits={node: given_up})
    changed = [o for o in plan.operators if o.fewer_bits is not None]
    assert [(o.name, o.fewer_bits) for o in changed] == [("0", given_up)]
    before, after = whole.operator("0").weight.scales, changed[0].weight.scales
    coarser = [
        i for i, scales in enumerate(zip(before, after, strict=True)) if scales[0] < scales[1]
    ]
    assert set(coarser) <= {0, 2}
    assert coarser
    others = [(o.name, o.weight) for o in plan.operators if o.fewer_bits is None]
    assert others == [(o.name, o.weight) for o in whole.plan.operators if o.name != "0"]


def test_same_inputs_give_the_same_plan(converted) -> None:
    first, second = converted(networks.Residual), converted(networks.Residual)
    assert first.plan.to_json() == second.plan.to_json()
    assert first.plan.digest() == second.plan.digest()


def test_plan_is_read_back_as_it_was_written(converted) -> None:
    plan = converted(networks.Residual).plan
    assert type(plan).model_validate_json(plan.to_json()) == plan
