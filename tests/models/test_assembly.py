"""A divided model put together again computes what the model does, in Python and in TorchScript,
also where an image goes another way than the example."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Dict, Optional, Tuple  # noqa: UP035 (TorchScript's names)

import divided
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import UnsupportedError
from qconvert.models.assembly import Assembly, assembly_of
from qconvert.models.division import Wishes
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.models.outputs import tensors

# Brightness of images: dark and bright ones, and some between.
SHIFTS = (0.3, -0.3, 0.02, -0.02)


def images(shift: float, count: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 24, 24, generator=generator) * 0.5 + shift


def seeded(network: Callable[[], nn.Module], trained: Any) -> nn.Module:
    torch.manual_seed(0)
    return trained(network())


def forms(model: nn.Module, shift: float = 0.3, wishes: Wishes | None = None) -> dict[str, Any]:
    """Everything that is made of a model, whose example is this bright."""
    others = lambda: [[images(s, seed=i)] for i, s in enumerate(SHIFTS)]  # noqa: E731
    graph = capture(model, [images(shift)], wishes, others)
    fused = fuse(graph)
    script = torchscript.freeze(fused.assembly.script(fused.graph))
    return {
        "eager": assembly_of(graph).eager(graph),
        "fused": fused.assembly.eager(fused.graph),
        "original in TorchScript": assembly_of(graph).original(),
        "file": torchscript.load(torchscript.to_bytes(script)),
    }


def assert_same(model: nn.Module, form: Callable[..., Any], x: Tensor) -> None:
    with torch.inference_mode():
        want, have = tensors(model(x)), tensors(form(x))
    assert list(want) == list(have)
    for name, value in want.items():
        torch.testing.assert_close(have[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [0.3, -0.3])
@pytest.mark.parametrize("network", divided.DIVIDED)
def test_every_form_computes_what_the_model_does(
    network: Callable[[], nn.Module], shift: float, trained: Any
) -> None:
    model = seeded(network, trained)
    for name, form in forms(model, shift).items():
        for count in (1, 3):
            for i, other in enumerate(SHIFTS):
                try:
                    assert_same(model, form, images(other, count, seed=i))
                except Exception as error:
                    raise AssertionError(f"{name}, {count} images of {other}") from error


def test_images_do_go_different_ways(trained: Any) -> None:
    """Or the test above would prove little."""
    model = seeded(divided.Gate, trained)
    calls = {"bright": 0, "dark": 0}

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    for name in calls:
        model.get_submodule(name).register_forward_hook(note(name))
    for shift in SHIFTS:
        model(images(shift))
    assert calls == {"bright": 2, "dark": 2}


def test_branch_that_is_no_part_is_in_the_file_too(trained: Any) -> None:
    """No image that was tried takes it; another may."""
    model = seeded(divided.Gate, trained)
    graph = capture(model, [images(0.3)])
    assert "dark" not in {part.path for part in assembly_of(graph).parts}
    script = torchscript.freeze(assembly_of(graph).script(graph))
    for form in (script, assembly_of(graph).eager(graph), assembly_of(graph).original()):
        for shift in SHIFTS:
            assert_same(model, form, images(shift))


def test_other_sizes_go_through_every_form(trained: Any) -> None:
    model = seeded(divided.Pyramid, trained)
    for form in forms(model).values():
        for shape in ((2, 3, 16, 40), (1, 3, 31, 17)):
            assert_same(model, form, torch.randn(shape, generator=torch.Generator().manual_seed(0)))


def test_fixed_model_goes_the_way_of_the_example(trained: Any) -> None:
    model = seeded(divided.Gate, trained)
    for form in forms(model, wishes=Wishes(fixed=None)).values():
        assert_same(model, form, images(0.3, seed=5))
        assert not torch.allclose(model(images(-0.3)), form(images(-0.3)))


def test_model_is_put_together_with_what_is_made_of_its_parts(trained: Any) -> None:
    """`run` stands in for each part, and for no other module."""
    model = seeded(divided.Nested, trained)
    graph = capture(model, [images(0.3)])
    assembly, seen = assembly_of(graph), []

    def run(part: torch.fx.GraphModule) -> Callable[..., Any]:
        def called(*inputs: Tensor) -> Any:
            seen.append(len(inputs))
            return part(*inputs)

        return called

    form = assembly.eager(graph, run)
    assert_same(model, form, images(0.3))
    assert len(seen) == sum(part.calls for part in assembly.parts)


def test_calls_of_parts_are_those_of_the_model(trained: Any) -> None:
    """Each with its inputs and its result, in their order."""
    model = seeded(divided.Pyramid, trained)
    graph = capture(model, [images(0.3)])
    assembly = assembly_of(graph)
    found = assembly.part_calls([images(-0.3)])
    paths = [assembly.parts[i].path for i, _, _ in found]
    assert paths == ["fine", "coarse", "neck", "head", "head"]
    for i, given, result in found:
        body = assembly.original_bodies()[i]
        pairs = zip(tensors(result).values(), tensors(body(*given)).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


# ---- What is handed to a part


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, times: int = 1, mask: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
        x = self.conv(x) * times
        if mask is not None:
            x = x * mask
        return x


class Counts(nn.Module):
    """Gives a part a number that depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Step()

    def forward(self, x: Tensor) -> Tensor:
        times = 1
        if x.mean() > 0:
            times = 2
        return self.step(x, times)


class Masks(Counts):
    """Gives a part a mask for some images only."""

    def forward(self, x: Tensor) -> Tensor:
        mask: Optional[Tensor] = None  # noqa: UP045
        if x.mean() > 0:
            mask = x
        return self.step(x, 1, mask)


class Numbers(Counts):
    """Calls a part with a number that differs from call to call."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = -x
        for i in range(3):
            x = self.step(x, i + 1)
        return x


class Turned(divided.Pairs):
    """Gives a part a dict whose keys are in another order for some images."""

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        y = x.flip(3)
        if x.mean() > 0:
            return self.joined({"a": x, "b": y}, (x, y))
        return self.joined({"b": x, "a": y}, (x, y))


@pytest.mark.parametrize(
    "network",
    [
        Numbers,
        Turned,
    ],
)
def test_arguments_of_a_part_differ(network: Callable[[], nn.Module], trained: Any) -> None:
    model = seeded(network, trained)
    for form in forms(model).values():
        for shift in SHIFTS:
            assert_same(model, form, images(shift))


@pytest.mark.parametrize(
    ("network", "form"),
    [
        (Counts, "script"),
        (Counts, "eager"),
        (Masks, "script"),
        (Masks, "eager"),
    ],
)
def test_part_that_is_called_in_another_way_than_ever_seen_fails(
    network: Callable[[], nn.Module], form: str, trained: Any
) -> None:
    """Rather than to compute something else."""
    model = seeded(network, trained)
    graph = capture(model, [images(-0.3)])
    made = getattr(assembly_of(graph), form)(graph)
    assert_same(model, made, images(-0.3, seed=1))
    refused = (RuntimeError, torch.jit.Error)
    with pytest.raises(refused), torch.inference_mode():
        made(images(0.3))


# ---- Code that TorchScript cannot compile


def test_line_that_cannot_be_compiled_is_named_beside_that_which_cannot_be_traced() -> None:
    graph = capture(divided.NoScript().eval(), [images(0.3)])
    with pytest.raises(UnsupportedError) as error:
        assembly_of(graph).script(graph)
    (fact,) = error.value.facts
    first = inspect.getsourcelines(divided.NoScript.forward)[1]
    assert f"{divided.__file__}:{first + 2}: if y.sum() > 0:" in fact
    assert "TorchScript cannot compile it: " in fact
    assert f"({divided.__file__}:{first + 5})" in fact
    assert "\n" not in fact
    assert "model.fixed: all" in (error.value.fix or "")


def test_kept_module_that_cannot_be_compiled_is_named_in_the_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), divided.NoScript()).eval()
    graph = capture(model, [images(0.3)])
    for make in (lambda: assembly_of(graph).script(graph), assembly_of(graph).original):
        with pytest.raises(UnsupportedError) as error:
            make()
        assert "model.fixed: [1]" in (error.value.fix or "")
    wishes = Wishes(fixed=frozenset({"1"}))
    assert_same(model, forms(model, wishes=wishes)["file"], images(0.3))


class Reads(nn.Module):
    """Its kept code reads more of a module than its result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            y = y * self.conv.weight.sum()
        return y


def test_kept_code_that_reads_a_weight_of_a_part_is_told(trained: Any) -> None:
    graph = capture(seeded(Reads, trained), [images(0.3)])
    with pytest.raises(UnsupportedError, match="has no attribute 'weight'"):
        assembly_of(graph).script(graph)


# ---- What kept code is made of


class Stateful(nn.Module):
    """Buffers, methods, constants and lists of modules in kept code."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)])
        self.named = nn.ModuleDict({"last": nn.Conv2d(3, 3, 1)})
        self.register_buffer("gain", torch.tensor(2.0))
        self.power = 0.5
        self.drop = nn.Dropout(0.5)

    def scaled(self, x: Tensor) -> Tensor:
        return x.abs() ** self.power * self.gain

    def forward(self, x: Tensor) -> Dict[str, Tensor]:  # noqa: UP006
        if x.mean() > 0:
            x = self.scaled(x)
        for step in self.steps:
            x = step(x)
        for last in self.named.values():
            x = last(input=x)
        return {"maps": self.drop(x), "mean": self.steps[1](x).mean()}


def test_kept_code_has_its_buffers_methods_and_lists(trained: Any) -> None:
    model = seeded(Stateful, trained)
    made = forms(model)
    for form in made.values():
        for shift in SHIFTS:
            assert_same(model, form, images(shift, 2))
    parts = assembly_of(capture(model, [images(0.3)])).parts
    assert {p.path: p.calls for p in parts} == {"steps.0": 1, "steps.1": 2, "named.last": 1}


def test_graph_that_nobody_divided_is_the_whole_of_itself() -> None:
    graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    found = assembly_of(graph)
    assert isinstance(found, Assembly)
    assert (found.whole, found.kept_macs) == (True, 0)
    assert found.eager(graph) is graph
    assert torch.equal(found.split(graph)[0](images(0)), graph(images(0)))
