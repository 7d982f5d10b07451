"""What an analysis says of each operator is what a second, plain way to compute it says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import divided
import networks
import pytest
import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from qconvert.errors import NotFiniteImageError
from qconvert.images.folder import ImageSet
from qconvert.images.preprocess import Preprocessed
from qconvert.qconfig import Preprocess
from qconvert.quantization.affine import fake_quantize
from qconvert.quantization.recovery.corrected import corrected_layers, with_corrections
from qconvert.quantization.recovery.recover import sqnr_db
from qconvert.quantization.rules import UNROUNDED
from qconvert.quantization.sensitivity.analysis import analyze
from qconvert.quantization.sensitivity.record import PlaceSensitivity, Sensitivity
from qconvert.quantization.sensitivity.subject import Subject, with_plan
from qconvert.quantization.weights import on_grid, quantized

READ = Preprocessed(Preprocess(mean=(0.5,), std=(0.25,)))


class Plainly(Interpreter):
    """The fused model with the weights of some operators and the results of some values rounded."""

    def __init__(self, result: Any, weights: set[str], results: set[str]) -> None:
        super().__init__(result.fused.graph)
        self.lines = {o.node: o for o in result.plan.operators}
        self.tensors, self.weights, self.results = result.plan.tensors, weights, results
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        found = super().run_node(n)
        if n.name in self.weights:
            line, layer = self.lines[n.name], copy.deepcopy(self.fetch_attr(str(n.target)))
            layer.weight.data = quantized(layer.weight, line.weight).dequantize()
            if layer.bias is not None:
                x_held = self.tensors[line.inputs[0]]
                layer.bias.data = on_grid(layer.bias, x_held.scale, line.weight)
            found = layer(self.env[n.args[0]])
        if n.name in self.results:
            found = fake_quantize(found, self.tensors[n.name].params)
        self.seen[n.name] = found
        return found


def decibels(want: list[Tensor], have: list[Tensor]) -> float:
    signal = sum(float(x.double().square().sum()) for x in want)
    noise = sum(
        float((x.double() - y.double()).square().sum()) for x, y in zip(want, have, strict=True)
    )
    return 10 * math.log10(signal / noise) if noise else 200.0


def analyzed(result: Any, image_set: ImageSet) -> Sensitivity:
    return analyze(Subject(result.fused, result.fused, result.plan, "output"), image_set, READ)


def place(found: Sensitivity, name: str) -> PlaceSensitivity:
    return next(p for p in found.places if p.name == name)


@pytest.mark.parametrize(
    "network", [networks.Residual, networks.InvertedResiduals, networks.BasicBlocks]
)
def test_each_operator_alone_is_what_plain_code_computes(
    converted: Callable[..., Any], image_set: ImageSet, network: type[nn.Module]
) -> None:
    result = converted(network)
    found = analyzed(result, image_set)
    int8 = [o for o in result.plan.operators if o.precision == "int8"]
    weights = {o.node for o in int8 if o.weight is not None}
    made = {o.value for o in int8 if not o.float_output and o.kind not in UNROUNDED}
    held = {o.value for o in int8}
    brought = result.plan.tensors.keys() - held

    def run(*rounded: set[str]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        outputs, seen = [], []
        for image in result.images.split(1):
            way = Plainly(result, *rounded)
            outputs.append(way.run(image))
            seen.append(way.seen)
        return outputs, seen

    with torch.inference_mode():
        want, want_seen = run(set(), set())
        everything, have_seen = run(weights, made | brought)
        whole = decibels(want, everything)
        assert found.int8_db.value == pytest.approx(whole, abs=1e-3)
        assert whole < 60
        for line in int8:
            row = place(found, line.name)
            own = [[s[line.value] for s in seen] for seen in (want_seen, have_seen)]
            assert row.sqnr_db is not None
            assert row.sqnr_db.value == pytest.approx(decibels(*own), abs=1e-3)
            weight, value = weights & {line.node}, made & {line.value}
            if not weight and not value:
                assert row.alone_db is None
                assert row.reason is not None
                continue
            assert row.alone_db is not None
            assert row.in_float_db is not None
            assert row.gain_db is not None
            alone = decibels(want, run(weight, value)[0])
            assert row.alone_db.value == pytest.approx(alone, abs=1e-3)
            without = decibels(want, run(weights - weight, (made | brought) - value)[0])
            assert row.in_float_db.value == pytest.approx(without, abs=1e-3)
            assert row.gain_db.value == pytest.approx(without - whole, abs=2e-3)
    assert {p.kind for p in found.places if p.precision == "boundary"} == {"boundary"}
    ranks = sorted(p.rank_alone for p in found.places if p.rank_alone is not None)
    assert ranks == list(range(1, len(ranks) + 1))


def test_recovered_layers_are_int8_as_recovery_made_them_and_float_as_they_were(
    converted: Callable[..., Any], image_set: ImageSet
) -> None:
    result = converted(networks.plain)
    images = result.inputs(12)
    fixes = corrected_layers(
        result.fused, result.plan, images[:6], rounding=True, bias_correction=True
    )
    corrected, plan = with_corrections(result.fused, result.plan, fixes)
    subject = Subject(result.fused, corrected, plan, "output")
    found = analyze(subject, image_set, READ)
    with torch.inference_mode():
        want = sqnr_db(result.fused, result.fused, result.plan, fixes, images)
        layers = subject.bodies[0].graph
        float_weight = next(m for m in result.fused.graph.modules() if isinstance(m, nn.Conv2d))
    assert found.int8_db.value == pytest.approx(want, abs=1e-3)
    assert abs(want - analyzed(result, image_set).int8_db.value) > 0.01
    assert any(getattr(module, "as_float", None) is float_weight for module in layers.modules())
    # The same plan again is the same, recovery included.
    again = analyze(with_plan(subject, plan), image_set, READ)
    assert again.int8_db == found.int8_db


class Heads(nn.Module):
    """Two outputs by name; only one of them is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*networks.conv(3, 8))
        self.one, self.other = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 6, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        return {"one": self.one(x), "other": self.other(x)}


def test_only_the_measured_output_counts(
    converted: Callable[..., Any], image_set: ImageSet
) -> None:
    result = converted(Heads)
    subject = Subject(result.fused, result.fused, result.plan, "other")
    found = analyze(subject, image_set, READ)
    assert place(found, "other").alone_db is not None
    unread = place(found, "one")
    assert unread.alone_db is None
    assert unread.sqnr_db is not None
    assert unread.reason == "the measured output does not depend on it"


def test_weights_of_recurrent_layers_are_looked_at(
    converted: Callable[..., Any], image_set: ImageSet
) -> None:
    result = converted(networks.Recurrent, layers=[{"type": "LSTM", "precision": "dynamic"}])
    (lstm,) = [p for p in analyzed(result, image_set).places if p.precision == "dynamic"]
    assert lstm.alone_db is not None
    assert lstm.alone_db.value < 80
    assert lstm.weight_share == 1
    assert lstm.weight is not None
    assert lstm.weight.sqnr_db < 60
    assert lstm.result is None


@pytest.mark.parametrize(
    ("network", "parts"),
    [(divided.Gate, {"dark", "head"}), (divided.GateInside, {"the model", "routes.other"})],
)
def test_parts_are_judged_by_what_they_return(
    converted: Callable[..., Any],
    image_set: ImageSet,
    network: type[nn.Module],
    parts: set[str],
) -> None:
    result = converted(network)
    found = analyzed(result, image_set)
    judged = [p for p in found.places if p.alone_db is not None]
    assert {p.part for p in judged} == parts
    signal, noise = 0.0, 0.0
    bodies = [result.fused.assembly.split(g) for g in (result.fused.graph, result.simulated)]
    with torch.inference_mode():
        for image in result.images.split(1):
            for i, given, _ in result.fused.assembly.part_calls([image]):
                want, have = (body[i](*given) for body in bodies)
                signal += 1
                noise += float((want - have).square().sum() / want.square().sum())
    assert found.int8_db.value == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


class Infinite(nn.Module):
    """NaN on images that are dark."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.log(x.mean() + 0.5)


def test_images_without_a_finite_result_are_named(
    converted: Callable[..., Any], image_set: ImageSet
) -> None:
    result = converted(Infinite)
    darker = Preprocessed(Preprocess(mean=(0.625,), std=(0.25,)))
    with pytest.raises(NotFiniteImageError) as raised:
        analyze(Subject(result.fused, result.fused, result.plan, "output"), image_set, darker)
    named = [path.name for path in image_set.files if path.name in raised.value.message]
    assert 0 < len(named) < len(image_set)
