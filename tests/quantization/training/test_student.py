"""The simulation that learns: what it computes, and what becomes of it in a plan."""

from __future__ import annotations

from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor, nn

from qconvert.models.operators import module_of
from qconvert.quantization.lowering.backend import lower
from qconvert.quantization.lowering.targets import Int8, Simulated
from qconvert.quantization.training.features import block_outputs
from qconvert.quantization.training.finetuned import Finetuned, with_finetuned
from qconvert.quantization.training.student import Student
from qconvert.quantization.weights import fits_in_pairs, quantized

NETWORKS = [
    networks.plain, networks.Residual, networks.relu6, networks.wide_depthwise, networks.Chunks,
    networks.SqueezeExcitation, networks.OneDimension, networks.ThreeDimensions,
    networks.Recurrent, networks.NormAfterConcat, networks.pooled_map, networks.dead_channel,
]  # fmt: skip


class Maps(nn.Module):
    """Returns feature maps that are held in int8."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return nn.functional.max_pool2d(torch.relu(self.b(x)), 2)


def shaken(student: Student, amount: float) -> None:
    """As after many steps of training."""
    generator = torch.Generator().manual_seed(3)
    state = [amount * torch.randn(x.shape, generator=generator) for x in student.state()]
    weights = len(student.weights)
    student.load([*(50 * x for x in state[:weights]), *state[weights:]])
    student.keep_within()


@pytest.mark.parametrize("network", NETWORKS)
def test_begins_as_the_simulation(network: Callable[[], nn.Module], converted) -> None:
    found = converted(network)
    student = Student(found.fused, found.plan, [])
    with torch.no_grad():
        have, features = student(found.images)
        want = found.simulated(found.images)
    assert features == {}
    assert torch.allclose(have, want, rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("network", NETWORKS)
def test_what_was_learned_is_what_the_plan_then_simulates(
    network: Callable[[], nn.Module], converted
) -> None:
    found = converted(network)
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.05)
    trained = Finetuned.from_bytes(student.finetuned().to_bytes())
    model, plan = with_finetuned(found.fused, found.plan, trained)
    with torch.no_grad():
        have, _ = student(found.images)
        want = lower(model, plan, Simulated())(found.images)
        before = found.simulated(found.images)
    size = float(want.abs().max())
    assert torch.allclose(have, want, rtol=0, atol=1e-5 * size)
    assert not torch.allclose(have, before, rtol=0, atol=1e-3 * size)


def test_file_is_within_one_step(converted) -> None:
    found = converted(Maps)
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.05)
    model, plan = with_finetuned(found.fused, found.plan, student.finetuned())
    int8 = lower(model, plan, Int8(plan))
    step = plan.tensors[plan.operators[-1].value].scale
    with torch.no_grad():
        have, _ = student(found.images)
        errors = (int8(found.images) - have).abs() / step
    assert float(errors.max()) < 1.01
    assert float((errors > 0.01).float().mean()) < 0.01


def test_integers_of_weights_are_those_that_were_trained(converted) -> None:
    found = converted(networks.plain)
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.05)
    model, plan = with_finetuned(found.fused, found.plan, student.finetuned())
    nodes = {node.name: node for node in model.graph.graph.nodes}
    for operator in plan.operators:
        if operator.weight is None:
            continue
        weight = module_of(model.graph, nodes[operator.node]).weight
        assert torch.allclose(quantized(weight, operator.weight).dequantize(), weight)
        assert operator.weight.observer == "finetune"


def test_saturation_stays_at_its_bound(converted) -> None:
    """Ranges of ReLU6 may become smaller, and end at 6 at most."""
    found = converted(networks.relu6)
    student = Student(found.fused, found.plan, [])
    student.load([torch.ones_like(x) for x in student.state()])
    student.keep_within()
    _, plan = with_finetuned(found.fused, found.plan, student.finetuned())
    saturated = [o.value for o in plan.operators if o.activation == "saturation"]
    assert saturated
    for name in saturated:
        assert plan.tensors[name].range_max == pytest.approx(6.0)
        assert plan.tensors[name].zero_point == 0


def test_tensors_that_share_a_range_still_do(converted) -> None:
    found = converted(networks.Chunks)
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.1)
    _, plan = with_finetuned(found.fused, found.plan, student.finetuned())

    def held_alike(tensors) -> set[frozenset[str]]:
        names = list(tensors)
        return {frozenset(n for n in names if tensors[n] == tensors[m]) for m in names}

    assert held_alike(plan.tensors) == held_alike(found.plan.tensors)
    assert plan.tensors != found.plan.tensors


def test_depthwise_sums_still_fit_into_16_bits(converted) -> None:
    """fbgemm sums two products in 16 bits: no two weights of a channel are above 128 together."""
    found = converted(networks.wide_depthwise, lowering="classic")
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.2)
    model, plan = with_finetuned(found.fused, found.plan, student.finetuned())
    (depthwise,) = (o for o in plan.operators if o.name == "2")
    weight = quantized(model.graph.get_submodule("2").weight, depthwise.weight)
    assert fits_in_pairs(weight.int_repr(), True, None).all()


def test_features_are_narrow_places(converted) -> None:
    """In front of a residual sum two values are open: none of these."""
    found = converted(networks.Residual)
    names = block_outputs(found.fused, found.plan)
    assert names
    student = Student(found.fused, found.plan, names)
    with torch.no_grad():
        _, features = student(found.images)
    assert list(features) == names
    inside = {o.value for o in found.plan.operators if o.name in ("conv1", "conv2")}
    assert not inside & set(names)


@pytest.mark.parametrize(
    "network", [networks.plain, networks.wide_depthwise, networks.OneDimension]
)
def test_weights_that_were_not_rounded_are_rounded_with_scales_of_their_size(
    network: Callable[[], nn.Module], converted
) -> None:
    """Channels have grown by up to 2.7: the scales follow, so nothing is cut off."""
    found = converted(network)
    student = Student(found.fused, found.plan, [], rounds=False)
    state = student.state()
    learned = len(student.weights)
    student.load([*state[:learned], *(torch.rand(x.shape) for x in state[learned:])])
    student.keep_within()
    with torch.no_grad():
        free, _ = student(found.images)
        model, plan = with_finetuned(found.fused, found.plan, student.finetuned())
        rounded, _ = student(found.images)
        simulated = lower(model, plan, Simulated())(found.images)
    size = float(free.abs().max())
    assert torch.allclose(simulated, rounded, rtol=0, atol=1e-5 * size)
    assert torch.allclose(rounded, free, rtol=0, atol=0.1 * size)
    for before, after in zip(found.plan.operators, plan.operators, strict=True):
        if before.weight is not None:
            pairs = zip(after.weight.scales, before.weight.scales, strict=True)
            assert max(now / then for now, then in pairs) > 1.3


@pytest.mark.parametrize("rounds", [True, False])
def test_all_that_learns_has_a_gradient(converted, rounds: bool) -> None:
    """Weights, biases and ranges; scales of weights that are rounded, sizes of channels else."""
    found = converted(networks.Residual)
    student = Student(found.fused, found.plan, [], rounds=rounds)
    student(found.images)[0].square().sum().backward()
    sizes = student.scales if rounds else student.channels
    assert sizes
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in sizes)
    assert all(x.grad is not None for x in student.parameters)


def test_inputs_of_the_model_keep_their_range(converted) -> None:
    found = converted(networks.plain)
    student = Student(found.fused, found.plan, [])
    shaken(student, 0.1)
    _, plan = with_finetuned(found.fused, found.plan, student.finetuned())
    made = {o.value for o in plan.operators}
    (own,) = (name for name in plan.tensors if name not in made)
    assert plan.tensors[own] == found.plan.tensors[own]
    changed = [
        name
        for name in made & plan.tensors.keys()
        if plan.tensors[name] != found.plan.tensors[name]
    ]
    assert changed
