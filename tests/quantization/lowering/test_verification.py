"""A file is kept only if a fresh process computes with it what the model in memory computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from torch import Tensor, nn

from qconvert import torchscript
from qconvert.errors import VerificationError
from qconvert.images.preprocess import Inputs
from qconvert.quantization.lowering.verification import verify

IMAGES = [(x,) for x in torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).split(1)]
WEIGHT = torch.randn(108, 5, generator=torch.Generator().manual_seed(1))
Network = Callable[..., Any]


class Computes(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def right(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT


def constant(x: Tensor) -> Tensor:
    return right(x) * 0 + torch.arange(5.0)


def nearly_constant(x: Tensor) -> Tensor:
    """An untrained network: int8 cannot tell its outputs apart."""
    return right(x) * 1e-6 + torch.arange(5.0)


def only_batch_one(x: Tensor) -> Tensor:
    return x.reshape(1, -1) @ WEIGHT


def mixes_images(x: Tensor) -> Tensor:
    """Right for one image, wrong for three."""
    return right(x) + (x - x.mean(0)).flatten(1) @ WEIGHT


def not_finite(value: float) -> Network:
    def function(x: Tensor) -> Tensor:
        return torch.where(right(x) > 0, torch.tensor(value), right(x))

    return function


def traced(function: Network, inputs: Inputs = IMAGES[0]) -> torch.jit.ScriptModule:
    return torchscript.freeze(torchscript.trace(Computes(function), inputs))


def save(function: Network, folder: Path, inputs: Inputs = IMAGES[0]) -> Path:
    path = folder / "model.int8.pt"
    script = traced(function, inputs)
    path.write_bytes(torchscript.to_bytes(script))
    return path


@pytest.mark.parametrize(
    ("in_file", "in_memory", "in_float", "sentence"),
    [
        (not_finite(float("nan")), right, right, "the int8 file computes NaN or infinity"),
        (not_finite(float("-inf")), right, right, "the int8 file computes NaN or infinity"),
        (right, not_finite(float("nan")), right, "differs from the model in memory"),
        (constant, constant, right, "the int8 file gives the same output for all images; it was"),
        (
            constant, constant, nearly_constant,
            "same output for all images, and the float model nearly so",
        ),
        (
            lambda x: right(x)[:, :3], right, right,
            "the int8 file gives shape [1, 3], in memory it is [1, 5]",
        ),
        (
            lambda x: right(x) * 1.01, right, right,
            "the int8 file differs from the model in memory by 0.01 of its output",
        ),
        (mixes_images, right, right, "the int8 file differs from the model in memory by "),
        (
            only_batch_one, right, right,
            "does not run in a fresh process on inputs of shape [3, 3, 6, 6]: RuntimeError: "
            "mat1 and mat2 shapes cannot be multiplied (1x324 and 108x5)",
        ),
    ],
    ids=[
        "NaN", "infinity", "NaN in memory", "constant", "constant as float", "shape", "one percent",
        "mixes images", "batch 1 only",
    ],
)  # fmt: skip
def test_wrong_file_is_refused(
    tmp_path: Path, in_file: Network, in_memory: Network, in_float: Network, sentence: str
) -> None:
    with pytest.raises(VerificationError) as error:
        verify(save(in_file, tmp_path), in_memory, IMAGES, in_float)
    assert sentence in error.value.facts[0]
    advice = "model.checkpoint" if in_float is nearly_constant else "precision: float32"
    assert advice in (error.value.fix or "")


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(right, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(VerificationError, match="does not run in a fresh process") as error:
        verify(path, right, IMAGES, right)
    assert "\n" not in error.value.facts[0]
    assert "it was not kept" in error.value.facts[0]


def test_file_of_another_network_is_refused(converted, tmp_path: Path) -> None:
    """Trained alike, of the same shape: only its answers are others."""
    result, other = converted(networks.plain), converted(networks.relu6)
    with pytest.raises(VerificationError, match="differs from the model in memory"):
        verify(other.file(tmp_path / "other.pt"), result.model, result.inputs(3), result.original)


def test_right_file_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that sees neither the working folder nor the user's Python settings."""
    for name in ("random", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the file of the user')\n")
    path = save(right, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = verify(path, right, IMAGES, right)
    assert found.batch_sizes == (1, 3)
    assert 0 <= found.largest_difference < 1e-5
    assert (found.outputs_finite, found.outputs_vary) == (True, True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.int8.pt", "random.py", "sitecustomize.py",
    ]  # fmt: skip


def test_equal_outputs_for_equal_images_are_right(tmp_path: Path) -> None:
    found = verify(save(right, tmp_path), right, [IMAGES[0]] * 3, right)
    assert not found.outputs_vary


def test_dense_output_passes(tmp_path: Path) -> None:
    def dense(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 2)

    assert verify(save(dense, tmp_path), dense, IMAGES, dense).outputs_vary


def named(x: Tensor) -> dict[str, Tensor]:
    return {"scores": right(x), "map": x * 2}


def in_turn(x: Tensor) -> tuple[Tensor, Tensor]:
    return right(x), x * 2


@pytest.mark.parametrize("outputs", [named, in_turn, lambda x: list(in_turn(x))])
def test_every_output_is_compared(tmp_path: Path, outputs: Network) -> None:
    path = save(outputs, tmp_path)
    assert verify(path, outputs, IMAGES, outputs).largest_difference < 1e-5

    def another_second(x: Tensor) -> Any:
        found = outputs(x)
        second = "map" if isinstance(found, dict) else 1
        values = dict(enumerate(found)) if second == 1 else found
        changed = {**values, second: values[second] * 1.25}
        return list(changed.values()) if second == 1 else changed

    with pytest.raises(VerificationError, match=r"in memory by 0\.2 of its output"):
        verify(path, another_second, IMAGES, outputs)


def test_missing_output_is_refused(tmp_path: Path) -> None:
    path = save(lambda x: {"scores": right(x)}, tmp_path)
    with pytest.raises(VerificationError) as error:
        verify(path, named, IMAGES, named)
    assert "gives shape None, in memory it is [1, 3, 6, 6]" in error.value.facts[0]


def test_difference_is_a_share_of_the_outputs_own_largest(tmp_path: Path) -> None:
    """Beside a large output a small one may not be wrong."""

    def outputs(error: float) -> Network:
        return lambda x: (x * 1e6, x * (1 + error))

    with pytest.raises(VerificationError, match=r"in memory by 0\.01 of its output"):
        verify(save(outputs(0.01), tmp_path), outputs(0), IMAGES, outputs(0))


def test_model_of_two_inputs_passes(tmp_path: Path) -> None:
    def both(x: Tensor, y: Tensor) -> Tensor:
        return right(x) - 2 * right(y)

    pairs = [(x, y) for (x,), (y,) in zip(IMAGES, IMAGES[::-1], strict=True)]
    path = save(both, tmp_path, pairs[0])
    assert verify(path, both, pairs, both).outputs_vary
    with pytest.raises(VerificationError, match="differs from the model in memory"):
        verify(path, lambda x, y: both(y, x), pairs, both)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def at_6_x_6(x: Tensor) -> Tensor:
    """Right where it was traced; elsewhere it adds up as if there were 36 pixels."""
    return x.sum((2, 3)) / 36


SMALL = [(x[:, :, :4, :5],) for (x,) in IMAGES]


def test_other_sizes_are_compared_too(tmp_path: Path) -> None:
    path = save(pooled, tmp_path)
    assert verify(path, pooled, IMAGES, pooled, SMALL).largest_difference < 1e-5
    path = save(at_6_x_6, tmp_path)
    assert verify(path, pooled, IMAGES, pooled).largest_difference < 1e-5
    with pytest.raises(VerificationError, match="differs from the model in memory"):
        verify(path, pooled, IMAGES, pooled, SMALL)


def test_size_at_which_the_file_fails_is_named(tmp_path: Path) -> None:
    def any_size(x: Tensor) -> Tensor:
        return x.flatten(1) @ WEIGHT[: x[0].numel()]

    with pytest.raises(VerificationError) as error:
        verify(save(right, tmp_path), any_size, IMAGES, right, SMALL)
    assert "on inputs of shape [1, 3, 4, 5]: RuntimeError: mat1 and" in error.value.facts[0]


def test_images_of_several_sizes_are_compared_each(tmp_path: Path) -> None:
    found = verify(save(pooled, tmp_path), pooled, [*IMAGES[:2], *SMALL], pooled)
    assert (found.outputs_vary, found.batch_sizes) == (True, (1, 3))
