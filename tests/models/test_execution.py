"""Every operator that a saved file runs is seen, with its values, at any depth of its code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.models.execution import Executed, float_macs, float_macs_in, watch

EXAMPLE = torch.rand(1, 3, 25, 25, generator=torch.Generator().manual_seed(0))


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(x))[:, :, 1:-1, 1:-1] - self.conv1(x)
        return self.head(x.mean((2, 3)))


class Loops(nn.Module):
    """Code that only TorchScript's compiler keeps: it runs a convolution as often as the image
    says, and another one never."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.never = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.shape[2]) // 8):
            x = self.conv(x) if x.max() > -1e9 else self.never(x)
        return x


def traced(module: nn.Module, inputs: Sequence[Tensor] = (EXAMPLE,)) -> torch.jit.ScriptModule:
    """As it comes out of a file."""
    script = torchscript.freeze(torchscript.trace(module.eval().requires_grad_(False), inputs))
    return torchscript.load(torchscript.to_bytes(script))


def watched(model: Callable[..., Any], *inputs: Tensor) -> list[Executed]:
    found: list[Executed] = []
    # Tensors may be changed in place after they were seen.
    watch(model, inputs, lambda e: found.append(e._replace(output=e.output.clone())))
    return found


def kinds(found: Sequence[Executed], *wanted: str) -> list[str]:
    names = [executed.kind.removeprefix("aten::") for executed in found]
    return [name for name in names if name in wanted]


def test_values_are_those_that_hooks_see() -> None:
    model, seen = TwoBranches().eval().requires_grad_(False), {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    model(EXAMPLE)
    found = watched(traced(TwoBranches()), EXAMPLE)
    layers = [e for e in found if e.kind.removeprefix("aten::") in ("_convolution", "linear")]
    for executed, name in zip(layers, ("conv2", "conv1", "head"), strict=True):
        torch.testing.assert_close(executed.args[0], seen[name][0])
        torch.testing.assert_close(executed.output, seen[name][1])


def test_operators_come_in_their_order_with_both_operands() -> None:
    found = watched(traced(TwoBranches()), EXAMPLE)
    order = ["relu", "sub", "mean", "linear"]
    assert kinds(found, *order) == order
    (difference,) = [executed for executed in found if executed.kind == "aten::sub"]
    left, right = difference.args[:2]
    torch.testing.assert_close(difference.output, left - right)
    assert float(left.min()) == 0
    assert float(right.min()) < 0


def test_result_is_that_of_the_model() -> None:
    inputs = (EXAMPLE, torch.rand(1, 4), torch.tensor([3]))

    class Computes(nn.Module):
        def forward(self, x: Tensor, y: Tensor, n: Tensor) -> dict[str, Tensor]:
            return {"a": x.mean() - y * n, "b": y}

    script = traced(Computes(), inputs)
    result = watch(script, inputs, lambda executed: None)
    assert set(result) == {"a", "b"}
    assert torch.equal(result["a"], script(*inputs)["a"])
    assert torch.equal(watched(script, *inputs)[-1].output, result["a"])


@pytest.mark.parametrize("form", ["compiled", "frozen", "in Python"])
def test_loops_and_branches_are_seen_as_they_run(form: str) -> None:
    model: Any = Loops().eval().requires_grad_(False)
    if form != "in Python":
        model = torchscript.script(model)
    if form == "frozen":
        model = torchscript.freeze(model)
    for rows, times in ((25, 3), (9, 1), (4, 0)):
        x = torch.rand(1, 3, rows, 8)
        macs = [macs for executed in watched(model, x) if (macs := float_macs(executed))]
        assert macs == [rows * 8 * 3 * 3 * 9] * times


def test_same_work_done_twice_is_seen_twice() -> None:
    """A file is counted as it is written, whatever torch makes of it as it runs."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv(x)

    script = torchscript.trace(Twice().requires_grad_(False), [EXAMPLE])
    file = torchscript.load(torchscript.to_bytes(script))
    for _ in range(3):
        assert len(kinds(watched(file, EXAMPLE), "_convolution")) == 2


def test_settings_of_torch_are_put_back() -> None:
    before = torch._C._get_graph_executor_optimize()

    def fails(x: Tensor) -> Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        watched(fails, EXAMPLE)
    assert torch._C._get_graph_executor_optimize() is before
    assert not torch.is_inference_mode_enabled()


def test_work_in_some_modules_is_counted_without_that_of_others_in_them() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), inner, nn.Conv2d(4, 2, 1)).eval()
    x = torch.rand(1, 3, 5, 5)
    work = {"first": 25 * 9, "inner.0": 25 * 12, "inner.1": 25 * 16, "last": 25 * 8}
    assert float_macs_in(model, [x], {model: True}) == sum(work.values())
    assert float_macs_in(model, [x], {inner: True}) == work["inner.0"] + work["inner.1"]
    assert float_macs_in(model, [x], {model: True, inner: False}) == work["first"] + work["last"]
    counted = {model: True, inner: False, inner[1]: True}
    assert float_macs_in(model, [x], counted) == sum(work.values()) - work["inner.0"]
    assert float_macs_in(model, [x], {}) == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
