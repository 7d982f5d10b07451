"""What a model is divided into: the largest modules that can be traced, and code that cannot."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import divided
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from qconvert.errors import QConfigError, UntraceableError
from qconvert.models.assembly import Assembly, assembly_of
from qconvert.models.division import Wishes
from qconvert.models.fusion import fuse
from qconvert.models.graph import capture
from qconvert.models.operators import operator_name

# The parts of divided.Routes.
ROUTES = ("one", "other")


def image(shift: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, 24, 24, generator=generator) * 0.5 + shift


def captured(
    network: Callable[[], nn.Module] | nn.Module,
    wishes: Wishes | None = None,
    shift: float = 0.3,
    others: Sequence[float] = (0.3, -0.3, 0.0, 0.1),
) -> GraphModule:
    """`shift` is the brightness of the example, `others` are those of other images."""
    torch.manual_seed(0)
    model = network if isinstance(network, nn.Module) else network()
    more = lambda: [[image(other, 1 + i)] for i, other in enumerate(others)]  # noqa: E731
    return capture(model.eval().requires_grad_(False), [image(shift)], wishes, more)


def calls(assembly: Assembly) -> dict[str, int]:
    """How often each part is called."""
    return {part.path: part.calls for part in assembly.parts}


def kept(assembly: Assembly) -> list[str]:
    return [kept.path for kept in assembly.kept]


@pytest.mark.parametrize(
    ("network", "parts", "as_written"),
    [
        (divided.GateInside, {"": 1, "routes.one": 0, "routes.other": 1}, ["routes"]),
        (divided.Rounds, {"stem": 1, "step": 2, "head": 1}, [""]),
        (divided.Pyramid, {"fine": 1, "coarse": 1, "neck": 1, "head": 2}, [""]),
        (divided.Shared, {"stem": 1, "same": 2, "tail": 1}, [""]),
        (divided.Trains, {"head": 1}, [""]),
        (divided.EachImage, {"stem": 1, "rows.conv": 1}, ["", "rows"]),
        (divided.Pairs, {"joined": 1}, [""]),
        (divided.Work, {"conv": 1}, [""]),
        (divided.Sized, {"counted.conv": 1}, ["", "counted"]),
    ],
)
def test_parts_are_the_largest_modules_that_can_be_traced(
    network: Callable[[], nn.Module], parts: dict[str, int], as_written: list[str]
) -> None:
    found = assembly_of(captured(network))
    assert calls(found) == parts
    assert kept(found) == as_written


def test_parts_are_found_at_any_depth() -> None:
    """In kept code, in a part that it calls, in kept code of that part."""
    found = assembly_of(captured(divided.Nested))
    assert sorted(kept(found)) == ["", "again.routes", "body.routes"]
    inner = {f"{body}.routes.{p}" for body in ("body", "again") for p in ROUTES}
    assert set(calls(found)) == {"body", "again", *inner}


@pytest.mark.parametrize("shift", [0.3, -0.3])
def test_branch_that_only_other_images_take_is_divided_too(shift: float) -> None:
    found = assembly_of(captured(divided.Gate, shift=shift, others=(shift, 0.3, -0.3)))
    assert set(calls(found)) == {"bright", "dark", "head"}
    assert kept(found) == [""]
    taken, not_taken = ("bright", "dark") if shift > 0 else ("dark", "bright")
    assert (calls(found)[taken], calls(found)[not_taken]) == (1, 0)


def test_branch_that_no_image_takes_is_told() -> None:
    """Its layers are no part: nobody knows what they would be called with."""
    found = assembly_of(captured(divided.Gate, others=(0.2, 0.4)))
    assert set(calls(found)) == {"bright", "head"}
    reasons = {kept.path: kept.reason for kept in found.kept}
    assert set(reasons) == {"", "dark.0", "dark.1"}
    assert reasons["dark.0"] == "the kept code calls it for none of the images that were tried"


def test_no_more_images_are_run_than_are_needed() -> None:
    asked: list[float] = []

    def more() -> Iterator[list[Tensor]]:
        for shift in (0.2, -0.2, 0.4, 0.6):
            asked.append(shift)
            yield [image(shift)]

    capture(divided.Rounds().eval(), [image(0.3)], None, more)
    capture(nn.Conv2d(3, 3, 3).eval(), [image(0.3)], None, more)
    assert asked == []
    capture(divided.Gate().eval(), [image(0.3)], None, more)
    assert 0.6 not in asked


def test_kept_code_has_its_reason_with_the_line() -> None:
    (found,) = assembly_of(captured(divided.GateInside)).kept
    line = inspect.getsourcelines(divided.Routes.forward)[1] + 1
    assert found.name == "routes"
    assert "differs from image to image" in found.reason
    assert f"{divided.__file__}:{line}: if x[:, :, 0].mean()" in found.reason
    (root,) = assembly_of(captured(divided.Rounds)).kept
    assert root.name == "the model"


def test_module_that_gets_a_list_of_images_is_no_part() -> None:
    """Its list is as long as the batch: a part has a fixed number of inputs."""
    found = {kept.path: kept.reason for kept in assembly_of(captured(divided.EachImage)).kept}
    assert (
        "it is called with other arguments for other images, or for two than for one"
        in found["rows"]
    )


def test_model_without_such_code_is_whole() -> None:
    graph = captured(lambda: nn.Sequential(divided.block(3, 4), nn.Conv2d(4, 4, 1)))
    assert assembly_of(graph).whole
    assert calls(assembly_of(graph)) == {"": 1}
    assert not assembly_of(captured(divided.GateInside)).whole


def test_operators_have_the_names_of_the_whole_model() -> None:
    graph = captured(divided.Nested)
    names = [operator_name(n) for n in graph.graph.nodes if n.op.startswith("call_")]
    assert len(names) == len(set(names))
    assert {"body.stem.0", "body.routes", "body.add", "body.head", "again.stem.0"} <= set(names)
    folded = [names for names in fuse(graph).folded if names[0].startswith("body.stem")]
    assert folded == [("body.stem.0", "body.stem.1")]


# ---- Work in code that is kept


class Attends(divided.Work):
    """Beside its function of a weight, a module that is called: a part."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if y.sum() > 0:
            y = self.conv(x) + 1
        return F.conv2d(y, self.weight).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "macs"),
    [
        (divided.Work, 24 * 24 * 5 * 4),
        (Attends, 24 * 24 * 5 * 4),
        (lambda: nn.Sequential(divided.Work(), nn.Linear(5, 5)), 24 * 24 * 5 * 4),
        (divided.Rounds, 0),
        (divided.Nested, 0),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 0),
    ],
    ids=["function", "beside a part", "below a part", "parts only", "nested", "whole"],
)
def test_work_of_kept_code_is_counted(network: Callable[[], nn.Module], macs: int) -> None:
    assert assembly_of(captured(network)).kept_macs == macs


# ---- What the user wishes


def test_listed_modules_are_kept_though_they_can_be_traced() -> None:
    network = lambda: nn.Sequential(divided.block(3, 4), divided.block(4, 4), nn.Conv2d(4, 4, 1))  # noqa: E731
    found = assembly_of(captured(network, Wishes(scripted=frozenset({"1"}))))
    assert [k.path for k in found.kept] == ["1"]
    assert "listed in model.scripted" in found.kept[0].reason
    assert calls(found) == {"": 1, "1.0": 1}  # a batch norm is no layer


def test_list_of_kept_modules_is_complete() -> None:
    wishes = Wishes(scripted=frozenset({"routes"}))
    assert kept(assembly_of(captured(divided.GateInside, wishes))) == ["routes"]
    with pytest.raises(UntraceableError, match=r"body\.routes: torch.fx cannot trace") as error:
        captured(divided.Nested, Wishes(scripted=frozenset({"again.routes"})))
    assert "model.scripted" in (error.value.fix or "")
    assert not any("again.routes" in fact for fact in error.value.facts)
    assert any(fact.startswith("the model: torch.fx cannot trace") for fact in error.value.facts)


@pytest.mark.parametrize("wishes", [Wishes(fixed=None), Wishes(fixed=frozenset({"routes"}))])
def test_fixed_code_is_traced_along_the_path_of_the_example(wishes: Wishes) -> None:
    torch.manual_seed(0)
    model = divided.GateInside().eval().requires_grad_(False)
    graph = captured(model, wishes)
    assert assembly_of(graph).whole
    torch.testing.assert_close(graph(image()), model(image()))


def test_code_around_a_fixed_module_is_divided() -> None:
    """The fixed one is a part, or a piece of one."""
    found = assembly_of(captured(divided.Nested, Wishes(fixed=frozenset({"body"}))))
    assert "body.routes" not in kept(found)
    assert {"", "again.routes"} <= set(kept(found))
    inner = assembly_of(captured(divided.Nested, Wishes(fixed=frozenset({"body.routes"}))))
    assert calls(inner) == calls(found)


def test_unknown_modules_are_named_with_the_nearest() -> None:
    wishes = Wishes(frozenset({"route", "zzz"}), frozenset({"stem.00"}))
    with pytest.raises(QConfigError) as error:
        captured(divided.GateInside, wishes)
    assert error.value.facts == [
        "model.scripted: the model has no module 'route'; did you mean 'routes'?",
        "model.scripted: the model has no module 'zzz'",
        "model.fixed: the model has no module 'stem.00'; did you mean 'stem.0'?",
    ]


def test_model_without_any_part_is_refused() -> None:
    with pytest.raises(UntraceableError, match="no module below it") as error:
        captured(divided.NoPart)
    line = inspect.getsourcelines(divided.NoPart.forward)[1] + 2
    assert f"{divided.__file__}:{line}: if y.sum() > 0:" in str(error.value)
    assert "model.fixed: all" in (error.value.fix or "")
    assert assembly_of(captured(divided.NoPart, Wishes(fixed=None))).whole


# ---- Modules that are kept or called in odd ways


class Many(nn.Module):
    """Blocks of one class that cannot be traced, and more of them than are tried one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = divided.block(3, 8)
        self.blocks = nn.Sequential(*(divided.Routes(8) for _ in range(6)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))


def test_all_modules_of_a_class_that_cannot_be_traced_are_kept() -> None:
    found = assembly_of(captured(Many))
    blocks = {kept.path: kept.reason for kept in found.kept if kept.path.count(".") == 1}
    assert sorted(blocks) == [f"blocks.{i}" for i in range(6)]
    assert all("differs from image to image" in reason for reason in blocks.values())
    # Below each there is the branch that the example takes, at least.
    assert {path.rpartition(".")[0] for path in calls(found)} == {"", *blocks}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(24, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x[:, 0])
        if y.sum() > 0:
            y = -y
        return self.out(y[:, -1])


def test_layer_that_is_a_part_stays_a_layer() -> None:
    graph = captured(Recurrent)
    modules = [graph.get_submodule(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert [type(module) for module in modules] == [nn.LSTM, nn.Linear]


def test_users_model_is_left_unchanged() -> None:
    torch.manual_seed(0)
    model = divided.Nested().eval().requires_grad_(False)
    before = str(model), {name: x.clone() for name, x in model.state_dict().items()}
    captured(model)
    assert str(model) == before[0]
    assert all(torch.equal(x, before[1][name]) for name, x in model.state_dict().items())


@torch.fx.wrap
def add_to(x: Tensor, y: Tensor) -> None:
    """Which a graph would call and whose result nobody reads."""
    x.add_(y)


class AddsByItself(nn.Module):
    """As torchvision's MViT adds its shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        add_to(y, x)
        return y


def test_wrapped_function_that_changes_its_argument_is_not_lost() -> None:
    model, x = AddsByItself().eval(), torch.randn(2, 4)
    graph = capture(model, (x,))
    assembly = assembly_of(graph)
    (kept,) = assembly.kept
    assert "`add_to` changes in place what it is given" in kept.reason
    with torch.no_grad():
        assert torch.equal(assembly.eager(graph)(x), model(x))
